package luks2

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write fixtures that are missing")

// fixtures are volumes as each version of the profile wrote them, up to the
// end of the key slots in use: a gate that refused one would take its owner's
// data away. A fixture is never written anew.
var fixtures = map[string]struct {
	integrity  bool
	generation uint64
	slot       int
}{
	"profile-1":           {false, 2, 0},
	"profile-1-rolled":    {false, 3, 1},
	"profile-1-integrity": {true, 2, 0},
}

func TestEveryProfileOpens(t *testing.T) {
	for name, tt := range fixtures {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join("testdata", name+".luks2")
			if _, err := os.Stat(file); os.IsNotExist(err) && *update {
				writeFixture(t, file, tt.integrity, tt.slot == 1)
			}
			head, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			m := &memory{b: head, size: testSize}
			o, err := unlock(t, m, testPass, "data")
			if err != nil {
				t.Fatal(err)
			}
			if o.Generation != tt.generation || o.Integrity != tt.integrity || o.State != Ready || !o.Fresh || o.h.meta.slots[0].id != tt.slot ||
				o.Key.Len() != volumeKeySize(tt.integrity) {
				t.Errorf("%+v", o)
			}
			if _, err := unlock(t, m, testPass, "logs"); err == nil {
				t.Error("opens under another name")
			}
		})
	}
	files, err := filepath.Glob("testdata/*.luks2")
	if err != nil || len(files) != len(fixtures) {
		t.Errorf("%d fixtures, %v", len(files), err)
	}
}

func writeFixture(t *testing.T, file string, integrity, roll bool) {
	t.Helper()
	m := blankDisk()
	first := testPass
	if roll {
		first = newPass
	}
	o, err := Format(m, testSize, FormatOptions{Passphrase: pass(first), Name: "data", KDF: cheap, Integrity: integrity})
	if err == nil {
		err = o.Commit(m, "data", Ready)
	}
	if err == nil && roll {
		err = o.Roll(m, "data", pass(testPass), cheap)
	}
	if err == nil {
		write(t, file, bytes.TrimRight(m.b[:dataOffset], "\x00"))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// The profile with integrity is what cryptsetup knows: it shows it, and opens
// the key slot. Nothing of another make has it.
func TestIntegrityProfile(t *testing.T) {
	m, o := formattedAs(t, true)
	if err := o.Commit(m, "data", Ready); err != nil {
		t.Fatal(err)
	}
	if o.Key.Len() != 96 || !Marked(o.Key.Bytes()) || o.SectorSize != 4096 {
		t.Errorf("%+v", o)
	}
	dir := t.TempDir()
	img, key := filepath.Join(dir, "disk"), filepath.Join(dir, "key")
	m.save(t, img)
	write(t, key, []byte(testPass))
	dump, err := cryptsetup("luksDump", img)
	for _, want := range []string{"hmac(sha256)", "aes-xts-plain64", "Key:        768 bits", "hpcr-seal"} {
		if err != nil || !strings.Contains(dump, want) {
			t.Errorf("luksDump does not show %q: %v\n%s", want, err, dump)
		}
	}
	if out, err := cryptsetup("open", "--test-passphrase", "--key-file", key, img); err != nil {
		t.Error(err, out)
	}
	if err := o.Roll(m, "data", pass(newPass), cheap); err != nil {
		t.Fatal(err)
	}
	if got, err := unlock(t, m, newPass, "data"); err != nil || !got.Integrity || !bytes.Equal(got.Key.Bytes(), o.Key.Bytes()) {
		t.Errorf("after a roll: %+v, %v", got, err)
	}
	// The same header without a seal is a foreign one, and refused.
	rewrite(t, m, func(text string) string {
		from, to := strings.Index(text, `"tokens":{`)+len(`"tokens":{`), strings.Index(text, `},"segments"`)
		return text[:from] + text[to:]
	})
	if im, err := Read(m, testSize); err != nil || im.Kind() != Refused {
		t.Errorf("%v, %v", im.Kind(), err)
	}
	for what, change := range map[string][2]string{
		"another tag":     {`"type":"hmac(sha256)"`, `"type":"poly1305"`},
		"journal secrets": {`"journal_encryption":"none"`, `"journal_encryption":"cbc(aes)"`},
		"a shorter key":   {`"key_size":96`, `"key_size":64`},
		"a further field": {`"journal_integrity":"none"`, `"journal_integrity":"none","flags":[]`},
	} {
		t.Run(what, func(t *testing.T) {
			m, _ := formattedAs(t, true)
			rewrite(t, m, func(text string) string { return strings.Replace(text, change[0], change[1], 1) })
			if im, err := Read(m, testSize); err != nil || im.Kind() != Refused {
				t.Errorf("%v, %v", im.Kind(), err)
			}
		})
	}
	if fmt.Sprint(areaSize(true)) != "385024" {
		t.Error("the area is not what cryptsetup takes for 96 bytes in 4000 stripes")
	}
}
