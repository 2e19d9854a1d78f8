package archive

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"unicode/utf8"

	"hpcr/agent/hpl"
)

// Bounds of one archive.
const (
	MaxTotal   = 64 << 20 // bytes of all files
	MaxEntries = 4096     // tar headers
	MaxName    = 4096     // bytes of a path
	MaxSegment = 255      // bytes of one path segment

	// maxRatio is the allowed expansion of gzip. Honest small archives of
	// zero-padded tar blocks expand further, so a floor goes with it.
	maxRatio   = 100
	ratioFloor = 4 << 20
)

// File is one entry. Setuid, setgid and sticky bits, owners and times of the
// archive are dropped.
type File struct {
	Name string      `json:"name"` // clean, relative, "/" between segments
	Dir  bool        `json:"dir,omitempty"`
	Mode fs.FileMode `json:"mode"` // 0755 for directories and executables, else 0644
	Data []byte      `json:"data,omitempty"`
}

// Unpack decodes standard base64 of a gzip-ed tar. The root ("./") is left
// out; parents that the archive does not name are not made up. Its errors are
// *hpl.Error with an empty path: HPL06006E for base64 and gzip, HPL06007E for
// the tar and what is in it.
func Unpack(b64 string) ([]File, error) {
	packed, err := base64.StdEncoding.Strict().DecodeString(b64)
	if err != nil {
		// Decoder errors name an offset only, but their text is not ours to vouch for.
		return nil, hpl.Wrap(err, "HPL06006E", "", "the archive is not base64 on one line: make it with tar -cz -C DIR . | base64 -w0")
	}
	return UnpackGzip(packed)
}

// UnpackGzip is Unpack without the base64.
func UnpackGzip(packed []byte) ([]File, error) {
	zr, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, hpl.Wrap(err, "HPL06006E", "", "the archive is not gzip: make it with tar -cz -C DIR . | base64 -w0")
	}
	in := newBounded(zr, len(packed))
	files, err := readTar(in)
	if in.err != nil { // whatever tar made of it, this was the cause
		return nil, in.err
	}
	if err != nil {
		return nil, err
	}
	// What follows the tar's end is read as well: the checksum is at the end.
	if _, err := io.Copy(io.Discard, in); err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, hpl.New("HPL06007E", "", "the archive is empty: pack the folder that holds docker-compose.yaml")
	}
	return files, inFile(files)
}

func readTar(in *bounded) ([]File, error) {
	var (
		files []File
		seen  = map[string]bool{}
		tr    = tar.NewReader(in)
		total int
	)
	for count := 0; ; count++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return nil, hpl.Wrap(err, "HPL06007E", "", "the archive is not a whole tar file: pack it again")
		}
		if count == MaxEntries {
			return nil, hpl.New("HPL06007E", "", fmt.Sprintf("the archive has more than %d entries: leave out what the workload does not need", MaxEntries))
		}
		if h.Size > in.left {
			return nil, tooBig()
		}
		f, err := entry(h, tr)
		if err != nil {
			return nil, err
		}
		if f == nil {
			continue
		}
		if seen[f.Name] {
			return nil, hpl.New("HPL06007E", "", "the archive holds the same name twice: pack it again from a clean folder")
		}
		seen[f.Name] = true
		if total += len(f.Data); total > MaxTotal {
			return nil, tooBig()
		}
		files = append(files, *f)
	}
}

// bounded reads gzip data up to the limits and keeps its first own error, so
// that a broken stream is not blamed on the tar inside.
type bounded struct {
	zr   io.Reader
	left int64
	err  error
}

func newBounded(zr io.Reader, packed int) *bounded {
	// Tar headers and padding come on top of the files' own bytes.
	return &bounded{zr: zr, left: min(MaxTotal+MaxEntries*1536, max(int64(packed)*maxRatio, ratioFloor))}
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.zr.Read(p)
	if b.left -= int64(n); b.left < 0 {
		b.err = tooBig()
	} else if err != nil && !errors.Is(err, io.EOF) {
		b.err = hpl.Wrap(err, "HPL06006E", "", "the gzip data is damaged or cut off: pack the archive again")
	}
	if b.err != nil {
		return 0, b.err
	}
	return n, err
}

func tooBig() error {
	return hpl.New("HPL06007E", "", "the archive expands to more than 64 MiB or 100 times its size: put large data into an image or a volume")
}

// entry turns one tar header into a File, or nil for the root and for headers
// that describe no file (global pax records).
func entry(h *tar.Header, r io.Reader) (*File, error) {
	f := &File{Mode: 0o644}
	switch h.Typeflag {
	case tar.TypeReg, '\x00':
		f.Dir = strings.HasSuffix(h.Name, "/") // old tars mark directories so
	case tar.TypeDir:
		f.Dir = true
	case tar.TypeXGlobalHeader:
		return nil, nil
	case tar.TypeLink, tar.TypeSymlink:
		return nil, hpl.New("HPL06007E", "", "the archive holds a link: only regular files and directories may be in it (tar -h packs what links point to)")
	default:
		return nil, hpl.New("HPL06007E", "", "the archive holds a device, pipe or special file: only regular files and directories may be in it")
	}
	name, err := cleanName(h.Name)
	if err != nil {
		return nil, err
	}
	if name == "." {
		if !f.Dir {
			return nil, hpl.New("HPL06007E", "", "a file in the archive has no name: pack it again")
		}
		return nil, nil
	}
	f.Name = name
	if f.Dir {
		f.Mode = 0o755
		return f, nil
	}
	if h.Mode&0o111 != 0 {
		f.Mode = 0o755
	}
	// The stream is bounded; a sparse header could still ask for more.
	if h.Size > MaxTotal {
		return nil, tooBig()
	}
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return nil, hpl.New("HPL06007E", "", "the archive holds a sparse file: pack it without --sparse")
		}
	}
	f.Data = make([]byte, h.Size) // bounded by what the gzip data may hold
	if _, err = io.ReadFull(r, f.Data); err != nil {
		return nil, hpl.Wrap(err, "HPL06007E", "", "the archive is not a whole tar file: pack it again")
	}
	return f, nil
}

func cleanName(name string) (string, error) {
	if name == "" || strings.HasPrefix(name, "/") {
		return "", hpl.New("HPL06007E", "", "a name in the archive is absolute: pack with tar -C DIR .")
	}
	if len(name) > MaxName || !utf8.ValidString(name) || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return "", hpl.New("HPL06007E", "", "a name in the archive is too long, not UTF-8 or has control characters: rename the file")
	}
	for seg := range strings.SplitSeq(name, "/") {
		if seg == ".." {
			return "", hpl.New("HPL06007E", "", `a name in the archive leaves its folder by "..": pack with tar -C DIR .`)
		}
		if len(seg) > MaxSegment {
			return "", hpl.New("HPL06007E", "", "a name in the archive is longer than 255 bytes: rename the file")
		}
	}
	return path.Clean(name), nil
}

// inFile refuses entries below a name that is a file: writing them out would
// fail half way.
func inFile(files []File) error {
	plain := map[string]bool{}
	for _, f := range files {
		plain[f.Name] = !f.Dir
	}
	for _, f := range files {
		for dir := path.Dir(f.Name); dir != "."; dir = path.Dir(dir) {
			if plain[dir] {
				return hpl.New("HPL06007E", "", "a name in the archive is both file and folder: pack it again from a clean folder")
			}
		}
	}
	return nil
}
