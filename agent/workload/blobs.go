package workload

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// blobs are images' blobs on a volume that outlasts the boot: manifests,
// configurations and packed layers, each in a file that its SHA-256 names.
// Nothing else is taken over from an earlier boot. The host may have changed
// the volume: a file is hashed before it is used, and once more by containerd
// as it comes in; what does not fit is fetched from the registry as if it had
// never been there. nil is a store that is always empty.
type blobs struct {
	dir *os.Root
	log *slog.Logger
}

const (
	blobsFolder = "sha256"
	maxManifest = 8 << 20 // as containerd's own limit
)

// openBlobs opens the store below a mounted volume; "" = none. A volume that
// cannot hold one does not stop the boot.
func openBlobs(volume string, log *slog.Logger) *blobs {
	if volume == "" {
		return nil
	}
	dir, err := openBlobsFolder(volume)
	if err != nil {
		log.Warn("the image store cannot be used: images are pulled", "err", err)
		return nil
	}
	return &blobs{dir, log}
}

func openBlobsFolder(volume string) (*os.Root, error) {
	root, err := os.OpenRoot(volume)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	if err := root.Mkdir(blobsFolder, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return root.OpenRoot(blobsFolder)
}

func (b *blobs) close() {
	if b != nil {
		b.dir.Close()
	}
}

// blobName is a blob's file; "" for a digest of another kind.
func blobName(d digest.Digest) string {
	if d.Validate() != nil || d.Algorithm() != digest.SHA256 {
		return ""
	}
	return d.Encoded()
}

// open returns the blob, proven and at its beginning, or nil. size -1 = any.
func (b *blobs) open(d digest.Digest, size int64) *os.File {
	name := blobName(d)
	if b == nil || name == "" {
		return nil
	}
	f, err := b.proven(name, d, size)
	switch {
	case err == nil:
		return f
	case !errors.Is(err, fs.ErrNotExist):
		b.log.Warn("a blob of the image store is damaged and is fetched again", "digest", d, "err", err)
		b.drop(name)
	}
	return nil
}

func (b *blobs) proven(name string, d digest.Digest, size int64) (*os.File, error) {
	fi, err := b.dir.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() || size >= 0 && fi.Size() != size {
		return nil, fmt.Errorf("%s of %d bytes, want a file of %d", fi.Mode().Type(), fi.Size(), size)
	}
	f, err := b.dir.Open(name)
	if err != nil {
		return nil, err
	}
	v := d.Verifier()
	if _, err = io.Copy(v, io.LimitReader(f, fi.Size())); err == nil && !v.Verified() {
		err = errors.New("it has another digest")
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (b *blobs) drop(name string) {
	if err := b.dir.RemoveAll(name); err != nil {
		b.log.Warn("the image store cannot be cleaned", "err", err)
	}
}

// manifest describes the image or index of this digest, if it is here.
func (b *blobs) manifest(d digest.Digest) (ocispec.Descriptor, bool) {
	f := b.open(d, -1)
	if f == nil {
		return ocispec.Descriptor{}, false
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err != nil || len(text) > maxManifest || digest.FromBytes(text) != d {
		return ocispec.Descriptor{}, false
	}
	return describe(d, text)
}

// describe tells a manifest from an index.
func describe(d digest.Digest, text []byte) (ocispec.Descriptor, bool) {
	var m struct {
		MediaType string            `json:"mediaType"`
		Manifests []json.RawMessage `json:"manifests"`
	}
	if json.Unmarshal(text, &m) != nil {
		return ocispec.Descriptor{}, false
	}
	if m.MediaType == "" { // optional in the OCI's
		m.MediaType = ocispec.MediaTypeImageManifest
		if m.Manifests != nil {
			m.MediaType = ocispec.MediaTypeImageIndex
		}
	}
	return ocispec.Descriptor{MediaType: m.MediaType, Digest: d, Size: int64(len(text))}, true
}

// keep holds the images' blobs for the next boot, and drops all others. That
// they do not fit is not an error of this boot.
func (b *blobs) keep(ctx context.Context, from content.Store, all []*image) {
	if b == nil {
		return
	}
	want, err := wanted(ctx, from, all)
	if err == nil {
		err = b.keepOnly(want)
	}
	for _, desc := range want {
		if err != nil {
			break
		}
		err = b.put(ctx, from, desc)
	}
	if err != nil {
		b.log.Warn("not all images could be kept in the image store: they are pulled again at the next boot", "err", err)
		return
	}
	b.log.Info("images are kept in the image store", "blobs", len(want))
}

// wanted lists the blobs that the images consist of on this machine, by name.
func wanted(ctx context.Context, from content.Store, all []*image) (map[string]ocispec.Descriptor, error) {
	want := map[string]ocispec.Descriptor{}
	for _, img := range all {
		here := images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
			if _, err := from.Info(ctx, desc.Digest); errdefs.IsNotFound(err) {
				return nil, images.ErrSkipDesc // of another machine, or not needed
			} else if err != nil {
				return nil, err
			}
			if name := blobName(desc.Digest); name != "" {
				want[name] = desc
			}
			return images.Children(ctx, from, desc)
		})
		if err := images.Walk(ctx, images.FilterPlatforms(here, img.platform), img.handle.Target()); err != nil {
			return nil, fmt.Errorf("list the image's blobs: %w", err)
		}
	}
	return want, nil
}

func (b *blobs) keepOnly(want map[string]ocispec.Descriptor) error {
	entries, err := fs.ReadDir(b.dir.FS(), ".")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if _, ok := want[e.Name()]; !ok {
			b.drop(e.Name())
		}
	}
	return nil
}

// put writes a blob that is not there. What is there was proven in this boot:
// containerd has it from here.
func (b *blobs) put(ctx context.Context, from content.Provider, desc ocispec.Descriptor) error {
	name := blobName(desc.Digest)
	if fi, err := b.dir.Lstat(name); err == nil && fi.Mode().IsRegular() && fi.Size() == desc.Size {
		return nil
	}
	r, err := from.ReaderAt(ctx, desc)
	if err != nil {
		return err
	}
	defer r.Close()
	part := name + ".part"
	b.drop(part)
	f, err := b.dir.OpenFile(part, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content.NewReader(r))
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = b.dir.Rename(part, name)
	}
	if err != nil {
		b.drop(part)
	}
	return err
}

// source is a registry behind the store, for one pull. It remembers what came
// from the store.
type source struct {
	remotes.Resolver
	blobs *blobs

	mu     sync.Mutex
	served []ocispec.Descriptor
}

func (b *blobs) before(r remotes.Resolver) *source { return &source{Resolver: r, blobs: b} }

// Resolve does not ask the registry for a digest that is in the store.
func (s *source) Resolve(ctx context.Context, ref string) (string, ocispec.Descriptor, error) {
	if spec, err := reference.Parse(ref); err == nil {
		if desc, ok := s.blobs.manifest(spec.Digest()); ok {
			return ref, desc, nil
		}
	}
	return s.Resolver.Resolve(ctx, ref)
}

// Fetcher is the registry's, for what the store lacks.
func (s *source) Fetcher(ctx context.Context, ref string) (remotes.Fetcher, error) {
	next, err := s.Resolver.Fetcher(ctx, ref)
	if err != nil {
		return nil, err
	}
	return remotes.FetcherFunc(func(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
		f := s.blobs.open(desc.Digest, desc.Size)
		if f == nil {
			return next.Fetch(ctx, desc)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.served = append(s.served, desc)
		return f, nil
	}), nil
}

// forget drops what was served from the store and says whether it was anything:
// after a failed pull, the disk may have changed under containerd's hands.
func (s *source) forget(ctx context.Context, into content.IngestManager) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, desc := range s.served {
		s.blobs.drop(blobName(desc.Digest))
		// An ingest that broke off would go on with what it has.
		if err := into.Abort(ctx, remotes.MakeRefKey(ctx, desc)); err != nil && !errdefs.IsNotFound(err) {
			s.blobs.log.Warn("a broken ingest is left", "err", err)
		}
	}
	return len(s.served) > 0
}
