package peers

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	_ "embed"
	"encoding/json"
	"fmt"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is an OCI image, or an index of images, ready to push.
type Image struct {
	Manifest  []byte
	MediaType string
	Blobs     [][]byte
	Manifests []*Image // an index's images

	platform v1.Platform
}

//go:embed web.sh
var webScript []byte

// WebImage makes the image of the demo and of most scenarios: a static busybox
// and one shell script, web.sh, whose first argument chooses what it plays.
// The bytes depend on the arguments only.
func WebImage(arch string, busybox []byte) (*Image, error) {
	return image(arch, v1.ImageConfig{
		Entrypoint:   []string{"/bin/sh", "/entry.sh"},
		Cmd:          []string{"web"},
		Env:          []string{"PATH=/bin"},
		WorkingDir:   "/",
		ExposedPorts: map[string]struct{}{"8080/tcp": {}},
	}, []entry{
		{name: "bin/", mode: 0o755},
		{name: "bin/busybox", mode: 0o755, data: busybox},
		{name: "bin/sh", link: "busybox"},
		{name: "entry.sh", mode: 0o755, data: webScript},
		{name: "etc/", mode: 0o755},
		{name: "etc/passwd", mode: 0o644, data: []byte("root:x:0:0:root:/:/bin/sh\napp:x:1234:1234::/:/bin/sh\n")},
		{name: "etc/group", mode: 0o644, data: []byte("root:x:0:\napp:x:1234:\nextra:x:77:\n")},
		{name: "srv/", mode: 0o755},
		{name: "srv/shipped", mode: 0o644, data: []byte("from the image\n")},
		{name: "tmp/", mode: 0o1777},
	})
}

// ProgramImage holds nothing but one static program, which it runs.
func ProgramImage(arch string, program []byte) (*Image, error) {
	return image(arch, v1.ImageConfig{Entrypoint: []string{"/program"}, WorkingDir: "/"}, []entry{
		{name: "program", mode: 0o755, data: program},
		{name: "tmp/", mode: 0o1777},
	})
}

func image(arch string, c v1.ImageConfig, files []entry) (*Image, error) {
	layer, err := pack(files)
	if err != nil {
		return nil, err
	}
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	if _, err := z.Write(layer); err != nil {
		return nil, fmt.Errorf("compress the layer: %w", err)
	}
	if err := z.Close(); err != nil {
		return nil, fmt.Errorf("compress the layer: %w", err)
	}
	platform := v1.Platform{OS: "linux", Architecture: arch}
	config, err := json.Marshal(v1.Image{
		Platform: platform,
		Config:   c,
		RootFS:   v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(layer)}},
	})
	if err != nil {
		return nil, fmt.Errorf("encode the image's configuration: %w", err)
	}
	manifest, err := json.Marshal(v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageManifest,
		Config:    descriptor(v1.MediaTypeImageConfig, config),
		Layers:    []v1.Descriptor{descriptor(v1.MediaTypeImageLayerGzip, zipped.Bytes())},
	})
	if err != nil {
		return nil, fmt.Errorf("encode the image's manifest: %w", err)
	}
	return &Image{
		Manifest:  manifest,
		MediaType: v1.MediaTypeImageManifest,
		Blobs:     [][]byte{config, zipped.Bytes()},
		platform:  platform,
	}, nil
}

// LargeImage is the idle WebImage with a file of that many bytes, which is next
// to nothing as long as it is packed.
func LargeImage(arch string, busybox []byte, size int) (*Image, error) {
	return image(arch, v1.ImageConfig{Entrypoint: []string{"/bin/sh", "/entry.sh"}, Cmd: []string{"idle"}}, []entry{
		{name: "bin/", mode: 0o755},
		{name: "bin/busybox", mode: 0o755, data: busybox},
		{name: "bin/sh", link: "busybox"},
		{name: "entry.sh", mode: 0o755, data: webScript},
		{name: "large", mode: 0o644, data: make([]byte, size)},
	})
}

// Index joins images of several architectures under one digest.
func Index(images ...*Image) (*Image, error) {
	index := v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex}
	for _, i := range images {
		d := descriptor(i.MediaType, i.Manifest)
		d.Platform = &i.platform
		index.Manifests = append(index.Manifests, d)
	}
	manifest, err := json.Marshal(index)
	if err != nil {
		return nil, fmt.Errorf("encode the index: %w", err)
	}
	return &Image{Manifest: manifest, MediaType: v1.MediaTypeImageIndex, Manifests: images}, nil
}

// Digest is what pins the image: "sha256:…".
func (i *Image) Digest() string { return digest.FromBytes(i.Manifest).String() }

func descriptor(kind string, content []byte) v1.Descriptor {
	return v1.Descriptor{MediaType: kind, Digest: digest.FromBytes(content), Size: int64(len(content))}
}

// entry is a file; a name that ends in "/" is a folder; link makes a symlink.
type entry struct {
	name string
	mode int64
	data []byte
	link string
}

func pack(entries []entry) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Mode: e.mode, Size: int64(len(e.data)), Typeflag: tar.TypeReg, Format: tar.FormatUSTAR}
		switch {
		case e.link != "":
			h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, e.link, 0o777
		case e.name[len(e.name)-1] == '/':
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("pack %s: %w", e.name, err)
		}
		if _, err := w.Write(e.data); err != nil {
			return nil, fmt.Errorf("pack %s: %w", e.name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("end the archive: %w", err)
	}
	return b.Bytes(), nil
}
