package disk

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"hpcr/agent/hpl"
	"hpcr/disk/images"
	"hpcr/disk/images/pack"
)

// imageDisk is a file of size bytes with a disk of one image, whose largest
// layer is what an attacker chose.
func imageDisk(t *testing.T, layer []byte, size int64) (path, key string) {
	t.Helper()
	dir := t.TempDir()
	config := `{"os":"linux","architecture":"amd64"}`
	list := `[{"Config":"c.json","RepoTags":["registry.example.com/a:1"],"Layers":["l.tar"]}]`
	for name, text := range map[string]string{"c.json": config, "manifest.json": list, "l.tar": string(layer)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := pack.NewSet([]v1.Platform{{OS: "linux", Architecture: "amd64"}})
	closeFiles, err := s.FromFile(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := errors.Join(s.Write(t.Context(), &b, nil), closeFiles()); err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "disk")
	if err := errors.Join(os.WriteFile(path, b.Bytes(), 0o600), os.Truncate(path, size)); err != nil {
		t.Fatal(err)
	}
	return path, images.Sum(sha256.Sum256(layer))
}

// TestImageDiskIsNoVolume: whatever an image's layer looks like from where it
// lies, a disk with images is never empty, nor a volume, nor a scratch disk.
func TestImageDiskIsNoVolume(t *testing.T) {
	volume := partitioned(t, probeSize, 512).b
	for sentence, layer := range map[string][]byte{
		"a layer":                                []byte("layer"),
		"zeros":                                  make([]byte, 4*mib),
		"a LUKS header wherever one is searched": bytes.Repeat(append([]byte("SKUL\xba\xbe\x00\x02"), make([]byte, 504)...), 8*mib/512),
		"all of a volume's disk":                 volume[512:],
		"partition tables":                       volume[512 : 64*512],
	} {
		t.Run(sentence, func(t *testing.T) {
			path, _ := imageDisk(t, layer, probeSize+256*mib)
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			c, err := Probe(f, probeSize+256*mib, 512)
			if err != nil || c.Kind != Foreign || c.Creatable() || c.Openable() || !strings.Contains(fmt.Sprint(c.Reason), "images") {
				t.Errorf("%+v, %v", c, err)
			}
		})
	}
}

// TestImageDiskRead: what is no disk with images is refused with a code and a
// sentence; of one that is, no byte beyond a blob is given out.
func TestImageDiskRead(t *testing.T) {
	layer := bytes.Repeat([]byte("layer"), 1000)
	path, key := imageDisk(t, layer, probeSize)
	open := func(t *testing.T, path string) (*Images, error) {
		t.Helper()
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		fi, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		return readImages(f, fi.Size())
	}
	i, err := open(t, path)
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, len(layer))
	if err := i.ReadBlob(key, p, 0); err != nil || !bytes.Equal(p, layer) {
		t.Errorf("%v", err)
	}
	for _, bad := range []struct {
		key  string
		size int
		at   int64
	}{{key, 1, int64(len(layer))}, {key, len(layer) + 1, 0}, {key, 1, -1}, {key, 2, int64(len(layer)) - 1}, {key, 1, 1 << 62}, {strings.Repeat("0", 64), 0, 0}} {
		if err := i.ReadBlob(bad.key, make([]byte, bad.size), bad.at); err == nil {
			t.Errorf("%+v is read", bad)
		}
	}
	volume := filepath.Join(t.TempDir(), "volume")
	if err := os.WriteFile(volume, partitioned(t, probeSize, 512).b, 0o600); err != nil {
		t.Fatal(err)
	}
	for sentence, tt := range map[string]struct {
		path string
		cut  int64 // 0 = not
		want string
	}{
		"a data volume": {volume, 0, "no archive of images"},
		"a cut disk":    {path, 4096, "it was cut"},
		"an empty disk": {os.DevNull, 0, "no archive of images"},
	} {
		t.Run(sentence, func(t *testing.T) {
			if tt.cut > 0 {
				if err := os.Truncate(tt.path, tt.cut); err != nil {
					t.Fatal(err)
				}
			}
			_, err := open(t, tt.path)
			var e *hpl.Error
			if !errors.As(err, &e) || e.Code != "HPL06004E" || !strings.Contains(e.Detail, tt.want) {
				t.Errorf("%v", err)
			}
		})
	}
}
