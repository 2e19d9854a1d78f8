package pack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	ggcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"hpcr/disk/images"
)

var both = []v1.Platform{{OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "s390x"}}

// hub is a registry with TLS and a password.
type hub struct {
	*httptest.Server
	host   string
	client *http.Transport
	mangle func(w http.ResponseWriter, r *http.Request) bool
}

func newHub(t *testing.T) *hub {
	t.Helper()
	h := &hub{}
	next := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	h.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "packer" || password != "hush" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if h.mangle == nil || !h.mangle(w, r) {
			next.ServeHTTP(w, r)
		}
	}))
	h.host = h.Listener.Addr().String()
	h.client = h.Client().Transport.(*http.Transport)
	t.Cleanup(func() { h.client.CloseIdleConnections(); h.Close() })
	return h
}

func (h *hub) auth() string { return fmt.Sprintf(`{"auths":{%q:{"auth":"cGFja2VyOmh1c2g="}}}`, h.host) }

func (h *hub) registries(t *testing.T) *Registries {
	t.Helper()
	r, err := NewRegistries(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: h.Certificate().Raw}), []byte(h.auth()))
	check(t, err)
	return r
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func imageOf(t *testing.T, arch string, layers int) ggcr.Image {
	t.Helper()
	img := mutate.MediaType(mutate.ConfigMediaType(empty.Image, types.OCIConfigJSON), types.OCIManifestSchema1)
	for range layers {
		l, err := random.Layer(2000, types.OCILayer)
		check(t, err)
		img, err = mutate.AppendLayers(img, l)
		check(t, err)
	}
	c, err := img.ConfigFile()
	check(t, err)
	c = c.DeepCopy()
	c.OS, c.Architecture = "linux", arch
	img, err = mutate.ConfigFile(img, c)
	check(t, err)
	return img
}

func indexOf(t *testing.T, archs ...string) ggcr.ImageIndex {
	t.Helper()
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, arch := range archs {
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: imageOf(t, arch, 2), Descriptor: ggcr.Descriptor{Platform: &ggcr.Platform{OS: "linux", Architecture: arch}}})
	}
	return index
}

func (h *hub) push(t *testing.T, ref string, what remote.Taggable) {
	t.Helper()
	tag, err := name.NewTag(h.host + "/" + ref)
	check(t, err)
	options := []remote.Option{remote.WithTransport(basic{h.client})}
	switch w := what.(type) {
	case ggcr.Image:
		check(t, remote.Write(tag, w, options...))
	case ggcr.ImageIndex:
		check(t, remote.WriteIndex(tag, w, options...))
	}
}

type basic struct{ http.RoundTripper }

func (b basic) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.SetBasicAuth("packer", "hush")
	return b.RoundTripper.RoundTrip(r)
}

func write(t *testing.T, s *Set) ([]byte, *images.Layout) {
	t.Helper()
	var b bytes.Buffer
	check(t, s.Write(t.Context(), &b, nil))
	l, err := images.Read(bytes.NewReader(b.Bytes()), int64(b.Len()))
	check(t, err)
	for key, span := range l.Blobs {
		if got := images.Sum(sha256.Sum256(b.Bytes()[span.Start : span.Start+span.Size])); got != key {
			t.Errorf("%s holds %s", key, got)
		}
	}
	return b.Bytes(), l
}

func hexOf(t *testing.T, of interface{ Digest() (ggcr.Hash, error) }) string {
	t.Helper()
	d, err := of.Digest()
	check(t, err)
	return d.Hex
}

// TestRegistry: an image is taken with all of it and nothing else; the same
// images make the same bytes, in whatever order they were named.
func TestRegistry(t *testing.T) {
	h := newHub(t)
	lone, index := imageOf(t, "amd64", 4), indexOf(t, "amd64", "arm64", "s390x")
	h.push(t, "team/lone:1", lone)
	h.push(t, "team/index:2", index)
	signature := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	h.push(t, "team/lone:sha256-"+hexOf(t, lone)+".sig", signature)

	args := []string{h.host + "/team/lone:1", h.host + "/team/index:2@sha256:" + hexOf(t, index)}
	pack := func(platforms []v1.Platform, args ...string) *Set {
		t.Helper()
		s := NewSet(platforms)
		for _, a := range args {
			check(t, s.FromRegistry(t.Context(), h.registries(t), a))
		}
		return s
	}
	one, l := write(t, pack(both, args...))
	slices.Reverse(args)
	two, _ := write(t, pack(both, append(args, args...)...))
	if !bytes.Equal(one, two) {
		t.Error("the same images make other bytes")
	}
	if len(one)%padding != 0 {
		t.Errorf("%d bytes are no whole blocks", len(one))
	}
	want := map[string]string{
		h.host + "/team/lone:1":                                 hexOf(t, lone),
		h.host + "/team/lone:sha256-" + hexOf(t, lone) + ".sig": hexOf(t, signature),
		h.host + "/team/index:2":                                hexOf(t, index),
	}
	if diff := cmp.Diff(want, l.Names); diff != "" {
		t.Error(diff)
	}
	// Manifest, configuration, four layers; a signature's manifest and
	// configuration; an index and twice manifest, configuration, two layers.
	if n := len(l.Blobs); n != 6+2+1+2*4 {
		t.Errorf("%d blobs", n)
	}
	if _, l := write(t, pack(both[1:], args[0])); len(l.Blobs) != 1+4 {
		t.Errorf("of one platform %d blobs", len(l.Blobs))
	}
	if err := NewSet(both[1:]).FromRegistry(t.Context(), h.registries(t), h.host+"/team/lone:1"); !errors.Is(err, errPlatform) {
		t.Errorf("of another platform: %v", err)
	}
	var lines []string
	for _, i := range pack(both, args...).Images {
		lines = append(lines, i.Pinned())
	}
	slices.Sort(lines)
	if diff := cmp.Diff([]string{"", h.host + "/team/index@sha256:" + hexOf(t, index), h.host + "/team/lone@sha256:" + hexOf(t, lone)}, lines); diff != "" {
		t.Error(diff)
	}
}

// TestRegistryRefuses: what a registry may not do, and what it is not told.
func TestRegistryRefuses(t *testing.T) {
	h := newHub(t)
	img := imageOf(t, "amd64", 1)
	h.push(t, "team/app:1", img)
	ref := h.host + "/team/app@sha256:" + hexOf(t, img)
	layers, err := img.Layers()
	check(t, err)
	layer := hexOf(t, layers[0])
	blob := func(body string) func(w http.ResponseWriter, r *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, layer) {
				_, _ = io.WriteString(w, body)
				return true
			}
			return false
		}
	}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: h.Certificate().Raw})
	for sentence, tt := range map[string]struct {
		ref    string
		ca     []byte
		auth   string
		mangle func(w http.ResponseWriter, r *http.Request) bool
	}{
		"an unknown digest":       {h.host + "/team/app@sha256:" + strings.Repeat("1", 64), ca, h.auth(), nil},
		"an unknown tag":          {h.host + "/team/app:2", ca, h.auth(), nil},
		"no name":                 {"UPPER", ca, h.auth(), nil},
		"an unknown authority":    {ref, nil, h.auth(), nil},
		"no password":             {ref, ca, "{}", nil},
		"another host's password": {ref, ca, strings.Replace(h.auth(), h.host, "registry.example.com", 1), nil},
		"a password unreadable":   {ref, ca, strings.Replace(h.auth(), "cGFja2VyOmh1c2g=", "!", 1), nil},
		"another layer":           {ref, ca, h.auth(), blob("something else")},
		"an empty layer":          {ref, ca, h.auth(), blob("")},
		"a layer without an end":  {ref, ca, h.auth(), blob(strings.Repeat("x", 1<<20))},
	} {
		t.Run(sentence, func(t *testing.T) {
			h.mangle = tt.mangle
			defer func() { h.mangle = nil }()
			r, err := NewRegistries(tt.ca, []byte(tt.auth))
			check(t, err)
			s := NewSet(both)
			if err = s.FromRegistry(t.Context(), r, tt.ref); err == nil {
				err = s.Write(t.Context(), io.Discard, nil)
			}
			if err == nil {
				t.Error("it is taken")
			} else if strings.Contains(err.Error(), "hush") || strings.Contains(err.Error(), "cGFja2VyOmh1c2g") {
				t.Errorf("the password is in %v", err)
			}
		})
	}
	if _, err := NewRegistries([]byte("no PEM"), nil); err == nil {
		t.Error("an authority that is none is taken")
	}
	if _, err := NewRegistries(nil, []byte("no JSON")); err == nil {
		t.Error("an auth file that is none is taken")
	}
}

// TestOnlyTLS: a registry on loopback that speaks plain text gets no request.
func TestOnlyTLS(t *testing.T) {
	plain := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("it was asked in clear") }))
	defer plain.Close()
	r, err := NewRegistries(nil, nil)
	check(t, err)
	if err := NewSet(both).FromRegistry(t.Context(), r, plain.Listener.Addr().String()+"/a:1"); err == nil {
		t.Error("it is taken")
	}
}

// files of one image in all forms: by our peers' tools.
func TestFiles(t *testing.T) {
	dir := t.TempDir()
	img := imageOf(t, "s390x", 3)
	path, err := layout.Write(filepath.Join(dir, "layout"), empty.Index)
	check(t, err)
	check(t, path.AppendImage(img, layout.WithAnnotations(map[string]string{images.RefName: "registry.example.com/team/app:7"})))
	skopeo := func(to string) {
		t.Helper()
		out, err := exec.Command("skopeo", "copy", "--quiet", "--override-arch=s390x", "oci:"+filepath.Join(dir, "layout"), to).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s (install skopeo with 'make deps')", err, out)
		}
	}
	tarOf := func(out string) {
		t.Helper()
		if text, err := exec.Command("tar", "-cf", out, "-C", filepath.Join(dir, "layout"), ".").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
	}
	skopeo("oci-archive:" + filepath.Join(dir, "oci.tar") + ":7")
	skopeo("docker-archive:" + filepath.Join(dir, "docker.tar") + ":registry.example.com/team/app:7")
	tarOf(filepath.Join(dir, "tar.tar"))
	const called = "registry.example.com/team/app:7"
	for file, name := range map[string]string{"layout": called, "tar.tar": called, "oci.tar": "", "docker.tar": called} {
		t.Run(file, func(t *testing.T) {
			s := NewSet(both)
			close, err := s.FromFile(t.Context(), filepath.Join(dir, file))
			check(t, err)
			defer close()
			_, l := write(t, s)
			if len(l.Blobs) != 5 || len(s.Images) != 1 {
				t.Fatalf("%d blobs of %d images", len(l.Blobs), len(s.Images))
			}
			if key, ok := l.Names[name]; ok != (name != "") || ok && key != s.Images[0].Digest.Encoded() {
				t.Errorf("its names are %v", l.Names)
			}
			if file != "docker.tar" && s.Images[0].Digest.Encoded() != hexOf(t, img) {
				t.Errorf("it has the digest %s", s.Images[0].Digest)
			}
			again := NewSet(both)
			close2, err := again.FromFile(t.Context(), filepath.Join(dir, file))
			check(t, err)
			defer close2()
			one, _ := write(t, s)
			two, _ := write(t, again)
			if !bytes.Equal(one, two) {
				t.Error("the same file makes other bytes")
			}
			// What was made is itself such a file.
			disk := filepath.Join(t.TempDir(), "disk")
			check(t, os.WriteFile(disk, one, 0o600))
			third := NewSet(both)
			close3, err := third.FromFile(t.Context(), disk)
			check(t, err)
			defer close3()
			if three, _ := write(t, third); !bytes.Equal(one, three) {
				t.Error("a disk that is packed again has other bytes")
			}
		})
	}
	if s := NewSet(both[:1]); s.fromPath(t, filepath.Join(dir, "docker.tar")) == nil || s.fromPath(t, filepath.Join(dir, "layout")) == nil {
		t.Error("an image of another platform is taken")
	}
}

func (s *Set) fromPath(t *testing.T, path string) error {
	t.Helper()
	close, err := s.FromFile(t.Context(), path)
	if err == nil {
		err = errors.Join(s.Write(t.Context(), io.Discard, nil), close())
	}
	return err
}

// TestBadFiles: a file from elsewhere is refused, not half taken.
func TestBadFiles(t *testing.T) {
	manifest := func(m any) (text []byte, desc string) {
		b, err := json.Marshal(m)
		check(t, err)
		return b, fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, v1.MediaTypeImageManifest, digest.FromBytes(b), len(b))
	}
	config := []byte(`{"os":"linux","architecture":"amd64"}`)
	configDesc := v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))}
	good, goodDesc := manifest(v1.Manifest{Config: configDesc})
	lacking, lackingDesc := manifest(v1.Manifest{Config: configDesc, Layers: []v1.Descriptor{{Digest: digest.FromString("x"), Size: 1}}})
	negative, negativeDesc := manifest(v1.Manifest{Config: configDesc, Layers: []v1.Descriptor{{Digest: digest.FromString("x"), Size: -1}}})
	other, otherDesc := manifest(map[string]string{"mediaType": "application/vnd.docker.distribution.manifest.v1+json"})
	bare, bareDesc := manifest(map[string]string{})
	index := func(desc string) string { return `{"manifests":[` + desc + `]}` }
	blobs := map[string][]byte{}
	for _, b := range [][]byte{config, good, lacking, negative, other, bare} {
		blobs[images.BlobFolder+digest.FromBytes(b).Encoded()] = b
	}
	for sentence, tt := range map[string]struct {
		index string
		more  map[string]string
		ok    bool
	}{
		"an image":                           {index(goodDesc), nil, true},
		"no image":                           {index(""), nil, false},
		"no JSON":                            {"{", nil, false},
		"an image that is not there":         {index(`{"digest":"sha256:` + strings.Repeat("1", 64) + `","size":3}`), nil, false},
		"a digest that is a path":            {index(`{"digest":"sha256:../../../etc/passwd","size":3}`), nil, false},
		"a digest of another kind":           {index(`{"digest":"` + string(digest.SHA512.FromString("x")) + `","size":3}`), nil, false},
		"a size that is another":             {index(strings.Replace(goodDesc, `"size":`, `"size":1`, 1)), nil, false},
		"a layer that is not there":          {index(lackingDesc), nil, false},
		"a layer below nothing":              {index(negativeDesc), nil, false},
		"a manifest of long ago":             {index(otherDesc), nil, false},
		"no manifest of an image":            {index(bareDesc), nil, false},
		"a blob that is another":             {index(goodDesc), map[string]string{images.BlobFolder + digest.FromBytes(config).Encoded(): `{"os":"linux","architecture":"s390x"}`}, false},
		"a docker archive without its layer": {"", map[string]string{"manifest.json": `[{"Config":"c.json","Layers":["l.tar"]}]`, "c.json": string(config)}, false},
		"a docker archive":                   {"", map[string]string{"manifest.json": `[{"Config":"c.json","Layers":["l/layer.tar"]}]`, "c.json": string(config), "l/layer.tar": "layer"}, true},
		"a docker archive of nothing":        {"", map[string]string{"manifest.json": `[]`}, false},
		"a docker archive with a way out":    {"", map[string]string{"manifest.json": `[{"Config":"../../../../../etc/passwd","Layers":[]}]`}, false},
		"something else":                     {"", map[string]string{"a": "b"}, false},
	} {
		t.Run(sentence, func(t *testing.T) {
			dir := t.TempDir()
			put := func(name string, b []byte) {
				check(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
				check(t, os.WriteFile(filepath.Join(dir, name), b, 0o600))
			}
			if tt.index != "" {
				put(images.IndexFile, []byte(tt.index))
				for name, b := range blobs {
					put(name, b)
				}
			}
			for name, text := range tt.more {
				put(name, []byte(text))
			}
			archive := filepath.Join(t.TempDir(), "a.tar")
			if out, err := exec.Command("tar", "-cf", archive, "-C", dir, ".").CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			for _, path := range []string{dir, archive} {
				if err := NewSet(both).fromPath(t, path); (err == nil) != tt.ok {
					t.Errorf("%s: %v", filepath.Base(path), err)
				}
			}
		})
	}
	packed := filepath.Join(t.TempDir(), "a.tar.gz")
	check(t, os.WriteFile(packed, []byte("\x1f\x8b\x08\x00something"), 0o600))
	if err := NewSet(both).fromPath(t, packed); err == nil || !strings.Contains(err.Error(), "unpacked first") {
		t.Errorf("a packed archive: %v", err)
	}
}

// TestWriteStops: a context that ends ends the writing.
func TestWriteStops(t *testing.T) {
	h := newHub(t)
	h.push(t, "team/app:1", imageOf(t, "amd64", 2))
	s := NewSet(both)
	check(t, s.FromRegistry(t.Context(), h.registries(t), h.host+"/team/app:1"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Write(ctx, io.Discard, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
