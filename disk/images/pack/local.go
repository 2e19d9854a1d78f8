package pack

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"hpcr/disk/images"
)

const maxList = 16 << 20 // bytes of a list of images

// files is a folder, or what an archive holds.
type files interface {
	// file opens a file; fs.ErrNotExist if there is none.
	file(name string) (io.ReadCloser, error)
}

// FromFile takes all images of an OCI image layout, in a folder or a tar
// archive, or of an archive as docker save and skopeo's docker-archive make it.
// close ends the use of the file, after Write.
func (s *Set) FromFile(ctx context.Context, name string) (close func() error, err error) {
	f, close, err := openFiles(name)
	if err != nil {
		return nil, err
	}
	// Newer archives of docker save are both: the layout has the digests that
	// registries know.
	err = s.fromLayout(ctx, f)
	if errors.Is(err, fs.ErrNotExist) {
		err = s.fromDocker(ctx, f)
		if errors.Is(err, fs.ErrNotExist) {
			err = errors.New("it is neither an OCI image layout nor an archive of docker save (a packed archive is to be unpacked first)")
		}
	}
	if err != nil {
		return nil, errors.Join(err, close())
	}
	return close, nil
}

func (s *Set) fromLayout(ctx context.Context, f files) error {
	var index v1.Index
	if err := readList(f, images.IndexFile, &index); err != nil {
		return err
	}
	if len(index.Manifests) == 0 {
		return errors.New("the layout holds no image")
	}
	for _, d := range index.Manifests {
		called := d.Annotations["io.containerd.image.name"]
		if ref := d.Annotations[images.RefName]; called == "" && strings.Contains(ref, "/") {
			called = ref // elsewhere it is a tag alone
		}
		signature := strings.HasSuffix(called, ".sig")
		if err := s.add(ctx, layoutFiles{f}, d, called, signature); err != nil {
			return fmt.Errorf("%s: %w", d.Digest, err)
		}
	}
	return nil
}

func readList(f files, name string, to any) error {
	r, err := f.file(name)
	if err != nil {
		return err
	}
	defer r.Close()
	text, err := io.ReadAll(io.LimitReader(r, maxList))
	if err == nil {
		err = json.Unmarshal(text, to)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

type layoutFiles struct{ files }

func (l layoutFiles) open(_ context.Context, desc v1.Descriptor) (io.ReadCloser, error) {
	r, err := l.file(images.BlobFolder + desc.Digest.Encoded())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the layout lacks %s", desc.Digest)
	}
	return r, err
}

// fromDocker takes the older kind of archive, which has no manifests: they are
// made, for the layers as they lie there. Registries know these images by other
// digests.
func (s *Set) fromDocker(ctx context.Context, f files) error {
	var list []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := readList(f, "manifest.json", &list); err != nil {
		return err
	}
	if len(list) == 0 {
		return errors.New("the archive holds no image")
	}
	for _, i := range list {
		d := dockerFiles{f, map[digest.Digest]string{}, map[digest.Digest][]byte{}}
		config, err := d.measure(i.Config, v1.MediaTypeImageConfig)
		if err != nil {
			return err
		}
		m := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, Config: config}
		for _, l := range i.Layers {
			desc, err := d.measure(l, v1.MediaTypeImageLayer)
			if err != nil {
				return err
			}
			m.Layers = append(m.Layers, desc)
		}
		text, err := json.Marshal(m)
		if err != nil {
			return err
		}
		desc := v1.Descriptor{Digest: digest.FromBytes(text), Size: int64(len(text))}
		d.made[desc.Digest] = text
		tags := i.RepoTags
		if len(tags) == 0 {
			tags = []string{""}
		}
		for _, t := range tags {
			if t != "" {
				named, err := reference.ParseNormalizedNamed(t)
				if err != nil {
					return fmt.Errorf("the archive's name of an image: %w", err)
				}
				t = named.String()
			}
			if err := s.add(ctx, d, desc, t, false); err != nil {
				return err
			}
		}
	}
	return nil
}

type dockerFiles struct {
	files
	at   map[digest.Digest]string
	made map[digest.Digest][]byte
}

// measure describes a file: its digest is found by reading it.
func (d dockerFiles) measure(name, kind string) (v1.Descriptor, error) {
	r, err := d.file(path.Clean(name))
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("the archive lacks %q: %w", name, err)
	}
	defer r.Close()
	hash := digest.SHA256.Digester()
	n, err := io.Copy(hash.Hash(), r)
	if err != nil {
		return v1.Descriptor{}, err
	}
	desc := v1.Descriptor{MediaType: kind, Digest: hash.Digest(), Size: n}
	d.at[desc.Digest] = path.Clean(name)
	return desc, nil
}

func (d dockerFiles) open(_ context.Context, desc v1.Descriptor) (io.ReadCloser, error) {
	if text, ok := d.made[desc.Digest]; ok {
		return io.NopCloser(strings.NewReader(string(text))), nil
	}
	return d.file(d.at[desc.Digest])
}

func openFiles(name string) (files, func() error, error) {
	fi, err := os.Stat(name)
	if err != nil {
		return nil, nil, err
	}
	if fi.IsDir() {
		root, err := os.OpenRoot(name)
		if err != nil {
			return nil, nil, err
		}
		return folder{root}, root.Close, nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, nil, err
	}
	a := &archive{f, map[string]entry{}}
	if err := a.list(); err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return a, f.Close, nil
}

type folder struct{ *os.Root }

func (f folder) file(name string) (io.ReadCloser, error) { return f.Open(name) }

// archive is an uncompressed tar archive.
type archive struct {
	f     *os.File
	files map[string]entry
}

type entry struct {
	at, size int64
	link     string // the archive's name of another file
}

func (a *archive) list() error {
	r := tar.NewReader(a.f)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("it is no tar archive (a packed one is to be unpacked first): %w", err)
		}
		at, err := a.f.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		name := path.Clean(h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
			a.files[name] = entry{at, h.Size, ""}
		case tar.TypeSymlink: // older docker save: a layer that is there already
			a.files[name] = entry{link: path.Join(path.Dir(name), h.Linkname)}
		case tar.TypeLink:
			a.files[name] = entry{link: path.Clean(h.Linkname)}
		}
	}
}

func (a *archive) file(name string) (io.ReadCloser, error) {
	e, ok := a.files[name]
	if ok && e.link != "" {
		e, ok = a.files[e.link]
	}
	if !ok || e.link != "" {
		return nil, fs.ErrNotExist
	}
	return io.NopCloser(io.NewSectionReader(a.f, e.at, e.size)), nil
}
