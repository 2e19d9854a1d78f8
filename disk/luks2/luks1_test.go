package luks2

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
)

// luks1Disk is what cryptsetup makes.
func luks1Disk(t *testing.T, args ...string) []byte {
	t.Helper()
	dir := t.TempDir()
	img := filepath.Join(dir, "disk")
	write(t, img, make([]byte, 4<<20))
	write(t, filepath.Join(dir, "pass"), []byte(testPass))
	args = append([]string{"luksFormat", "-q", "--type", "luks1", "--pbkdf-force-iterations", "1000"}, args...)
	if out, err := cryptsetup(append(args, img, filepath.Join(dir, "pass"))...); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b, err := os.ReadFile(img)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestLUKS1Accepted(t *testing.T) {
	for _, hash := range []string{"sha1", "sha256", "sha512"} {
		b := luks1Disk(t, "--hash", hash)
		im, err := Read(&memory{b: b, size: int64(len(b))}, int64(len(b)))
		if err != nil || im.Kind() != ForeignLUKS {
			t.Fatalf("%s: %s %v %v", hash, im.Kind(), im.Reason(), err)
		}
		f, err := im.Foreign()
		if err != nil || f.Version != 1 || f.DataOffset != 2<<20 || f.SectorSize != 512 || len(f.Slots) != 1 || len(f.Sections) != 2 ||
			!bytes.Equal(f.Sections[1].Data, b[f.Sections[1].Offset:][:keySize*afStripes]) {
			t.Errorf("%+v, %v", f, err)
		}
	}
	b := luks1Disk(t, "--key-size", "256")
	if im, err := Read(&memory{b: b, size: int64(len(b))}, int64(len(b))); err != nil || im.Kind() != Refused {
		t.Errorf("a key of 256 bits: %s, %v", im.Kind(), err)
	}
}

func TestLUKS1Refused(t *testing.T) {
	good := luks1Disk(t)
	number := func(at int, v uint32) func([]byte) {
		return func(b []byte) { binary.BigEndian.PutUint32(b[at:], v) }
	}
	slot := func(n, at int) int { return l1Slots + n*l1SlotSize + at }
	second := func(at uint32) func([]byte) {
		return func(b []byte) {
			copy(b[slot(1, 0):], b[slot(0, 0):slot(1, 0)])
			number(slot(1, l1SlotAt), at)(b)
		}
	}
	for name, attack := range map[string]func([]byte){
		"null cipher":               func(b []byte) { copy(b[l1Cipher:], "cipher_null\x00") },
		"bytes behind the cipher":   func(b []byte) { copy(b[l1Cipher:], "aes\x00x") },
		"ecb":                       func(b []byte) { copy(b[l1Mode:], "ecb\x00\x00\x00\x00\x00\x00\x00\x00\x00") },
		"other IV":                  func(b []byte) { copy(b[l1Mode:], "xts-plain\x00\x00") },
		"unknown hash":              func(b []byte) { copy(b[l1Hash:], "ripemd160") },
		"key of 0":                  number(l1KeyBytes, 0),
		"key of 4 GiB":              number(l1KeyBytes, 1<<32-1),
		"digest of no rounds":       number(l1Iterations, 0),
		"digest without an end":     number(l1Iterations, 1<<32-1),
		"slot of no rounds":         number(slot(0, l1SlotRounds), 0),
		"slot without an end":       number(slot(0, l1SlotRounds), 1<<32-1),
		"one stripe":                number(slot(0, l1Strip), 1),
		"area in the header":        number(slot(0, l1SlotAt), 0),
		"area beyond the device":    number(slot(0, l1SlotAt), 1<<32-1),
		"area over the data":        number(slot(0, l1SlotAt), 4000),
		"areas over one another":    second(200),
		"slot neither on nor off":   number(slot(3, 0), 1),
		"no slot":                   number(slot(0, 0), l1SlotOff),
		"data at 0":                 number(l1Payload, 0),
		"data beyond the device":    number(l1Payload, 8192),
		"data beyond what is usual": number(l1Payload, 1<<32-1),
	} {
		t.Run(name, func(t *testing.T) {
			b := bytes.Clone(good)
			attack(b)
			if bytes.Equal(b, good) {
				t.Fatal("the attack changes nothing")
			}
			if im, err := Read(&memory{b: b, size: int64(len(b))}, int64(len(b))); err != nil || im.Kind() != Refused {
				t.Errorf("kind %s, %v", im.Kind(), err)
			}
		})
	}
}
