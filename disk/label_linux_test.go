package disk

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestReadLabel(t *testing.T) {
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	if err := os.MkdirAll(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(tree, "user-data"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	img := filepath.Join(dir, "img")
	for name, tt := range map[string]struct {
		make []string
		want string
	}{
		"genisoimage": {[]string{"genisoimage", "-quiet", "-V", "cidata", "-r", "-J", "-o", img, tree}, "cidata"},
		"xorriso":     {[]string{"xorriso", "-as", "mkisofs", "-quiet", "-V", "CIDATA", "-o", img, tree}, "CIDATA"},
		"FAT12":       {[]string{"mkfs.vfat", "-C", "-F", "12", "-n", "CIDATA", img, "1440"}, "CIDATA"},
		"FAT16":       {[]string{"mkfs.vfat", "-C", "-F", "16", "-n", "CIDATA", img, "16384"}, "CIDATA"},
		"FAT32":       {[]string{"mkfs.vfat", "-C", "-F", "32", "-n", "CIDATA", img, "65536"}, "CIDATA"},
		"ext4":        {[]string{"mke2fs", "-q", "-t", "ext4", "-L", "cidata", img, "16M"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.RemoveAll(img); err != nil {
				t.Fatal(err)
			}
			run(t, tt.make[0], tt.make[1:]...)
			f, err := os.Open(img)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if got, err := readLabel(f); err != nil || got != tt.want {
				t.Errorf("got %q, %v", got, err)
			}
			whole, err := readWhole(f, 128*mib)
			if err != nil {
				t.Fatal(err)
			}
			if want, err := os.ReadFile(img); err != nil || !bytes.Equal(whole, want) {
				t.Errorf("read %d bytes of %d, %v", len(whole), len(want), err)
			}
			if _, err := readWhole(f, int64(len(whole))-1); !errors.Is(err, ErrTooLarge) {
				t.Errorf("got %v", err)
			}
		})
	}
	for _, size := range []int{0, 1, 511, 512, isoDescriptor, isoDescriptor + 511} {
		if got, err := readLabel(ram{make([]byte, size)}); err != nil || got != "" {
			t.Errorf("%d bytes: %q, %v", size, got, err)
		}
	}
	if _, err := readLabel(failing{ram{make([]byte, mib)}, 0}); !errors.Is(err, errIO) {
		t.Errorf("got %v", err)
	}
}

func FuzzReadLabel(f *testing.F) {
	f.Add([]byte("\x01CD001\x01"), true)
	f.Add(append(make([]byte, 510), 0x55, 0xAA), false)
	// Property: no panic, a label of at most 32 bytes.
	f.Fuzz(func(t *testing.T, b []byte, iso bool) {
		r := ram{make([]byte, isoDescriptor+512)}
		if iso {
			copy(r.b[isoDescriptor:], b)
		} else {
			copy(r.b, b)
		}
		if got, err := readLabel(r); err != nil || len(got) > 32 {
			t.Fatalf("%q, %v", got, err)
		}
	})
}
