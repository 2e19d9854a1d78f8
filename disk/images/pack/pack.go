// Package pack makes a disk with images, as package images reads it: an OCI
// image layout in an uncompressed tar archive. It runs on the host, not in the
// guest.
//
// Every blob is hashed as it is written: a registry or an archive that gives
// other bytes fails. The same images make the same bytes.
package pack

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"hpcr/disk/images"
)

const (
	maxManifest = 8 << 20
	padding     = 4096 // a disk has whole blocks
)

// Docker's media types that OCI's stand beside.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// source gives blobs; what it gives is hashed by whoever reads.
type source interface {
	open(ctx context.Context, desc v1.Descriptor) (io.ReadCloser, error)
}

// Image is one that the disk carries.
type Image struct {
	Name   string // NAME:TAG or NAME@DIGEST, normalised; "" = known by its digest alone
	Digest digest.Digest

	signature bool
	desc      v1.Descriptor
}

// Set is what goes onto a disk.
type Set struct {
	Images    []Image
	platforms []v1.Platform
	blobs     map[digest.Digest]blob
}

type blob struct {
	size int64
	from source
	desc v1.Descriptor
	text []byte // of a manifest
}

// NewSet is an empty set. Of an image for several platforms those given are
// taken.
func NewSet(platforms []v1.Platform) *Set {
	return &Set{platforms: platforms, blobs: map[digest.Digest]blob{}}
}

// errPlatform is an image without any of the platforms.
var errPlatform = errors.New("it has no build for any of the platforms that were asked for")

// add takes an image with all that it consists of.
func (s *Set) add(ctx context.Context, from source, desc v1.Descriptor, name string, signature bool) error {
	desc.Annotations, desc.Platform, desc.URLs, desc.Data = nil, nil, nil, nil
	kept, err := s.walk(ctx, from, &desc, signature)
	if err == nil && !kept {
		err = errPlatform
	}
	if err != nil {
		return err
	}
	s.Images = append(s.Images, Image{name, desc.Digest, signature, desc})
	return nil
}

// walk takes a manifest or index and what it names, if it is for one of the
// platforms.
func (s *Set) walk(ctx context.Context, from source, desc *v1.Descriptor, signature bool) (bool, error) {
	text, err := read(ctx, from, *desc)
	if err != nil {
		return false, err
	}
	var m struct {
		MediaType string          `json:"mediaType"`
		Config    *v1.Descriptor  `json:"config"`
		Layers    []v1.Descriptor `json:"layers"`
		Manifests []v1.Descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return false, fmt.Errorf("%s is no manifest: %w", desc.Digest, err)
	}
	desc.Size = int64(len(text))
	if desc.MediaType = m.MediaType; m.MediaType == "" { // optional in the OCI's
		desc.MediaType = v1.MediaTypeImageManifest
		if m.Manifests != nil {
			desc.MediaType = v1.MediaTypeImageIndex
		}
	}
	switch desc.MediaType {
	case v1.MediaTypeImageIndex, dockerIndex:
		kept := false
		for _, child := range m.Manifests {
			if child.Platform != nil && !s.wants(*child.Platform) {
				continue
			}
			ok, err := s.walk(ctx, from, &child, signature)
			if err != nil {
				return false, err
			}
			kept = kept || ok
		}
		if kept {
			s.put(from, *desc, text)
		}
		return kept, nil
	case v1.MediaTypeImageManifest, dockerManifest:
	default:
		return false, fmt.Errorf("%s is of a kind that containers do not run from: %q", desc.Digest, desc.MediaType)
	}
	if m.Config == nil {
		return false, fmt.Errorf("%s is no manifest of an image", desc.Digest)
	}
	config, err := read(ctx, from, *m.Config)
	if err != nil {
		return false, fmt.Errorf("configuration: %w", err)
	}
	var p v1.Platform
	if err := json.Unmarshal(config, &p); err != nil {
		return false, fmt.Errorf("configuration %s: %w", m.Config.Digest, err)
	}
	if !signature && !s.wants(p) {
		return false, nil
	}
	s.put(from, *desc, text)
	s.put(from, *m.Config, config)
	for _, l := range m.Layers {
		if l.Digest.Validate() != nil || l.Digest.Algorithm() != digest.SHA256 || l.Size < 0 {
			return false, fmt.Errorf("%s names a layer without a SHA-256 or a size", desc.Digest)
		}
		s.put(from, l, nil)
	}
	return true, nil
}

func (s *Set) wants(p v1.Platform) bool {
	return slices.ContainsFunc(s.platforms, func(w v1.Platform) bool { return w.OS == p.OS && w.Architecture == p.Architecture })
}

func (s *Set) put(from source, desc v1.Descriptor, text []byte) {
	s.blobs[desc.Digest] = blob{desc.Size, from, desc, text}
}

// read takes a manifest or a configuration, of the digest that it must have. A
// size of -1 is not known yet.
func read(ctx context.Context, from source, desc v1.Descriptor) ([]byte, error) {
	if desc.Digest.Validate() != nil || desc.Digest.Algorithm() != digest.SHA256 || desc.Size > maxManifest {
		return nil, fmt.Errorf("%q of %d bytes is not taken: a SHA-256 and at most %d bytes are", desc.Digest, desc.Size, maxManifest)
	}
	r, err := from.open(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	text, err := io.ReadAll(io.LimitReader(r, maxManifest+1))
	switch {
	case err != nil:
		return nil, err
	case digest.FromBytes(text) != desc.Digest, desc.Size >= 0 && desc.Size != int64(len(text)):
		return nil, fmt.Errorf("%s: %w", desc.Digest, errOther)
	}
	return text, nil
}

var errOther = errors.New("other bytes came than the digest promises")

// Size is that of the disk, in bytes, but for its index.
func (s *Set) Size() (n int64) {
	for _, b := range s.blobs {
		n += b.size
	}
	return n
}

// Write makes the disk. progress hears how many bytes of blobs are written; it
// may be nil.
func (s *Set) Write(ctx context.Context, to io.Writer, progress func(done int64)) error {
	out := &counted{w: to}
	w := tar.NewWriter(out)
	index := v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: s.index()}
	text, err := json.Marshal(index)
	if err != nil {
		return err
	}
	marker := `{"imageLayoutVersion":"` + v1.ImageLayoutVersion + `"}`
	if err := errors.Join(file(w, images.MarkerFile, int64(len(marker)), strings.NewReader(marker)),
		file(w, images.IndexFile, int64(len(text)), strings.NewReader(string(text)))); err != nil {
		return err
	}
	if progress == nil {
		progress = func(int64) {}
	}
	var done int64
	for _, d := range slices.Sorted(maps.Keys(s.blobs)) {
		b := s.blobs[d]
		heard := func(n int) {
			done += int64(n)
			progress(done)
		}
		if err := b.write(ctx, w, d, heard); err != nil {
			return fmt.Errorf("%s: %w", d, err)
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	_, err = out.Write(make([]byte, (padding-out.n%padding)%padding))
	return err
}

// index names each image once, in an order of its own.
func (s *Set) index() (all []v1.Descriptor) {
	for _, i := range s.Images {
		d := i.desc
		if i.Name != "" {
			d.Annotations = map[string]string{images.RefName: i.Name}
		}
		all = append(all, d)
	}
	key := func(d v1.Descriptor) string { return d.Annotations[images.RefName] + " " + string(d.Digest) }
	slices.SortFunc(all, func(a, b v1.Descriptor) int { return strings.Compare(key(a), key(b)) })
	return slices.CompactFunc(all, func(a, b v1.Descriptor) bool { return key(a) == key(b) })
}

func (b blob) write(ctx context.Context, w *tar.Writer, d digest.Digest, heard func(int)) error {
	r := io.NopCloser(strings.NewReader(string(b.text)))
	if b.text == nil {
		var err error
		if r, err = b.from.open(ctx, b.desc); err != nil {
			return err
		}
	}
	defer r.Close()
	verifier := d.Verifier()
	err := file(w, images.BlobFolder+d.Encoded(), b.size, io.TeeReader(&told{ctx, r, heard}, verifier))
	if err == nil && !verifier.Verified() {
		err = errOther
	}
	return err
}

// file writes one file that has exactly this size.
func file(w *tar.Writer, name string, size int64, r io.Reader) error {
	h := &tar.Header{Name: name, Size: size, Mode: 0o444, Typeflag: tar.TypeReg, Format: tar.FormatUSTAR, ModTime: time.Unix(0, 0)}
	if size >= 8<<30 {
		h.Format = tar.FormatGNU // ustar has no larger sizes
	}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.Copy(w, io.LimitReader(r, size))
	if err == nil && n == size {
		var more int
		if more, err = io.ReadFull(r, make([]byte, 1)); errors.Is(err, io.EOF) {
			err = nil
		}
		n += int64(more)
	}
	if err == nil && n != size {
		err = errOther
	}
	return err
}

// told tells of what is read through it, and ends with its context.
type told struct {
	ctx context.Context
	io.Reader
	heard func(int)
}

func (t *told) Read(p []byte) (int, error) {
	if err := t.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := t.Reader.Read(p)
	t.heard(n)
	return n, err
}

type counted struct {
	w io.Writer
	n int64
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// Pinned is what a contract names it by: NAME@DIGEST, or the digest alone where
// the image came without a name; "" for signatures.
func (i Image) Pinned() string {
	if i.signature {
		return ""
	}
	named, err := reference.ParseNormalizedNamed(i.Name)
	if err != nil {
		return i.Digest.String()
	}
	return named.Name() + "@" + i.Digest.String()
}
