// Package images reads a disk that carries container images: an OCI image
// layout (image-spec, image-layout.md) as an uncompressed tar archive that
// begins at the disk's first byte, as hpcrctl images pack makes it, or
// tar -cf DISK -C LAYOUT . does.
//
// It trusts nothing on the disk. It finds where things lie, within bounds, and
// believes no digest: whoever uses a blob hashes the bytes that it uses. It does
// not promise that the disk holds any whole image.
package images

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"strings"
)

// Bounds of what is read.
const (
	maxFiles   = 8192    // of the archive, folders included
	maxMarker  = 4096    // bytes of oci-layout
	maxIndex   = 1 << 20 // bytes of index.json
	maxNames   = 2048    // images that have one
	maxName    = 512     // bytes
	nameLength = 100
)

// RefName is the annotation in index.json that gives an image its name,
// NAME:TAG or NAME@DIGEST, with the registry's host.
const RefName = "org.opencontainers.image.ref.name"

// Names in the archive.
const (
	MarkerFile = "oci-layout"
	IndexFile  = "index.json"
	BlobFolder = "blobs/sha256/"
)

// Error says in a sentence what is wrong with the disk, without a word of it.
type Error struct{ Detail string }

func (e *Error) Error() string { return e.Detail }

// What is wrong with a disk.
var (
	ErrNone    = &Error{"it holds no archive of images: make one with hpcrctl images pack"}
	ErrCut     = &Error{"its archive is longer than the disk: it was cut, make it again"}
	ErrHeader  = &Error{"its archive is damaged: make it again"}
	ErrKind    = &Error{"its archive holds a file that an image layout does not: make it with hpcrctl images pack"}
	ErrTwice   = &Error{"its archive holds something twice: make it with hpcrctl images pack"}
	ErrMany    = &Error{"its archive holds more files, or a longer index, than is read: put fewer images on it"}
	ErrIndex   = &Error{"the index of its images cannot be read: make it with hpcrctl images pack"}
	ErrMissing = &Error{"the index of its images names one that it does not hold: make it again"}
)

// Span is where a blob lies, in bytes of the disk.
type Span struct{ Start, Size int64 }

// Layout is what a disk says that it holds.
type Layout struct {
	Blobs map[string]Span   // by SHA-256, 64 hex digits
	Names map[string]string // NAME:TAG → SHA-256 of its manifest or index, in Blobs
}

const block = 512

// Is says whether a disk's first block begins an archive as Read takes it.
func Is(first []byte) bool {
	if len(first) < block {
		return false
	}
	h, err := parseHeader(first[:block])
	return err == nil && h.known()
}

// Read finds what is on a disk of size bytes. Errors are *Error, or those of r.
func Read(r io.ReaderAt, size int64) (*Layout, error) {
	l := &Layout{Blobs: map[string]Span{}, Names: map[string]string{}}
	seen := map[string]Span{}
	buf := make([]byte, block)
	for at, n := int64(0), 0; ; n++ {
		if size-at < block {
			return nil, or(n == 0, ErrNone, ErrCut)
		}
		if n > maxFiles {
			return nil, ErrMany
		}
		if _, err := r.ReadAt(buf, at); err != nil {
			return nil, fmt.Errorf("read the archive: %w", err)
		}
		at += block
		if zero(buf) && n > 0 {
			break
		}
		h, err := parseHeader(buf)
		switch {
		case err != nil:
			return nil, or(n == 0, ErrNone, err)
		case !h.known():
			return nil, or(n == 0, ErrNone, ErrKind)
		case h.folder:
			continue
		case h.size > size-at:
			return nil, ErrCut
		}
		if _, twice := seen[h.name]; twice {
			return nil, ErrTwice
		}
		seen[h.name] = Span{at, h.size}
		if d, ok := strings.CutPrefix(h.name, BlobFolder); ok {
			l.Blobs[d] = seen[h.name]
		}
		at += (h.size + block - 1) / block * block // at most size+511, and size is an int64 of a real disk
	}
	if err := l.marker(r, seen); err != nil {
		return nil, err
	}
	return l, l.index(r, seen)
}

func or(which bool, a *Error, b error) error {
	if which {
		return a
	}
	return b
}

func (l *Layout) marker(r io.ReaderAt, seen map[string]Span) error {
	text, err := small(r, seen, MarkerFile, maxMarker)
	if err != nil {
		return err
	}
	var m struct {
		Version string `json:"imageLayoutVersion"`
	}
	if json.Unmarshal(text, &m) != nil || m.Version != "1.0.0" {
		return ErrIndex
	}
	return nil
}

func (l *Layout) index(r io.ReaderAt, seen map[string]Span) error {
	text, err := small(r, seen, IndexFile, maxIndex)
	if err != nil {
		return err
	}
	var doc struct {
		Manifests []json.RawMessage `json:"manifests"` // raw: an entry of two bytes stays one of few
	}
	if json.Unmarshal(text, &doc) != nil {
		return ErrIndex
	}
	if len(doc.Manifests) > maxFiles {
		return ErrMany
	}
	for _, raw := range doc.Manifests {
		var m struct {
			Digest      string            `json:"digest"`
			Annotations map[string]string `json:"annotations"`
		}
		if json.Unmarshal(raw, &m) != nil {
			return ErrIndex
		}
		d, ok := strings.CutPrefix(m.Digest, "sha256:")
		if !ok || !digest.MatchString(d) {
			return ErrIndex
		}
		if _, ok := l.Blobs[d]; !ok {
			return ErrMissing
		}
		name := m.Annotations[RefName]
		if name == "" {
			continue
		}
		if other, twice := l.Names[name]; twice && other != d {
			return ErrTwice
		}
		if len(name) > maxName || len(l.Names) == maxNames {
			return ErrMany
		}
		l.Names[name] = d
	}
	return nil
}

// small reads a file that is read whole.
func small(r io.ReaderAt, seen map[string]Span, name string, limit int64) ([]byte, error) {
	s, ok := seen[name]
	if !ok {
		return nil, ErrIndex
	}
	if s.Size > limit {
		return nil, ErrMany
	}
	text := make([]byte, s.Size)
	if _, err := r.ReadAt(text, s.Start); err != nil {
		return nil, fmt.Errorf("read the archive: %w", err)
	}
	return text, nil
}

// header is one file of the archive.
type header struct {
	name   string // without "./" before and "/" behind
	size   int64
	folder bool
}

var digest = regexp.MustCompile(`^[0-9a-f]{64}$`)

// known says whether an image layout has such a file.
func (h header) known() bool {
	if h.folder {
		return h.name == "" || h.name == "." || h.name == "blobs" || h.name == "blobs/sha256"
	}
	d, blob := strings.CutPrefix(h.name, BlobFolder)
	return h.name == MarkerFile || h.name == IndexFile || blob && digest.MatchString(d)
}

// parseHeader reads a header of POSIX.1-1988 (ustar), or of GNU tar with a size
// in binary. There are no extended headers: names are short, and nothing else
// of them counts.
func parseHeader(b []byte) (header, error) {
	var sum int64
	for i, c := range b {
		if i >= 148 && i < 156 {
			c = ' '
		}
		sum += int64(c)
	}
	if want, ok := octal(b[148:156]); !ok || want != sum || !bytes.Equal(b[257:262], []byte("ustar")) {
		return header{}, ErrHeader
	}
	if !zero(b[345:500]) {
		return header{}, ErrKind // a name longer than any of ours
	}
	size, ok := number(b[124:136])
	if !ok {
		return header{}, ErrHeader
	}
	name, _, _ := bytes.Cut(b[:nameLength], []byte{0})
	h := header{name: strings.TrimPrefix(string(name), "./"), size: size}
	switch b[156] {
	case '0', 0:
	case '5':
		h.folder, h.name = true, strings.TrimSuffix(h.name, "/")
		if size != 0 {
			return header{}, ErrHeader
		}
	default:
		return header{}, ErrKind
	}
	return h, nil
}

// number is a field of octal digits, or of binary ones behind a byte 0x80.
func number(b []byte) (int64, bool) {
	if b[0] != 0x80 {
		return octal(b)
	}
	if !zero(b[1:4]) || b[4]&0x80 != 0 {
		return 0, false
	}
	var n int64
	for _, c := range b[4:] {
		n = n<<8 | int64(c)
	}
	return n, true
}

// octal reads digits between blanks and NULs.
func octal(b []byte) (n int64, ok bool) {
	b = bytes.Trim(b, " \x00")
	for _, c := range b {
		if c < '0' || c > '7' {
			return 0, false
		}
		n = n<<3 | int64(c-'0')
	}
	return n, len(b) > 0
}

func zero(b []byte) bool { return bytes.Count(b, []byte{0}) == len(b) }

// Key is a digest's place in Blobs and Names; false for a digest of another
// kind than sha256:HEX.
func Key(d string) (string, bool) {
	h, ok := strings.CutPrefix(d, "sha256:")
	return h, ok && digest.MatchString(h)
}

// Sum is the key of a SHA-256.
func Sum(b [32]byte) string { return hex.EncodeToString(b[:]) }
