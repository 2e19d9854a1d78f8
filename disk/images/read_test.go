package images

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A layout as small as one can be: what the blobs hold is not read.
var (
	manifest, layer = []byte(`{"schemaVersion":2}`), bytes.Repeat([]byte("layer"), 300)
	manifestSum     = Sum(sha256.Sum256(manifest))
	layerSum        = Sum(sha256.Sum256(layer))
)

const marker = `{"imageLayoutVersion":"1.0.0"}`

func indexOf(entries ...string) string {
	return `{"schemaVersion":2,"manifests":[` + strings.Join(entries, ",") + `]}`
}

func entryOf(sum, name string) string {
	return fmt.Sprintf(`{"digest":"sha256:%s","size":%d,"annotations":{%q:%q}}`, sum, len(manifest), RefName, name)
}

// member is a file of an archive under test.
type member struct {
	tar.Header
	data []byte
}

func regular(name string, data []byte) member {
	return member{tar.Header{Name: name, Typeflag: tar.TypeReg, Size: int64(len(data)), Mode: 0o444}, data}
}

func whole() []member {
	return []member{
		regular(MarkerFile, []byte(marker)),
		regular(IndexFile, []byte(indexOf(entryOf(manifestSum, "registry.example.com/web:1")))),
		regular(BlobFolder+manifestSum, manifest),
		regular(BlobFolder+layerSum, layer),
	}
}

func archiveOf(t testing.TB, members []member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		if err := w.WriteHeader(&m.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(m.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// mended writes a header's checksum anew.
func mended(b []byte) []byte {
	copy(b[148:156], "        ")
	sum := 0
	for _, c := range b[:block] {
		sum += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

func TestRead(t *testing.T) {
	with := func(change func(m []member) []member) func(t *testing.T) []byte {
		return func(t *testing.T) []byte { return archiveOf(t, change(whole())) }
	}
	more := func(m ...member) func(t *testing.T) []byte {
		return with(func(all []member) []member { return append(all, m...) })
	}
	index := func(text string) func(t *testing.T) []byte {
		return with(func(m []member) []member { m[1] = regular(IndexFile, []byte(text)); return m })
	}
	special := func(kind byte, name, link string) func(t *testing.T) []byte {
		return more(member{tar.Header{Name: name, Linkname: link, Typeflag: kind}, nil})
	}
	raw := func(change func(b []byte) []byte) func(t *testing.T) []byte {
		return func(t *testing.T) []byte { return change(archiveOf(t, whole())) }
	}
	fresh := BlobFolder + strings.Repeat("a", 64)
	for sentence, tt := range map[string]struct {
		disk func(t *testing.T) []byte
		want error // nil: any name of whole is found
	}{
		"a layout":                     {raw(func(b []byte) []byte { return b }), nil},
		"with bytes behind it":         {raw(func(b []byte) []byte { return append(b, "anything"...) }), nil},
		"with folders":                 {more(member{tar.Header{Name: "blobs/sha256/", Typeflag: tar.TypeDir}, nil}), nil},
		"an image without a name":      {index(indexOf(`{"digest":"sha256:`+manifestSum+`"}`, entryOf(manifestSum, "registry.example.com/web:1"))), nil},
		"one image under a name twice": {index(indexOf(entryOf(manifestSum, "registry.example.com/web:1"), entryOf(manifestSum, "registry.example.com/web:1"))), nil},
		"nothing":                      {func(*testing.T) []byte { return nil }, ErrNone},
		"zeros":                        {func(*testing.T) []byte { return make([]byte, 1<<20) }, ErrNone},
		"another disk":                 {func(*testing.T) []byte { return bytes.Repeat([]byte("LUKS\xba\xbe\x00\x02"), 4096) }, ErrNone},
		"another archive":              {func(t *testing.T) []byte { return archiveOf(t, []member{regular("etc/passwd", nil)}) }, ErrNone},
		"cut in a layer":               {raw(func(b []byte) []byte { return b[:len(b)-3*block] }), ErrCut},
		"cut between files":            {raw(func(b []byte) []byte { return b[:len(b)-2*block] }), ErrCut},
		"one bit of a header":          {raw(func(b []byte) []byte { b[len(b)-2*block-4*block] ^= 1; return b }), ErrHeader},
		"a size beyond the disk":       {raw(func(b []byte) []byte { copy(b[124:136], "77777777777\x00"); return mended(b) }), ErrCut},
		"the largest size there is": {raw(func(b []byte) []byte {
			copy(b[124:136], "\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff")
			return mended(b)
		}), ErrCut},
		"a size below zero": {raw(func(b []byte) []byte {
			copy(b[124:136], "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")
			return mended(b)
		}), ErrNone},
		"a size of 65 bits": {raw(func(b []byte) []byte {
			copy(b[124:136], "\x80\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x1e")
			return mended(b)
		}), ErrNone},
		"a size that is no number":         {raw(func(b []byte) []byte { copy(b[124:136], "0000000003x\x00"); return mended(b) }), ErrNone},
		"a blob twice":                     {more(regular(BlobFolder+layerSum, layer)), ErrTwice},
		"the index twice":                  {more(regular(IndexFile, []byte(indexOf()))), ErrTwice},
		"the index twice, once with a dot": {more(regular("./"+IndexFile, []byte(indexOf()))), ErrTwice},
		"a name for two images":            {index(indexOf(entryOf(manifestSum, "a/b:1"), entryOf(layerSum, "a/b:1"))), ErrTwice},
		"a symbolic link":                  {special(tar.TypeSymlink, fresh, "/etc/passwd"), ErrKind},
		"a hard link":                      {special(tar.TypeLink, fresh, IndexFile), ErrKind},
		"a device":                         {special(tar.TypeBlock, fresh, ""), ErrKind},
		"a pipe":                           {special(tar.TypeFifo, fresh, ""), ErrKind},
		"an extended header":               {more(member{tar.Header{Name: fresh, Typeflag: tar.TypeReg, PAXRecords: map[string]string{"HPCR.x": "y"}}, nil}), ErrKind},
		"a long name":                      {more(regular(strings.Repeat("blobs/", 20)+"x", nil)), ErrKind},
		"a file above the layout":          {more(regular("../"+IndexFile, nil)), ErrKind},
		"an absolute name":                 {more(regular("/"+BlobFolder+strings.Repeat("a", 64), nil)), ErrKind},
		"a name that goes up and down":     {more(regular("blobs/../"+IndexFile, nil)), ErrKind},
		"a blob whose name is no digest":   {more(regular(BlobFolder+strings.Repeat("A", 64), nil)), ErrKind},
		"another file":                     {more(regular("manifest.json", nil)), ErrKind},
		"a folder elsewhere":               {more(member{tar.Header{Name: "etc/", Typeflag: tar.TypeDir}, nil}), ErrKind},
		"more files than are read":         {func(t *testing.T) []byte { return archiveOf(t, many(maxFiles+2)) }, ErrMany},
		"no marker":                        {with(func(m []member) []member { return m[1:] }), ErrIndex},
		"another version": {with(func(m []member) []member {
			m[0] = regular(MarkerFile, []byte(`{"imageLayoutVersion":"2.0.0"}`))
			return m
		}), ErrIndex},
		"a huge marker":                        {with(func(m []member) []member { m[0] = regular(MarkerFile, make([]byte, maxMarker+1)); return m }), ErrMany},
		"no index":                             {with(func(m []member) []member { return slices.Delete(m, 1, 2) }), ErrIndex},
		"an index that is no JSON":             {index("{"), ErrIndex},
		"an index of another shape":            {index(`{"manifests":{"a":1}}`), ErrIndex},
		"an entry of another shape":            {index(indexOf(`[]`)), ErrIndex},
		"a huge index":                         {index(indexOf() + strings.Repeat(" ", maxIndex)), ErrMany},
		"an index of tiny entries":             {index(indexOf(strings.Split(strings.Repeat("{},", maxIndex/4)+"{}", ",")...)), ErrMany},
		"an index that nests":                  {index(indexOf(strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000))), ErrIndex},
		"a digest of another kind":             {index(indexOf(`{"digest":"sha512:` + strings.Repeat("a", 128) + `"}`)), ErrIndex},
		"a digest that is a path":              {index(indexOf(`{"digest":"sha256:../../etc/passwd"}`)), ErrIndex},
		"an image that the disk does not hold": {index(indexOf(entryOf(strings.Repeat("b", 64), "a/b:1"))), ErrMissing},
		"a name longer than any":               {index(indexOf(entryOf(manifestSum, strings.Repeat("a", maxName+1)))), ErrMany},
		"a header where the end is to be, twice": {raw(func(b []byte) []byte {
			copy(b[len(b)-2*block:], b[:block])
			return append(b[:len(b)-block], make([]byte, 2*block)...)
		}), ErrTwice},
	} {
		t.Run(sentence, func(t *testing.T) {
			disk := tt.disk(t)
			l, err := Read(bytes.NewReader(disk), int64(len(disk)))
			if tt.want != nil {
				if !errors.Is(err, tt.want) {
					t.Fatalf("%v, want %v", err, tt.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(map[string]string{"registry.example.com/web:1": manifestSum}, l.Names); diff != "" {
				t.Error(diff)
			}
			for sum, want := range map[string][]byte{manifestSum: manifest, layerSum: layer} {
				s := l.Blobs[sum]
				if got := disk[s.Start : s.Start+s.Size]; !bytes.Equal(got, want) {
					t.Errorf("%s is %.40q", sum, got)
				}
			}
		})
	}
}

func many(n int) (all []member) {
	all = whole()
	for i := range n {
		all = append(all, regular(fmt.Sprintf("%s%064x", BlobFolder, i), nil))
	}
	return all
}

// TestReadTar: what tar itself packs of a layout, in its own ways, is taken.
func TestReadTar(t *testing.T) {
	dir := t.TempDir()
	for _, m := range whole() {
		path := filepath.Join(dir, "l", m.Name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, m.data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, format := range []string{"gnu", "ustar", "oldgnu"} {
		out := filepath.Join(dir, format)
		if text, err := exec.Command("tar", "--format="+format, "-cf", out, "-C", filepath.Join(dir, "l"), ".").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		b, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		if !Is(b) {
			t.Errorf("%s: not known by its first block", format)
		}
		l, err := Read(bytes.NewReader(b), int64(len(b)))
		if err != nil || len(l.Blobs) != 2 || l.Names["registry.example.com/web:1"] != manifestSum {
			t.Errorf("%s: %+v, %v", format, l, err)
		}
	}
}

// broken is a disk that cannot be read from some byte on.
type broken struct {
	*bytes.Reader
	from int64
}

var errBroken = errors.New("I/O error")

func (b broken) ReadAt(p []byte, at int64) (int, error) {
	if at+int64(len(p)) > b.from {
		return 0, errBroken
	}
	return b.Reader.ReadAt(p, at)
}

// TestReadBroken: an error of reading is never an empty disk, or a short one.
func TestReadBroken(t *testing.T) {
	disk := archiveOf(t, whole())
	for from := int64(0); from < int64(len(disk))-2*block; from += block {
		_, err := Read(broken{bytes.NewReader(disk), from}, int64(len(disk)))
		if !errors.Is(err, errBroken) {
			t.Errorf("from %d: %v", from, err)
		}
	}
}

func TestIs(t *testing.T) {
	disk := archiveOf(t, whole())
	for sentence, tt := range map[string]struct {
		first []byte
		want  bool
	}{
		"a layout":      {disk[:block], true},
		"a longer part": {disk, true},
		"a part of it":  {disk[:block-1], false},
		"zeros":         {make([]byte, block), false},
		"the layer":     {disk[len(disk)-4*block:], false},
	} {
		if got := Is(tt.first); got != tt.want {
			t.Errorf("%s: %v", sentence, got)
		}
	}
}

func FuzzRead(f *testing.F) {
	disk := archiveOf(f, whole())
	f.Add(disk)
	f.Add(disk[:len(disk)-1024])
	f.Add([]byte{})
	// Property: no panic; every blob lies on the disk; a name is of a blob; an
	// error is one of ours or of reading, and repeats nothing of the disk.
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := Read(bytes.NewReader(b), int64(len(b)))
		var ours *Error
		switch {
		case errors.As(err, &ours):
		case errors.Is(err, io.EOF):
			t.Fatalf("read beyond the disk: %v", err)
		case err != nil:
			t.Fatalf("an error of no kind: %v", err)
		default:
			for sum, s := range l.Blobs {
				if len(sum) != 64 || s.Start < block || s.Size < 0 || s.Size > math.MaxInt64-s.Start || s.Start+s.Size > int64(len(b)) {
					t.Fatalf("%s at %+v of %d", sum, s, len(b))
				}
			}
			for name, sum := range l.Names {
				if _, ok := l.Blobs[sum]; !ok || name == "" || len(name) > maxName {
					t.Fatalf("%q → %s", name, sum)
				}
			}
		}
	})
}
