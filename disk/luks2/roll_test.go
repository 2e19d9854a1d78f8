package luks2

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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
			m := &memory{b: bytes.Clone(before)}
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
	m, o := formatted(t)
	if err := o.Commit(m, "data", Ready); err != nil {
		t.Fatal(err)
	}
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
			m, o := formatted(t)
			if err := o.Commit(m, "data", Ready); err != nil {
				t.Fatal(err)
			}
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
// luksChangeKey would: the judge is cryptsetup.
func TestRollForeign(t *testing.T) {
	pbkdf2 := []string{"--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"}
	for name, tt := range map[string]struct {
		args []string
		cuts bool // cryptsetup judges each of them
	}{
		"argon2id":             {[]string{"--pbkdf", "argon2id", "--pbkdf-memory", "32768", "--pbkdf-force-iterations", "4"}, false},
		"pbkdf2":               {pbkdf2, true},
		"a label":              {append(pbkdf2, "--label", "payroll", "--subsystem", "billing"), false},
		"sectors of 4 KiB":     {append(pbkdf2, "--sector-size", "4096"), false},
		"room for two slots":   {append(pbkdf2, "--luks2-keyslots-size", "516096"), false},
		"no room for a second": {append(pbkdf2, "--luks2-keyslots-size", "258048"), false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			img, key := filepath.Join(dir, "disk"), filepath.Join(dir, "old")
			write(t, img, nil)
			write(t, key, []byte(testPass))
			write(t, filepath.Join(dir, "new"), []byte(newPass))
			if err := os.Truncate(img, 24<<20); err != nil {
				t.Fatal(err)
			}
			if out, err := cryptsetup(append(append([]string{"luksFormat", "-q", "--type", "luks2", "--key-file", key}, tt.args...), img)...); err != nil {
				t.Fatal(err, out)
			}
			b, err := os.ReadFile(img)
			if err != nil {
				t.Fatal(err)
			}
			m, before := &memory{b: b}, bytes.Clone(b)
			im, err := Read(m, int64(len(b)))
			if err != nil || im.Kind() != ForeignLUKS {
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
			opens := func(b []byte, which string) bool {
				copied := filepath.Join(dir, "copy")
				write(t, copied, b)
				out, err := cryptsetup("open", "--test-passphrase", "--key-file", filepath.Join(dir, which), copied)
				var status *exec.ExitError
				if err != nil && (!errors.As(err, &status) || status.ExitCode() != 2) { // 2: no slot opens
					t.Errorf("cryptsetup: %v: %s", err, out)
				}
				return err == nil
			}
			if !opens(m.b, "new") || opens(m.b, "old") {
				t.Error("cryptsetup opens with the old passphrase, or not with the new one")
			}
			write(t, img, m.b)
			dump, err := cryptsetup("luksDump", img)
			if err != nil || name == "a label" && !(strings.Contains(dump, "payroll") && strings.Contains(dump, "billing")) {
				t.Errorf("label or subsystem is gone: %v\n%s", err, dump)
			}
			cuts := j.cuts(t, before, func(t *testing.T, what string, m *memory) {
				im, err := Read(m, int64(len(m.b)))
				if err != nil || im.Kind() != ForeignLUKS {
					t.Fatalf("%s: %v, %v, %v", what, im.Kind(), im.Reason(), err)
				}
				if tt.cuts && !opens(m.b, "new") && !opens(m.b, "old") {
					t.Errorf("%s: cryptsetup opens it with neither passphrase", what)
				}
				got := foreignKey(t, im, newPass)
				if got == nil {
					got = foreignKey(t, im, testPass)
				}
				if got == nil || !bytes.Equal(got.Bytes(), volumeKey.Bytes()) {
					t.Fatalf("%s: opens with neither passphrase", what)
				}
			})
			t.Logf("%d power cuts", cuts)
		})
	}
}

// LUKS1 has no second header: its slots are left to cryptsetup.
func TestLUKS1IsNotRolled(t *testing.T) {
	m := &memory{b: luks1Disk(t)}
	im, err := Read(m, int64(len(m.b)))
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
