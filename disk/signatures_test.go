package disk

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ulikunitz/xz"
)

// testdata/signatures.tar.xz holds disks on which libblkid's own tests find
// something (util-linux 2.38.1, tests/ts/blkid/images-fs and images-pt;
// GPL-2.0-or-later), as sparse files: file systems, RAID and volume managers of
// all makes, swap, partition tables. Of those that differ in a label only, one
// or two are kept; of f2fs, nilfs2 and ocfs2 the first 16 MiB.
func signatures(t testing.TB, limit int64, each func(name string, image []byte)) {
	t.Helper()
	unpack(t, filepath.Join("testdata", "signatures.tar.xz"), limit, each)
}

// unpack reads an archive; each gets at most limit bytes of a file.
func unpack(t testing.TB, archive string, limit int64, each func(name string, image []byte)) {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	plain, err := xz.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	for in := tar.NewReader(plain); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.FileInfo().IsDir() {
			continue
		}
		image := make([]byte, min(h.Size, limit))
		if _, err := io.ReadFull(in, image); err != nil {
			t.Fatal(err)
		}
		each(h.Name, image)
	}
}

// Whatever libblkid knows, at the start of a disk or at its end, is never
// blank and never opened.
func TestProbeSignatures(t *testing.T) {
	n := 0
	signatures(t, 1<<30, func(name string, image []byte) {
		n++
		disks := map[string][]byte{"alone": append(image, make([]byte, -len(image)&4095)...)}
		if len(image) < 4*mib {
			disks["then zeros"] = append(image[:len(image):len(image)], make([]byte, 8*mib-len(image))...)
		}
		if strings.Contains(name, "raid") && len(image)%512 == 0 { // found from the end
			disks["alone"] = image
			disks["after zeros"] = append(make([]byte, 16*mib), image...)
		}
		blocks := []int64{512}
		if strings.HasPrefix(name, "pt/") {
			blocks = append(blocks, 4096)
		}
		for where, b := range disks {
			for _, block := range blocks {
				c, err := Probe(ram{b}, int64(len(b)), block)
				if err != nil {
					t.Errorf("%s, %s: %v", name, where, err)
				} else if c.Kind != Foreign || c.Creatable() || c.Openable() || c.Reason == nil {
					t.Errorf("%s, %s, blocks of %d: %s, %v", name, where, block, c.Kind, c.Reason)
				}
			}
		}
	})
	if n != 85 {
		t.Errorf("%d images, want 85", n)
	}
}
