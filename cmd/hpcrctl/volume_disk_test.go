package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"hpcr/agent/secret"
	"hpcr/disk/luks2"
)

const (
	volumePass = "222441d3613b9ef531133f2a42bcb10eb21bbdf0827e69aed770aea0f3365780"
	mib        = 1 << 20
	diskSize   = 160 * mib
	dataAt     = 101 * mib // where a guest puts partition 2
)

var cheap = luks2.KDF{MemoryKiB: 32 << 10, Time: 4, Parallel: 1}

// tool runs a foreign program; a missing one is a failure.
func tool(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	c := exec.Command("timeout", append([]string{"-s", "KILL", "60"}, args...)...)
	c.Stdin = strings.NewReader(stdin)
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// guestDisk is a disk of volume "data", made once: the race detector makes a
// derivation dear.
func guestDisk(t *testing.T) string {
	t.Helper()
	once.Do(func() {
		b, err := os.ReadFile(makeGuestDisk(t, "data"))
		if err != nil {
			t.Fatal(err)
		}
		made = b
	})
	img := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(img, made, 0o600); err != nil {
		t.Fatal(err)
	}
	return img
}

var (
	once sync.Once
	made []byte
)

// makeGuestDisk is a disk as a guest makes it, its partition table by sgdisk.
func makeGuestDisk(t *testing.T, name string) string {
	t.Helper()
	img := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(img)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(diskSize); err != nil {
		t.Fatal(err)
	}
	tool(t, "", "sgdisk", "-n", "1:1M:+100M", "-c", "1:metadata", "-n", "2:101M:+58M", "-c", "2:data", "-t", "2:8309", img)
	d := section{io.NewSectionReader(f, dataAt, 58*mib), f, dataAt}
	pass := secret.FromString(volumePass)
	o, err := luks2.Format(d, 58*mib, luks2.FormatOptions{Passphrase: pass, Name: name, KDF: cheap})
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Commit(d, name, luks2.Ready); err != nil {
		t.Fatal(err)
	}
	return img
}

// visit has the owner use cryptsetup on the volume: on a copy of the
// partition, which is put back.
func visit(t *testing.T, img string, args ...string) {
	t.Helper()
	dir := t.TempDir()
	part := filepath.Join(dir, "part")
	whole, err := os.ReadFile(img)
	if err != nil {
		t.Fatal(err)
	}
	for f, b := range map[string][]byte{"part": whole[dataAt : dataAt+58*mib], "pass": []byte(volumePass), "second": []byte("the owner's second key")} {
		if err := os.WriteFile(filepath.Join(dir, f), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for i, a := range args {
		args[i] = strings.NewReplacer("PART", part, "PASS", filepath.Join(dir, "pass"), "SECOND", filepath.Join(dir, "second")).Replace(a)
	}
	tool(t, "", append([]string{"cryptsetup", "-q"}, args...)...)
	back, err := os.ReadFile(part)
	if err != nil {
		t.Fatal(err)
	}
	copy(whole[dataAt:], back)
	if err := os.WriteFile(img, whole, 0o600); err != nil {
		t.Fatal(err)
	}
}

func inspect(t *testing.T, img string) volumeFacts {
	t.Helper()
	var v volumeFacts
	if err := json.Unmarshal([]byte(ok(t, "", "volume", "inspect", "--json", img)), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestVolumeInspect(t *testing.T) {
	sized := func(size int64) string {
		f := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(f, size); err != nil {
			t.Fatal(err)
		}
		return f
	}
	pass := filepath.Join(t.TempDir(), "pass")
	if err := os.WriteFile(pass, []byte(volumePass), 0o600); err != nil {
		t.Fatal(err)
	}
	luks := func(args ...string) string {
		f := sized(40 * mib)
		tool(t, "", append(append([]string{"cryptsetup", "luksFormat", "-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", pass}, args...), f)...)
		return f
	}
	run := func(f string, args ...string) string {
		tool(t, "", append(args, f)...)
		return f
	}
	torn := guestDisk(t)
	b, err := os.ReadFile(torn)
	if err != nil {
		t.Fatal(err)
	}
	clear(b[dataAt : dataAt+16384])
	if err := os.WriteFile(torn, b, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		img  string
		want volumeFacts
	}{
		"an empty disk":              {sized(40 * mib), volumeFacts{Kind: "blank", Layout: "whole-disk"}},
		"a guest's volume":           {guestDisk(t), volumeFacts{Kind: "ours", Layout: "partitioned", Profile: 1, Generation: 2, Sealed: true}},
		"its primary header is gone": {torn, volumeFacts{Kind: "interrupted", Layout: "partitioned", Profile: 1, Generation: 2, Sealed: true}},
		"cryptsetup's volume":        {luks("--type", "luks2"), volumeFacts{Kind: "foreign-luks", Layout: "whole-disk"}},
		"cryptsetup's old volume":    {luks("--type", "luks1"), volumeFacts{Kind: "foreign-luks", Layout: "whole-disk"}},
		"a cipher that is refused":   {luks("--type", "luks2", "--cipher", "aes-cbc-essiv:sha256"), volumeFacts{Kind: "unknown", Layout: "whole-disk"}},
		"a plain file system":        {run(sized(40*mib), "mkfs.ext4", "-q"), volumeFacts{Kind: "foreign", Layout: "whole-disk"}},
		"three partitions":           {run(sized(40*mib), "sgdisk", "-n", "1:1M:+1M", "-n", "2:3M:+1M", "-n", "3:5M:+1M"), volumeFacts{Kind: "foreign", Layout: "partitioned"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := inspect(t, tt.img)
			got.Reason = ""
			if got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
			if text := ok(t, "", "volume", "inspect", tt.img); !strings.Contains(text, kindText[tt.want.Kind]) {
				t.Errorf("text: %s", text)
			}
		})
	}
	if r := hpcrctl(t, "", "volume", "inspect", filepath.Join(t.TempDir(), "none")); r.code != 2 {
		t.Errorf("no such disk: %+v", r)
	}
}

// After each thing that an owner may do with cryptsetup the guest refuses the
// volume (inspect says unknown), until reseal.
func TestVolumeReseal(t *testing.T) {
	pass := filepath.Join(t.TempDir(), "pass")
	if err := os.WriteFile(pass, []byte(volumePass+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	second := filepath.Join(t.TempDir(), "second")
	if err := os.WriteFile(second, []byte("the owner's second key"), 0o600); err != nil {
		t.Fatal(err)
	}
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
			img := guestDisk(t)
			for _, v := range tt.visits {
				visit(t, img, v...)
			}
			if r := hpcrctl(t, "", "volume", "check", img); r.code != 1 && name != "the seal is taken off" {
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

func TestVolumeCheckAndResealRefuse(t *testing.T) {
	dir := t.TempDir()
	pass, wrong, foreign := filepath.Join(dir, "pass"), filepath.Join(dir, "wrong"), filepath.Join(dir, "foreign")
	for f, text := range map[string]string{pass: volumePass, wrong: "not it", foreign: ""} {
		if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Truncate(foreign, 40*mib); err != nil {
		t.Fatal(err)
	}
	blank := filepath.Join(dir, "blank")
	if err := os.WriteFile(blank, make([]byte, 4*mib), 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, "", "cryptsetup", "luksFormat", "-q", "--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", pass, foreign)
	ours := guestDisk(t)
	for name, tt := range map[string]struct {
		args []string
		code int
		says string
	}{
		"check of another volume's disk": {[]string{"check", ours, "--passphrase-file", pass, "--volume", "logs"}, 1, "another volume's disk"},
		"check with a wrong passphrase":  {[]string{"check", ours, "--passphrase-file", wrong, "--volume", "data"}, 1, "No key slot opens"},
		"check of a foreign volume":      {[]string{"check", foreign, "--passphrase-file", pass, "--volume", "data"}, 0, "no seal"},
		"a foreign one, wrong":           {[]string{"check", foreign, "--passphrase-file", wrong, "--volume", "data"}, 1, "No key slot opens"},
		"check of nothing":               {[]string{"check", blank}, 1, "empty"},
		"check, half the flags":          {[]string{"check", ours, "--volume", "data"}, 2, "together"},
		"reseal without a name":          {[]string{"reseal", ours, "--passphrase-file", pass}, 2, "owner"},
		"reseal with a wrong passphrase": {[]string{"reseal", ours, "--passphrase-file", wrong, "--volume", "data"}, 1, "no key slot"},
		"reseal of a foreign volume":     {[]string{"reseal", foreign, "--passphrase-file", pass, "--volume", "data"}, 1, "not made by hpcr"},
		"reseal of nothing":              {[]string{"reseal", blank, "--passphrase-file", pass, "--volume", "data"}, 1, "no volume"},
		"no such disk":                   {[]string{"check", filepath.Join(dir, "none")}, 2, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			before := sums(t, ours, foreign, blank)
			r := hpcrctl(t, "", append([]string{"volume"}, tt.args...)...)
			if r.code != tt.code || !strings.Contains(r.stdout+r.stderr, tt.says) {
				t.Errorf("%+v", r)
			}
			if sums(t, ours, foreign, blank) != before {
				t.Error("a disk was written to")
			}
		})
	}
}

func sums(t *testing.T, files ...string) (all [3][32]byte) {
	t.Helper()
	for i, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all[i] = sha256.Sum256(b)
	}
	return all
}
