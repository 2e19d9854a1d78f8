package main

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"
)

// After each thing that an owner may do with cryptsetup the guest refuses the
// volume (inspect says unknown), until reseal.
func TestVolumeReseal(t *testing.T) {
	t.Parallel()
	pass, second := write(t, volumePass+"\n"), write(t, secondPass)
	cheapArgs := []string{"--pbkdf-memory", "32768", "--pbkdf-force-iterations", "4", "--pbkdf-parallel", "1"}
	for name, tt := range map[string]struct {
		visits [][]string
		pass   string // that opens afterwards
	}{
		"a second key":          {[][]string{append([]string{"luksAddKey", "--key-file", "PASS", "PART", "SECOND"}, cheapArgs...)}, pass},
		"only the second key":   {[][]string{append([]string{"luksAddKey", "--key-file", "PASS", "PART", "SECOND"}, cheapArgs...), {"luksRemoveKey", "PART", "PASS"}}, second},
		"the key is changed":    {[][]string{append([]string{"luksChangeKey", "--key-file", "PASS", "PART", "SECOND"}, cheapArgs...)}, second},
		"another derivation":    {[][]string{{"luksConvertKey", "--key-file", "PASS", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "PART"}}, pass},
		"a second weak key":     {[][]string{{"luksAddKey", "--key-file", "PASS", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "PART", "SECOND"}}, second},
		"the seal is taken off": {[][]string{{"token", "remove", "--token-id", "0", "PART"}}, pass},
		"a label":               {[][]string{{"config", "--label", "mine", "PART"}}, pass},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			img := guestDisk(t)
			for _, v := range tt.visits {
				visit(t, img, v...)
			}
			if r := hpcrctl(t, "", "volume", "check", img, "--passphrase-file", tt.pass, "--volume", "data"); r.code != 1 {
				t.Errorf("before: %+v", r)
			} else if name == "the seal is taken off" && !strings.Contains(r.stdout, "taken off") {
				t.Errorf("before: %+v", r)
			}
			ok(t, "", "volume", "reseal", img, "--passphrase-file", tt.pass, "--volume", "data")
			v := inspect(t, img)
			if v.Kind != "ours" || !v.Sealed || v.Generation < 3 {
				t.Errorf("after: %+v", v)
			}
			var c volumeCheck
			out := ok(t, "", "volume", "check", "--json", img, "--passphrase-file", tt.pass, "--volume", "data")
			if err := json.Unmarshal([]byte(out), &c); err != nil || !c.OK || len(c.Checks) != 4 {
				t.Errorf("%v: %s", err, out)
			}
			// cryptsetup still opens it, and its visit changes nothing.
			before, err := os.ReadFile(img)
			if err != nil {
				t.Fatal(err)
			}
			file := "PASS"
			if tt.pass == second {
				file = "SECOND"
			}
			visit(t, img, "open", "--test-passphrase", "--key-file", file, "PART")
			if after, err := os.ReadFile(img); err != nil || !bytes.Equal(before, after) {
				t.Errorf("cryptsetup mends something: %v", err)
			}
		})
	}
}

// The owner puts back a header of before, with the backup that cryptsetup made:
// it is what it was, generation and key slot included.
func TestVolumeHeaderRestored(t *testing.T) {
	t.Parallel()
	pass, second := write(t, volumePass), write(t, secondPass)
	cheapArgs := []string{"--pbkdf-memory", "32768", "--pbkdf-force-iterations", "4", "--pbkdf-parallel", "1"}
	img := guestDisk(t)
	visit(t, img, "luksHeaderBackup", "PART", "--header-backup-file", "BACKUP")
	visit(t, img, append([]string{"luksChangeKey", "--key-file", "PASS", "PART", "SECOND"}, cheapArgs...)...)
	ok(t, "", "volume", "reseal", img, "--passphrase-file", second, "--volume", "data")
	if r := hpcrctl(t, "", "volume", "check", img, "--passphrase-file", pass, "--volume", "data"); r.code != 1 {
		t.Errorf("the old passphrase: %+v", r)
	}
	resealed := inspect(t, img).Generation

	visit(t, img, "luksHeaderRestore", "PART", "--header-backup-file", "BACKUP")
	check := ok(t, "", "volume", "check", img, "--passphrase-file", pass, "--volume", "data")
	if !strings.Contains(check, "at generation 2") || resealed <= 2 {
		t.Errorf("restored, %d before: %s", resealed, check)
	}
	if r := hpcrctl(t, "", "volume", "check", img, "--passphrase-file", second, "--volume", "data"); r.code != 1 {
		t.Errorf("the second passphrase, restored: %+v", r)
	}
	out := ok(t, "", "volume", "reseal", "--json", img, "--passphrase-file", pass, "--volume", "data")
	if !strings.Contains(out, `"generation":3`) && !strings.Contains(out, `"generation": 3`) || !strings.Contains(out, "true") {
		t.Errorf("reseal: %s", out)
	}
	ok(t, "", "volume", "check", img, "--passphrase-file", pass, "--volume", "data")
	visit(t, img, "open", "--test-passphrase", "--key-file", "PASS", "PART")
}
