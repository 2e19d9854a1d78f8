package luks2

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"hpcr/agent/secret"
)

const newPass = "60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752"

// journal is a disk that keeps its writes, to be replayed up to any of them.
type journal struct {
	*memory
	log []written
}

type written struct {
	at int64
	b  []byte
}

func (j *journal) WriteAt(p []byte, at int64) (int, error) {
	j.log = append(j.log, written{at, bytes.Clone(p)})
	return j.memory.WriteAt(p, at)
}

// cuts calls check with the disk after each prefix of the writes, the last of
// them torn after some of its sectors. Every write is followed by a flush, so
// that no later one is there without it.
func (j *journal) cuts(t *testing.T, before []byte, check func(t *testing.T, what string, m *memory)) int {
	t.Helper()
	n := 0
	for i, w := range j.log {
		sectors := len(w.b) / 512
		for _, keep := range []int{0, 1, sectors / 2, sectors - 1} {
			m := &memory{b: bytes.Clone(before), size: j.size}
			for _, done := range j.log[:i] {
				copy(m.b[done.at:], done.b)
			}
			copy(m.b[w.at:], w.b[:keep*512])
			check(t, fmt.Sprintf("write %d of %d, %d of %d sectors", i+1, len(j.log), keep, sectors), m)
			n++
		}
	}
	return n
}

// A roll changes the passphrase, keeps the key, and can be cut off anywhere.
func TestRollPowerCuts(t *testing.T) {
	m, o := ready(t)
	before := bytes.Clone(m.b)
	j := &journal{memory: m}
	if err := o.Roll(j, "data", pass(newPass), cheap); err != nil {
		t.Fatal(err)
	}
	if o.Generation != 3 || len(j.log) != 4 {
		t.Errorf("generation %d after %d writes", o.Generation, len(j.log))
	}
	if _, err := unlock(t, m, testPass, "data"); !errors.Is(err, ErrPassphrase) {
		t.Errorf("the old passphrase after the roll: %v", err)
	}
	if bytes.Count(m.b[slotStart:slotStart+areaSize(false)], []byte{0}) != int(areaSize(false)) {
		t.Error("the old key slot's area is not wiped")
	}
	cuts := j.cuts(t, before, func(t *testing.T, what string, m *memory) {
		// The next boot: new seeds first, then the previous ones, then on.
		got, err := unlock(t, m, newPass, "data")
		old := errors.Is(err, ErrPassphrase)
		if old {
			got, err = unlock(t, m, testPass, "data")
		}
		if err != nil {
			t.Fatalf("%s: unreadable: %v", what, err)
		}
		if !bytes.Equal(got.Key.Bytes(), o.Key.Bytes()) || got.State != Ready {
			t.Errorf("%s: another volume: %+v", what, got)
		}
		if !got.Fresh {
			if err := got.Repair(m, "data"); err != nil {
				t.Fatal(err)
			}
		}
		if old {
			err = got.Roll(m, "data", pass(newPass), cheap)
		} else {
			err = got.Tidy(m)
		}
		if err != nil {
			t.Fatal(err)
		}
		end, err := unlock(t, m, newPass, "data")
		if err != nil || !end.Fresh || end.Generation != 3 {
			t.Fatalf("%s: after the next boot: %+v, %v", what, end, err)
		}
		if _, err := unlock(t, m, testPass, "data"); !errors.Is(err, ErrPassphrase) {
			t.Errorf("%s: the old passphrase still opens: %v", what, err)
		}
		free := slotStart + int64(1-end.h.meta.slots[0].id)*areaSize(false)
		if bytes.Count(m.b[free:free+areaSize(false)], []byte{0}) != int(areaSize(false)) {
			t.Errorf("%s: the other key slot's area is not wiped", what)
		}
	})
	t.Logf("%d power cuts", cuts)
}

// Repair with one good copy must not lose it: whichever copy that is, it is
// overwritten last.
func TestRepairPowerCuts(t *testing.T) {
	for name, lost := range map[string]int64{"the primary is lost": 0, "the secondary is lost": headerSize} {
		t.Run(name, func(t *testing.T) {
			m, _ := ready(t)
			copy(m.b[lost+posSalt:], "torn")
			before := bytes.Clone(m.b)
			got, err := unlock(t, m, testPass, "data")
			if err != nil || got.Fresh {
				t.Fatalf("%+v, %v", got, err)
			}
			j := &journal{memory: m}
			if err := got.Repair(j, "data"); err != nil {
				t.Fatal(err)
			}
			j.cuts(t, before, func(t *testing.T, what string, m *memory) {
				if _, err := unlock(t, m, testPass, "data"); err != nil {
					t.Errorf("%s: %v", what, err)
				}
			})
		})
	}
}

// A foreign LUKS2 volume of cryptsetup's make is rolled as cryptsetup
// luksChangeKey would: the judge is cryptsetup. Wherever it was cut off, the
// next boot, which still has the previous seeds, leaves nothing of them.
func TestRollForeign(t *testing.T) {
	// Data from 1 MiB, room for two slots: not for 16 MiB of random bytes, which
	// luksFormat writes there.
	small := []string{"--offset", "2048", "--luks2-keyslots-size", "516096"}
	pbkdf2 := slices.Concat(small, []string{"--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"})
	for name, tt := range map[string]struct {
		args []string
		cuts bool // cryptsetup judges each of them
	}{
		"argon2id":             {slices.Concat(small, []string{"--pbkdf", "argon2id", "--pbkdf-memory", "32768", "--pbkdf-force-iterations", "4"}), false},
		"pbkdf2":               {pbkdf2, true},
		"a label":              {slices.Concat(pbkdf2, []string{"--label", "payroll", "--subsystem", "billing"}), false},
		"sectors of 4 KiB":     {slices.Concat(pbkdf2, []string{"--sector-size", "4096"}), false},
		"no room for a second": {slices.Concat(pbkdf2, []string{"--luks2-keyslots-size", "258048"}), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			img, keys := foreignVolume(t, tt.args...)
			m := load(t, img)
			before := bytes.Clone(m.b)
			im, err := Read(m, m.size)
			if err != nil || im.Kind() != ForeignLUKS || !im.Fresh() {
				t.Fatalf("%v, %v, %v", im.Kind(), im.Reason(), err)
			}
			volumeKey := foreignKey(t, im, testPass)
			j := &journal{memory: m}
			err = im.Roll(j, 0, volumeKey, pass(newPass), cheap)
			if name == "no room for a second" {
				if !errors.Is(err, ErrNoRoll) || len(j.log) > 0 {
					t.Errorf("%v after %d writes", err, len(j.log))
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !keys.open(t, m, "new") || keys.open(t, m, "old") {
				t.Error("cryptsetup opens with the old passphrase, or not with the new one")
			}
			m.save(t, img)
			dump, err := cryptsetup("luksDump", img)
			if err != nil || name == "a label" && !(strings.Contains(dump, "payroll") && strings.Contains(dump, "billing")) {
				t.Errorf("label or subsystem is gone: %v\n%s", err, dump)
			}
			whole := bytes.Clone(m.b)
			written := m.writes
			if err := im.Tidy(j); err != nil || m.writes != written || !bytes.Equal(m.b, whole) {
				t.Errorf("a whole roll is tidied: %v", err)
			}
			cuts := j.cuts(t, before, func(t *testing.T, what string, m *memory) {
				im, err := Read(m, m.size)
				if err != nil || im.Kind() != ForeignLUKS {
					t.Fatalf("%s: %v, %v, %v", what, im.Kind(), im.Reason(), err)
				}
				if tt.cuts && !keys.open(t, m, "new") && !keys.open(t, m, "old") {
					t.Errorf("%s: cryptsetup opens it with neither passphrase", what)
				}
				got := foreignKey(t, im, newPass)
				rolled := got != nil
				if !rolled {
					got = foreignKey(t, im, testPass)
				}
				if got == nil || !bytes.Equal(got.Bytes(), volumeKey.Bytes()) {
					t.Fatalf("%s: opens with neither passphrase", what)
				}
				// The next boot, cut off in its turn, and the one after it.
				before, next := bytes.Clone(m.b), &journal{memory: m}
				if rolled {
					err = im.Tidy(next)
				} else {
					err = im.Roll(next, 0, got, pass(newPass), cheap)
				}
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				onlyNew(t, what, m)
				if !rolled || !tt.cuts || !strings.Contains(what, ", 1 of") {
					return // one cut of each write is enough for the next boot's
				}
				next.cuts(t, before, func(t *testing.T, again string, m *memory) {
					im, err := Read(m, m.size)
					if err != nil || im.Kind() != ForeignLUKS {
						t.Fatalf("%s, then %s: %v, %v", what, again, im.Kind(), err)
					}
					if err := im.Tidy(m); err != nil {
						t.Fatal(err)
					}
					onlyNew(t, what+", then "+again, m)
				})
			})
			t.Logf("%d power cuts", cuts)
		})
	}
}

// foreignKeys are the files with the two passphrases, and room for a copy.
type foreignKeys struct{ dir string }

func foreignVolume(t *testing.T, args ...string) (string, foreignKeys) {
	t.Helper()
	k := foreignKeys{t.TempDir()}
	img := filepath.Join(k.dir, "disk")
	(&memory{size: 24 << 20}).save(t, img)
	write(t, filepath.Join(k.dir, "old"), []byte(testPass))
	write(t, filepath.Join(k.dir, "new"), []byte(newPass))
	if out, err := cryptsetup(append(append([]string{"luksFormat", "-q", "--type", "luks2", "--key-file", filepath.Join(k.dir, "old")}, args...), img)...); err != nil {
		t.Fatal(err, out)
	}
	return img, k
}

// open asks cryptsetup.
func (k foreignKeys) open(t *testing.T, m *memory, which string) bool {
	t.Helper()
	copied := filepath.Join(k.dir, "copy")
	m.save(t, copied)
	out, err := cryptsetup("open", "--test-passphrase", "--key-file", filepath.Join(k.dir, which), copied)
	var status *exec.ExitError
	if err != nil && (!errors.As(err, &status) || status.ExitCode() != 2) { // 2: no slot opens
		t.Errorf("cryptsetup: %v: %s", err, out)
	}
	return err == nil
}

// onlyNew: both copies name one key slot, which opens with the new passphrase,
// and what they do not name is zeros: nobody opens with the old one again.
func onlyNew(t *testing.T, what string, m *memory) {
	t.Helper()
	im, err := Read(m, m.size)
	if err != nil || im.Kind() != ForeignLUKS || !im.Fresh() || len(im.foreign.meta.slots) != 1 {
		t.Fatalf("%s: in the end: %v, fresh %v, %v", what, im.Kind(), im.Fresh(), err)
	}
	if foreignKey(t, im, newPass) == nil {
		t.Errorf("%s: in the end it does not open", what)
	}
	rest := bytes.Clone(m.b[foreignSlotsStart:])
	area := im.foreign.meta.slots[0].area
	clear(rest[area.offset-foreignSlotsStart:][:area.size])
	if !zero(rest) {
		t.Errorf("%s: in the end there is old key material", what)
	}
}

// A slot that its owner added with cryptsetup stays when a cut-off roll is
// tidied; all else in cryptsetup's usual room for key slots is gone.
func TestTidyKeepsOtherSlots(t *testing.T) {
	img, keys := foreignVolume(t, "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")
	if out, err := cryptsetup("luksAddKey", "-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000",
		"--key-file", filepath.Join(keys.dir, "old"), img, filepath.Join(keys.dir, "new")); err != nil {
		t.Fatal(err, out)
	}
	if out, err := cryptsetup("luksKillSlot", "-q", "--key-file", filepath.Join(keys.dir, "new"), img, "0"); err != nil {
		t.Fatal(err, out)
	}
	m := load(t, img)
	im, err := Read(m, m.size)
	if err != nil {
		t.Fatal(err)
	}
	if err := im.Tidy(m); err != nil {
		t.Fatal(err)
	}
	onlyNew(t, "a second slot", m) // luksFormat's 16 MiB of random bytes are gone as well
	if !keys.open(t, m, "new") || keys.open(t, m, "old") {
		t.Error("cryptsetup opens with the old passphrase, or not with the new one")
	}
}

// LUKS1 has no second header: its slots are left to cryptsetup.
func TestLUKS1IsNotRolled(t *testing.T) {
	b := luks1Disk(t)
	m := &memory{b: b, size: int64(len(b))}
	im, err := Read(m, m.size)
	if err != nil || im.Kind() != ForeignLUKS {
		t.Fatal(im.Kind(), err)
	}
	if err := im.Roll(m, 0, pass(testPass), pass(newPass), cheap); !errors.Is(err, ErrNoRoll) || m.writes > 0 {
		t.Errorf("%v after %d writes", err, m.writes)
	}
}

// foreignKey opens the image's newest header; nil = not with this passphrase.
func foreignKey(t *testing.T, im *Image, passphrase string) *secret.Secret {
	t.Helper()
	key, err := openSlot(im.foreign, im.areas, []byte(passphrase))
	if errors.Is(err, ErrPassphrase) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return key
}
