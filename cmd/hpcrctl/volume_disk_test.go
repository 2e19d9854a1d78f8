package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"hpcr/agent/secret"
	"hpcr/disk/luks2"
)

const (
	volumePass = "222441d3613b9ef531133f2a42bcb10eb21bbdf0827e69aed770aea0f3365780"
	mib        = 1 << 20
	diskSize   = 122 * mib
	dataAt     = 101 * mib // where a guest puts partition 2
	dataSize   = 18 * mib
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
		f, err := os.Open(makeGuestDisk(t, "data"))
		if err == nil {
			made, err = io.ReadAll(f)
		}
		if err = errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	})
	img := filepath.Join(t.TempDir(), "disk")
	sparse(t, img, made)
	return img
}

var (
	once sync.Once
	made []byte
)

// sparse writes a file in which zeros take no room.
func sparse(t *testing.T, name string, b []byte) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(len(b))); err != nil {
		t.Fatal(err)
	}
	for at := 0; at < len(b); at += mib {
		part := b[at:min(at+mib, len(b))]
		if bytes.Count(part, []byte{0}) == len(part) {
			continue
		}
		if _, err := f.WriteAt(part, int64(at)); err != nil {
			t.Fatal(err)
		}
	}
}

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
	tool(t, "", "sgdisk", "-n", "1:1M:+100M", "-c", "1:metadata", "-n", "2:101M:+18M", "-c", "2:data", "-t", "2:8309", img)
	d := section{io.NewSectionReader(f, dataAt, dataSize), f, dataAt}
	pass := secret.FromString(volumePass)
	o, err := luks2.Format(d, dataSize, luks2.FormatOptions{Passphrase: pass, Name: name, KDF: cheap})
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
	part := filepath.Join(t.TempDir(), "part")
	whole, err := os.ReadFile(img)
	if err != nil {
		t.Fatal(err)
	}
	sparse(t, part, whole[dataAt:dataAt+dataSize])
	names := strings.NewReplacer("PART", part, "PASS", write(t, volumePass), "SECOND", write(t, secondPass), "BACKUP", img+".backup")
	real := []string{"cryptsetup", "-q"}
	for _, a := range args {
		real = append(real, names.Replace(a))
	}
	tool(t, "", real...)
	back, err := os.ReadFile(part)
	if err != nil {
		t.Fatal(err)
	}
	copy(whole[dataAt:], back)
	sparse(t, img, whole)
}

const secondPass = "the owner's second key"

func inspect(t *testing.T, img string) volumeFacts {
	t.Helper()
	var v volumeFacts
	if err := json.Unmarshal([]byte(ok(t, "", "volume", "inspect", "--json", img)), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// lose takes the primary header away.
func lose(t *testing.T, img string) {
	t.Helper()
	b, err := os.ReadFile(img)
	if err != nil {
		t.Fatal(err)
	}
	clear(b[dataAt : dataAt+16384])
	sparse(t, img, b)
}

func TestVolumeInspect(t *testing.T) {
	t.Parallel()
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
	lose(t, torn)
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
	fifo := filepath.Join(t.TempDir(), "fifo")
	tool(t, "", "mkfifo", fifo)
	for name, args := range map[string][]string{
		"no such disk":       {"inspect", filepath.Join(t.TempDir(), "none")},
		"a folder":           {"inspect", t.TempDir()},
		"a FIFO":             {"inspect", fifo}, // whose other end nobody opens
		"a character device": {"inspect", "/dev/null"},
		"no command":         nil,
		"no such command":    {"inspekt", "x"},
	} {
		if r := hpcrctl(t, "", append([]string{"volume"}, args...)...); r.code != 2 || r.stderr == "" {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

// Volumes that cryptsetup makes with options of its own, and what check tells
// their owner to change.
func TestVolumeCheckOfCryptsetupsOptions(t *testing.T) {
	t.Parallel()
	pass := write(t, volumePass)
	for name, tt := range map[string]struct {
		args []string
		then []string // another call of cryptsetup
		says string   // "" = a guest opens it
	}{
		"a label":                   {args: []string{"--label", "data", "--subsystem", "mine"}},
		"a small key slot area":     {args: []string{"--luks2-keyslots-size", "1M"}},
		"data further on":           {args: []string{"--offset", "65536"}},
		"another hash":              {args: []string{"--hash", "sha512"}},
		"a second key slot":         {then: []string{"luksAddKey", "--key-slot", "7", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", "PASS", "DISK", "SECOND"}},
		"a long header":             {args: []string{"--luks2-metadata-size", "64k"}, says: "without --luks2-metadata-size"},
		"sectors of 2048":           {args: []string{"--sector-size", "2048"}, says: "512 or 4096"},
		"a short key":               {args: []string{"--key-size", "256"}, says: "key_size must be 64"},
		"another cipher":            {args: []string{"--cipher", "aes-cbc-essiv:sha256", "--key-size", "256"}, says: "must be aes-xts-plain64"},
		"another hash, not taken":   {args: []string{"--hash", "blake2b-512"}, says: "sha256 or sha512"},
		"argon2i":                   {then: []string{"luksConvertKey", "--pbkdf", "argon2i", "--pbkdf-force-iterations", "4", "--pbkdf-memory", "32768", "--key-file", "PASS", "DISK"}, says: "argon2id or pbkdf2"},
		"a key slot not to be used": {then: []string{"config", "--key-slot", "0", "--priority", "ignore", "DISK"}, says: "No key slot opens"},
		"a key slot of no data":     {then: []string{"luksAddKey", "--unbound", "--key-size", "512", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", "PASS", "DISK", "SECOND"}, says: "none of them unbound"},
		"a token":                   {then: []string{"token", "add", "--key-description", "mine", "DISK"}, says: "cryptsetup token remove"},
		"a reencryption":            {then: []string{"reencrypt", "--init-only", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", "PASS", "DISK"}, says: "cryptsetup reencrypt --resume-only"},
	} {
		t.Run(name, func(t *testing.T) {
			img := filepath.Join(t.TempDir(), "disk")
			sparse(t, img, make([]byte, 40*mib))
			tool(t, "", slices.Concat([]string{"cryptsetup", "luksFormat", "-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", pass}, tt.args, []string{img})...)
			if tt.then != nil {
				names := strings.NewReplacer("DISK", img, "PASS", pass, "SECOND", write(t, secondPass))
				then := []string{"cryptsetup", "-q"}
				for _, a := range tt.then {
					then = append(then, names.Replace(a))
				}
				tool(t, "", then...)
			}
			r := hpcrctl(t, "", "volume", "check", img, "--passphrase-file", pass, "--volume", "data")
			if (r.code == 0) != (tt.says == "") || r.code > 1 || !strings.Contains(r.stdout, tt.says) {
				t.Errorf("%+v, want %q", r, tt.says)
			}
		})
	}
}

// The generation that inspect shows is the host's word, until a passphrase has
// the seal stand for it.
func TestVolumeInspectVerifies(t *testing.T) {
	t.Parallel()
	pass, wrong := write(t, volumePass), write(t, "not it")
	img, forged := guestDisk(t), guestDisk(t)
	b, err := os.ReadFile(forged)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{dataAt, dataAt + 16384} { // sequence number and seal say 9, the checksum holds
		h := b[at : at+16384]
		h[23] = 9
		copy(h, bytes.Replace(h, []byte(`"generation":"2"`), []byte(`"generation":"9"`), 1))
		clear(h[448:512])
		sum := sha256.Sum256(h)
		copy(h[448:], sum[:])
	}
	sparse(t, forged, b)
	if v := inspect(t, forged); v.Generation != 9 || v.Verified {
		t.Errorf("without a passphrase: %+v", v)
	}
	if out := ok(t, "", "volume", "inspect", img); !strings.Contains(out, "2 (not verified") {
		t.Errorf("without a passphrase: %s", out)
	}
	if out := ok(t, "", "volume", "inspect", img, "--passphrase-file", pass, "--volume", "data"); !strings.Contains(out, "2 (verified") {
		t.Errorf("with it: %s", out)
	}
	for name, tt := range map[string]struct{ img, pass, volume, says string }{
		"a forged generation":   {forged, pass, "data", "seal"},
		"a wrong passphrase":    {img, wrong, "data", "no key slot"},
		"another volume's name": {img, pass, "logs", "seal"},
	} {
		r := hpcrctl(t, "", "volume", "inspect", "--json", tt.img, "--passphrase-file", tt.pass, "--volume", tt.volume)
		var v volumeFacts
		if err := json.Unmarshal([]byte(r.stdout), &v); err != nil || r.code != 1 || v.Verified || !strings.Contains(r.stderr, tt.says) {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
	if r := hpcrctl(t, "", "volume", "inspect", img, "--volume", "data"); r.code != 2 {
		t.Errorf("half the flags: %+v", r)
	}
}

func TestVolumeCheckAndResealRefuse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	pass, wrong := write(t, volumePass), write(t, "not it")
	luks := func(kind string) string {
		f := filepath.Join(dir, kind)
		sparse(t, f, make([]byte, 40*mib))
		args := []string{"cryptsetup", "luksFormat", "-q", "--type", kind, "--pbkdf-force-iterations", "1000", "--key-file", pass, f}
		if kind == "luks2" {
			args = append(args, "--pbkdf", "pbkdf2")
		}
		tool(t, "", args...)
		return f
	}
	foreign, old, blank := luks("luks2"), luks("luks1"), filepath.Join(dir, "blank")
	sparse(t, blank, make([]byte, 4*mib))
	ours, stripped, torn := guestDisk(t), guestDisk(t), guestDisk(t)
	visit(t, stripped, "token", "remove", "--token-id", "0", "PART")
	lose(t, torn)
	for name, tt := range map[string]struct {
		args []string
		code int
		says string
	}{
		"check of another volume's disk": {[]string{"check", ours, "--passphrase-file", pass, "--volume", "logs"}, 1, "another volume's disk"},
		"check with a wrong passphrase":  {[]string{"check", ours, "--passphrase-file", wrong, "--volume", "data"}, 1, "No key slot opens"},
		"check of a foreign volume":      {[]string{"check", foreign, "--passphrase-file", pass, "--volume", "data"}, 0, "no seal"},
		"a foreign one, wrong":           {[]string{"check", foreign, "--passphrase-file", wrong, "--volume", "data"}, 1, "No key slot opens"},
		"check of LUKS1":                 {[]string{"check", old, "--passphrase-file", pass, "--volume", "data"}, 0, "no seal"},
		"check of LUKS1, wrong":          {[]string{"check", old, "--passphrase-file", wrong, "--volume", "data"}, 1, "No key slot opens"},
		"the seal was taken off":         {[]string{"check", stripped, "--passphrase-file", pass, "--volume", "data"}, 1, "taken off"},
		"one copy lost":                  {[]string{"check", torn, "--passphrase-file", pass, "--volume", "data"}, 1, "The seal holds"},
		"one copy lost, another volume":  {[]string{"check", torn, "--passphrase-file", pass, "--volume", "logs"}, 1, "another volume's disk"},
		"check of nothing":               {[]string{"check", blank}, 1, "empty"},
		"check, half the flags":          {[]string{"check", ours, "--volume", "data"}, 2, "together"},
		"reseal without a name":          {[]string{"reseal", ours, "--passphrase-file", pass}, 2, "owner"},
		"reseal with a wrong passphrase": {[]string{"reseal", ours, "--passphrase-file", wrong, "--volume", "data"}, 1, "no key slot"},
		"reseal of a foreign volume":     {[]string{"reseal", foreign, "--passphrase-file", pass, "--volume", "data"}, 1, "not made by hpcr"},
		"reseal of nothing":              {[]string{"reseal", blank, "--passphrase-file", pass, "--volume", "data"}, 1, "no volume"},
		"no such disk":                   {[]string{"check", filepath.Join(dir, "none")}, 2, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			before := content(t, tt.args[1])
			r := hpcrctl(t, "", append([]string{"volume"}, tt.args...)...)
			if r.code != tt.code || !strings.Contains(r.stdout+r.stderr, tt.says) {
				t.Errorf("%+v", r)
			}
			if !bytes.Equal(content(t, tt.args[1]), before) {
				t.Error("the disk was written to")
			}
		})
	}
}

// content is a disk's; nil if there is none.
func content(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return b
}
