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
	raw, err := gunzip(packed)
	if err != nil {
		return nil, err
	}
	var (
		files []File
		seen  = map[string]bool{}
		tr    = tar.NewReader(bytes.NewReader(raw))
		count int
	)
	for ; ; count++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, hpl.Wrap(err, "HPL06007E", "", "the archive is not a whole tar file: pack it again")
		}
		if count == MaxEntries {
			return nil, hpl.New("HPL06007E", "", fmt.Sprintf("the archive has more than %d entries: leave out what the workload does not need", MaxEntries))
		}
		f, err := entry(h, tr)
		if err != nil {
			return nil, err
		}
		if f == nil {
			continue
		}
		if had := seen[f.Name]; had {
			return nil, hpl.New("HPL06007E", "", "the archive holds the same name twice: pack it again from a clean folder")
		}
		seen[f.Name] = true
		files = append(files, *f)
	}
	if len(files) == 0 {
		return nil, hpl.New("HPL06007E", "", "the archive is empty: pack the folder that holds docker-compose.yaml")
	}
	return files, inFile(files)
}

// gunzip expands within the bounds. Several gzip members in a row are one
// stream, as gzip has it; garbage behind the last one is an error.
func gunzip(packed []byte) ([]byte, error) {
	zr, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, hpl.Wrap(err, "HPL06006E", "", "the archive is not gzip: make it with tar -cz -C DIR . | base64 -w0")
	}
	// Tar headers and padding come on top of the files' own bytes.
	limit := min(int64(MaxTotal+MaxEntries*1024+10240), max(int64(len(packed))*maxRatio, ratioFloor))
	var out bytes.Buffer
	n, err := io.Copy(&out, io.LimitReader(zr, limit+1))
	if err != nil {
		return nil, hpl.Wrap(err, "HPL06006E", "", "the gzip data is damaged or cut off: pack the archive again")
	}
	if n > limit {
		return nil, hpl.New("HPL06006E", "", "the archive expands to more than 64 MiB or 100 times its size: put large data into an image or a volume")
	}
	return out.Bytes(), nil
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
	// gunzip bounded the whole; a sparse header could still ask for more.
	if h.Size > MaxTotal {
		return nil, hpl.New("HPL06007E", "", "a file in the archive is larger than 64 MiB: put large data into an image or a volume")
	}
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return nil, hpl.New("HPL06007E", "", "the archive holds a sparse file: pack it without --sparse")
		}
	}
	if f.Data, err = io.ReadAll(io.LimitReader(r, MaxTotal+1)); err != nil {
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
