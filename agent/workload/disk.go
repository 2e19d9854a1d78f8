package workload

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"hpcr/disk/images"
)

// Disk is a disk with images, as its child reads it. Nothing that it says is
// verified. Its methods end within a bounded time.
type Disk interface {
	// Size is a blob's, by its SHA-256 in hex.
	Size(key string) (int64, bool)
	// Named is what the disk gives for NAME:TAG, as a registry would.
	Named(name string) (key string, ok bool)
	// ReadBlob reads some bytes at least, from an offset of the blob.
	ReadBlob(key string, p []byte, at int64) (int, error)
}

// UseDisk lets Resolve and Pull take from a disk what it holds: it is asked
// before the registry, and believed no more than that. Before Resolve.
func (w *Workload) UseDisk(d Disk) { w.disk = d }

func (w *Workload) onDisk(d string) bool {
	if w.disk == nil {
		return false
	}
	key, ok := images.Key(d)
	if ok {
		_, ok = w.disk.Size(key)
	}
	return ok
}

var (
	errDiskBytes  = errors.New("a blob of the disk with images has another digest")
	errDiskSilent = errors.New("the disk with images failed")
	errNotOnDisk  = errors.New("the disk with images does not hold it")
)

// fromDisk is a registry behind a disk with images.
type fromDisk struct {
	remotes.Resolver
	disk Disk
}

// Resolve asks the registry for what the disk lacks only.
func (f fromDisk) Resolve(ctx context.Context, ref string) (string, ocispec.Descriptor, error) {
	spec, err := reference.Parse(ref)
	if err != nil {
		return "", ocispec.Descriptor{}, err
	}
	d := spec.Digest()
	if d == "" {
		if key, ok := f.disk.Named(ref); ok {
			d = digest.NewDigestFromEncoded(digest.SHA256, key)
		}
	}
	key, ok := images.Key(d.String())
	if ok {
		_, ok = f.disk.Size(key)
	}
	if !ok {
		name, desc, err := f.Resolver.Resolve(ctx, ref)
		if err != nil {
			err = fmt.Errorf("%w: %w", errNotOnDisk, err)
		}
		return name, desc, err
	}
	desc, err := f.describe(d, key)
	return ref, desc, err
}

// describe reads a manifest or an index.
func (f fromDisk) describe(d digest.Digest, key string) (ocispec.Descriptor, error) {
	size, _ := f.disk.Size(key)
	if size < 0 || size > maxManifest {
		return ocispec.Descriptor{}, fmt.Errorf("%w: a manifest of %d bytes", errDiskBytes, size)
	}
	text, err := io.ReadAll(newDiskBlob(f.disk, key, size))
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc, ok := describe(d, text)
	if !ok {
		return desc, fmt.Errorf("%w: no manifest", errDiskBytes)
	}
	return desc, nil
}

// Fetcher takes from the disk what it holds.
func (f fromDisk) Fetcher(ctx context.Context, ref string) (remotes.Fetcher, error) {
	next, err := f.Resolver.Fetcher(ctx, ref)
	if err != nil {
		return nil, err
	}
	return remotes.FetcherFunc(func(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
		key, ok := images.Key(desc.Digest.String())
		var size int64
		if ok {
			size, ok = f.disk.Size(key)
		}
		switch {
		case !ok:
			r, err := next.Fetch(ctx, desc)
			if err != nil {
				err = fmt.Errorf("%w: %w", errNotOnDisk, err)
			}
			return r, err
		case size != desc.Size:
			return nil, fmt.Errorf("%w: %d bytes of %d", errDiskBytes, size, desc.Size)
		}
		return newDiskBlob(f.disk, key, size), nil
	}), nil
}

// diskBlob reads a blob once, from its beginning to its end, and tells at the
// end whether it was the right one: what was read is what was hashed, whatever
// the disk says when it is read again. The reader must have the end's word
// before it uses a byte; containerd hashes what it stores for itself, too.
type diskBlob struct {
	disk     Disk
	key      string
	at, size int64
	hash     hash.Hash
}

func newDiskBlob(d Disk, key string, size int64) *diskBlob {
	return &diskBlob{disk: d, key: key, size: size, hash: digest.SHA256.Hash()}
}

func (b *diskBlob) Read(p []byte) (int, error) {
	if left := b.size - b.at; int64(len(p)) > left {
		p = p[:left]
	}
	if b.at == b.size {
		if images.Sum([32]byte(b.hash.Sum(nil))) != b.key {
			return 0, errDiskBytes
		}
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := b.disk.ReadBlob(b.key, p, b.at)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errDiskSilent, err)
	}
	b.hash.Write(p[:n])
	b.at += int64(n)
	return n, nil
}

func (*diskBlob) Close() error { return nil }
