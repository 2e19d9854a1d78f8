package luks2

import (
	"bytes"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A host changes what the header says of itself, and hopes that the owner seals
// it. The state is not taken from it, nor a sector size that no guest chose,
// whatever length the host gives the partition.
func TestResealTakesNoForgedState(t *testing.T) {
	t.Parallel()
	swapped := func(from, to string) *memory {
		m, _ := ready(t)
		rewrite(t, m, func(text string) string { return strings.Replace(text, from, to, 1) })
		return m
	}
	m := swapped(`"state":"ready"`, `"state":"formatting"`)
	if r, err := Reseal(m, testSize, pass(testPass), "data", cheap); err != nil || r.Proven {
		t.Fatalf("%+v, %v", r, err)
	}
	if o, err := unlock(t, m, testPass, "data"); err != nil || o.State != Ready {
		t.Errorf("%+v, %v", o, err)
	}
	m = swapped(`"sector_size":4096`, `"sector_size":512`)
	for _, length := range []int64{testSize, testSize - 512, testSize + 512} {
		before := bytes.Clone(m.b)
		if _, err := Reseal(m, length, pass(testPass), "data", cheap); err == nil || !bytes.Equal(m.b, before) {
			t.Errorf("length %d: another sector size was sealed, or something written: %v", length, err)
		}
	}
}

// A volume whose making was cut off has no file system. Sealed as ready it
// would never get one.
func TestResealOfUnfinishedVolume(t *testing.T) {
	t.Parallel()
	canonical, _ := formatted(t)
	labelled := canonical.clone()
	for _, at := range []int{0, headerSize} {
		copy(labelled.b[at+posLabel:], "mine")
		reseat(labelled.b[at : at+headerSize])
	}
	lost := canonical.clone()
	clear(lost.b[:headerSize])
	for name, m := range map[string]*memory{"as the guest left it": canonical, "with a label": labelled, "primary header lost": lost} {
		before := bytes.Clone(m.b)
		if _, err := Reseal(m, testSize, pass(testPass), "data", cheap); !errors.Is(err, ErrUnfinished) || !bytes.Equal(m.b, before) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Under another name the seal proves nothing.
	if r, err := Reseal(canonical, testSize, pass(testPass), "other", cheap); err != nil || r.Proven {
		t.Errorf("%+v, %v", r, err)
	}
}

// What cryptsetup adds leaves the last seal provable: a host cannot raise or
// lower the generation unseen. What replaces the sealed key slot does not.
func TestResealGeneration(t *testing.T) {
	t.Parallel()
	raised := func(m *memory) { // by the host; the checksums hold
		for _, at := range []int{0, headerSize} {
			m.b[at+posSeq+6] = 7
			reseat(m.b[at : at+headerSize])
		}
	}
	for name, tt := range map[string]struct {
		visit  []string // to cryptsetup
		host   func(*memory)
		proven bool
		pass   string
	}{
		"nothing changed":                   {nil, nil, true, testPass},
		"the host raised sequence numbers":  {nil, raised, true, testPass},
		"a second key":                      {[]string{"luksAddKey", "--key-file", "OLD", "DISK", "NEW"}, nil, true, testPass},
		"a second key, which opens":         {[]string{"luksAddKey", "--key-file", "OLD", "DISK", "NEW"}, raised, true, newPass},
		"a label":                           {[]string{"config", "--label", "mine", "DISK"}, raised, true, testPass},
		"a priority":                        {[]string{"config", "--key-slot", "0", "--priority", "prefer", "DISK"}, nil, true, testPass},
		"the key is changed":                {[]string{"luksChangeKey", "--key-file", "OLD", "DISK", "NEW"}, nil, false, newPass},
		"the seal is taken off":             {[]string{"token", "remove", "--token-id", "0", "DISK"}, nil, false, testPass},
		"the host changed the seal's field": {nil, func(m *memory) { rewrite(t, m, swap(`"generation":"2"`, `"generation":"9"`)) }, false, testPass},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, _ := ready(t)
			if tt.visit != nil {
				m = visited(t, m, tt.visit...)
			}
			if tt.host != nil {
				tt.host(m)
			}
			r, err := Reseal(m, testSize, pass(tt.pass), "data", cheap)
			if err != nil || r.Proven != tt.proven || r.Proven && r.Generation != 3 || r.Generation < 3 {
				t.Fatalf("%+v, %v", r, err)
			}
			if o, err := unlock(t, m, tt.pass, "data"); err != nil || o.Generation != r.Generation || o.State != Ready || !o.Fresh {
				t.Errorf("%+v, %v", o, err)
			}
		})
	}
}

// visited has the owner use cryptsetup on the volume.
func visited(t *testing.T, m *memory, args ...string) *memory {
	t.Helper()
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	m.save(t, file("disk"))
	write(t, file("old"), []byte(testPass))
	write(t, file("new"), []byte(newPass))
	names := strings.NewReplacer("DISK", file("disk"), "OLD", file("old"), "NEW", file("new"))
	real := []string{"-q"}
	for _, a := range args {
		real = append(real, names.Replace(a))
	}
	if strings.HasSuffix(args[0], "Key") && !slices.Contains(args, "--pbkdf") {
		real = append(real, "--pbkdf-memory", "32768", "--pbkdf-force-iterations", "4", "--pbkdf-parallel", "1")
	}
	if out, err := cryptsetup(real...); err != nil {
		t.Fatalf("cryptsetup %v: %v\n%s", args, err, out)
	}
	return load(t, file("disk"))
}

// Power is cut at each write of a reseal: the owner's passphrase opens what is
// left, by cryptsetup too, and resealing again ends it.
func TestResealPowerCuts(t *testing.T) {
	t.Parallel()
	add := []string{"luksAddKey", "--key-file", "OLD", "DISK", "NEW"}
	for name, tt := range map[string]struct {
		visits [][]string
		pass   string
		writes int
	}{
		"the first of two slots stays":  {[][]string{add}, testPass, 3},
		"the second of two slots stays": {[][]string{add}, newPass, 3},
		"a slot by pbkdf2":              {[][]string{{"luksConvertKey", "--key-file", "OLD", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "DISK"}}, testPass, 4},
		"the seal is taken off":         {[][]string{{"token", "remove", "--token-id", "0", "DISK"}}, testPass, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, was := ready(t)
			for _, v := range tt.visits {
				m = visited(t, m, v...)
			}
			before, j := bytes.Clone(m.b), &journal{memory: m}
			if _, err := Reseal(j, testSize, pass(tt.pass), "data", cheap); err != nil {
				t.Fatal(err)
			}
			if len(j.log) != tt.writes {
				t.Errorf("%d writes, want %d", len(j.log), tt.writes)
			}
			cuts := j.cuts(t, before, func(t *testing.T, what string, m *memory) {
				key := filepath.Join(t.TempDir(), "key")
				write(t, key, []byte(tt.pass))
				img := key + ".disk"
				m.save(t, img)
				if out, err := cryptsetup("open", "--test-passphrase", "--key-file", key, img); err != nil {
					t.Errorf("%s: cryptsetup: %v\n%s", what, err, out)
				}
				if _, err := Reseal(m, testSize, pass(tt.pass), "data", cheap); err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				o, err := unlock(t, m, tt.pass, "data")
				if err != nil || o.State != Ready || !o.Fresh || !bytes.Equal(o.Key.Bytes(), was.Key.Bytes()) {
					t.Fatalf("%s: %+v, %v", what, o, err)
				}
				free := slotStart + int64(1-o.h.meta.slots[0].id)*areaSize(false)
				if !zero(m.b[free : free+areaSize(false)]) {
					t.Errorf("%s: the other slot is still there", what)
				}
			})
			t.Logf("%d power cuts", cuts)
		})
	}
}
