//go:build vm

package disk

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestScratchInGuests runs scratch_guest_test.go in a guest of our image, and
// looks at the disk afterwards.
func TestScratchInGuests(t *testing.T) {
	archs := []string{"amd64", "s390x"}
	if v := os.Getenv("HPCR_ARCHS"); v != "" {
		archs = strings.Fields(v)
	}
	for _, arch := range archs {
		t.Run(arch, func(t *testing.T) {
			t.Parallel()
			d := disks{t: t, dir: t.TempDir()}
			scratch := d.blank("scratch", 420*mib) // several of ext4's groups, one of them short
			newGuest(t, arch).boot(t, "^TestScratch$", scratch)
			d.lacks(scratch.File, "what no host may read of a scratch disk")
			if out := run(t, "sgdisk", "--verify", scratch.File); !strings.Contains(out, "No problems found") {
				t.Errorf("sgdisk: %s", out)
			}
		})
	}
}

// lacks: the host reads text nowhere on the disk.
func (d disks) lacks(file, text string) {
	d.t.Helper()
	f, err := os.Open(file)
	must(d.t, err)
	defer f.Close()
	buf, kept := make([]byte, 4*mib+len(text)), 0
	for {
		n, err := f.Read(buf[kept:])
		if bytes.Contains(buf[:kept+n], []byte(text)) {
			d.t.Errorf("%s: the disk shows what is in it", filepath.Base(file))
		}
		if err == io.EOF {
			return
		}
		must(d.t, err)
		kept = copy(buf, buf[max(0, kept+n-len(text)):kept+n])
	}
}
