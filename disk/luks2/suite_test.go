package luks2

import (
	"archive/tar"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ulikunitz/xz"
)

// testdata/cryptsetup-suite.tar.xz holds the first 64 KiB of each image that
// the tests of cryptsetup 2.6.1 use or generate (Debian's source package
// cryptsetup 2.6.1-4~deb12u2: tests/generators, evil_hdr-*.xz,
// luks2_header_requirements.tar.xz, luks2_mda_images.tar.xz; GPL-2.0-or-later).
// The generators ran on a base with a key of 512 bits, which passes our gate
// (base/valid.img: luksFormat --key-size 512 --luks2-keyslots-size 4161536,
// eight key slots of argon2id), so that each result is one step away from it.
// Folder F: luks2-validation-test wants them rejected; R: read. cryptsetup 2.6.1
// agreed on each of them.
func suite(t testing.TB) map[string][]byte {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", "cryptsetup-suite.tar.xz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	plain, err := xz.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]byte{}
	for in := tar.NewReader(plain); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if all[h.Name], err = io.ReadAll(in); err != nil {
			t.Fatal(err)
		}
	}
}

// sized is a disk that begins with b and is zeros behind it.
type sized struct{ b []byte }

const suiteSize = 64 << 20

func (s sized) ReadAt(p []byte, at int64) (int, error) {
	clear(p)
	if at < int64(len(s.b)) {
		copy(p, s.b[at:])
	}
	return len(p), nil
}

// Of what cryptsetup's own suite wants rejected, nothing passes the gate; nor
// does any image whose features we do not know. What passes is named here.
func TestCryptsetupSuite(t *testing.T) {
	passes := []string{
		"base/valid.img",
		// One copy holds, and cryptsetup would mend the other.
		"R/luks2-invalid-checksum-hdr0.img",
		"R/luks2-invalid-checksum-hdr1.img",
		"R/luks2-corrupted-hdr0-with-correct-chks.img",
		"R/luks2-corrupted-hdr1-with-correct-chks.img",
		"R/luks2-metadata-size-16k-secondary.img",
	}
	all := suite(t)
	var rejected, wanted int
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if strings.HasPrefix(name, "F/") {
			wanted++
		}
		t.Run(name, func(t *testing.T) {
			im, err := Read(sized{all[name]}, suiteSize)
			if err != nil {
				t.Fatal(err)
			}
			passed := im.Kind() == ForeignLUKS || im.Kind() == Ours
			if passed != slices.Contains(passes, name) {
				t.Errorf("kind %s, %v", im.Kind(), im.Reason())
			}
			if im.Kind() == Interrupted {
				t.Error("somebody's header counts as our cut-off creation")
			}
			if !passed {
				rejected++
				if im.Kind() == None && strings.HasPrefix(string(all[name]), "LUKS") {
					t.Error("a LUKS header counts as none")
				}
			}
		})
	}
	if wanted != 55 {
		t.Errorf("%d images to be rejected, want cryptsetup's 55", wanted)
	}
	t.Logf("%d of %d rejected", rejected, len(all))
}
