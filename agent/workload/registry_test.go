package workload

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	ggcr "github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"hpcr/agent/hpl"
	"hpcr/agent/secret"
)

// layered is busybox with further layers, each given as it lies in a registry.
func layered(t *testing.T, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(busybox(t, nil), layers...)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

type file struct {
	tar.Header
	data []byte
}

// tarOf packs headers as they are, however odd.
func tarOf(t *testing.T, files ...file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		f.Size = int64(len(f.data))
		if f.Mode == 0 {
			f.Mode = 0o644
		}
		if err := w.WriteHeader(&f.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipped(t *testing.T, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zstded(t *testing.T, data []byte) []byte {
	t.Helper()
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	return z.EncodeAll(data, nil)
}

// layer is a layer whose packed and unpacked bytes are both given.
type layer struct {
	v1.Layer
	diff v1.Hash
}

func (l layer) DiffID() (v1.Hash, error) { return l.diff, nil }

func layerOf(t *testing.T, packed, unpacked []byte, kind ggcr.MediaType) v1.Layer {
	t.Helper()
	diff, _, err := v1.SHA256(bytes.NewReader(unpacked))
	if err != nil {
		t.Fatal(err)
	}
	return layer{static.NewLayer(packed, kind), diff}
}

// pull pulls one image and leaves the outcome.
func (b *bench) pull(t *testing.T, ref string, change func(*Options)) error {
	t.Helper()
	o := b.options(t, project(t, "services: {a: {image: '"+ref+"'}}", nil))
	if change != nil {
		change(&o)
	}
	w, err := New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer b.down(t, w)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := w.Resolve(ctx); err != nil {
		return err
	}
	return w.Pull(ctx)
}

func cause(t *testing.T, err error, want string) {
	t.Helper()
	var e *hpl.Error
	if !errors.As(err, &e) || e.Code != "HPL06004E" || !strings.Contains(e.Detail, want) {
		t.Errorf("got %v, want HPL06004E with %q", err, want)
	}
}

// Layers of each packing, and an index of two architectures.
func TestPullForms(t *testing.T) {
	b := newBench(t)
	note := tarOf(t, file{Header: tar.Header{Name: "note", Typeflag: tar.TypeReg}, data: []byte("here\n")})
	for sentence, l := range map[string]v1.Layer{
		"gzip":   layerOf(t, gzipped(t, note), note, ggcr.OCILayer),
		"zstd":   layerOf(t, zstded(t, note), note, ggcr.OCILayerZStd),
		"a tar":  layerOf(t, note, note, ggcr.OCIUncompressedLayer),
		"Docker": layerOf(t, gzipped(t, note), note, ggcr.DockerLayer),
	} {
		t.Run(sentence, func(t *testing.T) {
			ref := b.hub.push(t, "forms/"+strings.ToLower(strings.TrimPrefix(sentence, "a ")), layered(t, l))
			w := b.up(t, "services: {a: {image: '"+ref+"', network_mode: none, stop_grace_period: 1s, command: [cat, /note]}}")
			waitFor(t, "output", func() bool { return b.out.get("a") == "here\n" })
			b.down(t, w)
		})
		b.out.reset()
	}
}

// Docker Hub's credentials go to Docker Hub and to nobody else.
func TestCredentialsOfTheHub(t *testing.T) {
	auths := []Auth{{Host: "docker.io", Username: secret.FromString("hubuser"), Password: secret.FromString("hubpassword")}}
	for host, want := range map[string]string{"docker.io": "hubuser", "registry-1.docker.io": "hubuser", "registry.example.com": "", "docker.io.example.com": ""} {
		if user, _ := credentials(auths, host); user != want {
			t.Errorf("%s: %q, want %q", host, user, want)
		}
	}
}

// A registry that breaks off, stands still or lies about lengths. The layer is
// of random bytes: nothing of it is small.
func TestUnreliableRegistry(t *testing.T) {
	noise := make([]byte, 2<<20)
	if _, err := rand.Read(noise); err != nil {
		t.Fatal(err)
	}
	unpacked := tarOf(t, file{Header: tar.Header{Name: "noise", Typeflag: tar.TypeReg}, data: noise})
	packed := gzipped(t, unpacked)
	hub := newHub(t)
	l := layerOf(t, packed, unpacked, ggcr.OCILayer)
	ref := hub.push(t, "noise", layered(t, l))
	hash, err := l.Digest()
	if err != nil {
		t.Fatal(err)
	}
	var asked, ranged atomic.Int32
	stop := make(chan struct{})
	t.Cleanup(func() { close(stop) })
	blob := func(answer func(w http.ResponseWriter, r *http.Request, from int)) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, "/blobs/"+hash.String()) {
				return false
			}
			from := 0
			if want, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok {
				first, _, _ := strings.Cut(want, "-")
				from, _ = strconv.Atoi(first)
				if from > 0 {
					ranged.Add(1)
				}
			}
			asked.Add(1)
			answer(w, r, from)
			return true
		}
	}
	part := func(w http.ResponseWriter, from, to int) {
		if from > 0 {
			w.Header().Set("Content-Range", "bytes "+strconv.Itoa(from)+"-"+strconv.Itoa(len(packed)-1)+"/"+strconv.Itoa(len(packed)))
			w.Header().Set("Content-Length", strconv.Itoa(len(packed)-from))
			w.WriteHeader(http.StatusPartialContent)
		} else {
			w.Header().Set("Content-Length", strconv.Itoa(len(packed)))
		}
		_, _ = w.Write(packed[from:to])
	}
	flush := func(w http.ResponseWriter) { _ = http.NewResponseController(w).Flush() }
	for sentence, tt := range map[string]struct {
		answer func(w http.ResponseWriter, r *http.Request, from int)
		want   string // "" = pulled
		resume bool
	}{
		"breaks off twice, and gives the rest": {resume: true, answer: func(w http.ResponseWriter, _ *http.Request, from int) {
			if asked.Load() <= 2 {
				part(w, from, from+(len(packed)-from)/2)
				flush(w)
				panic(http.ErrAbortHandler)
			}
			part(w, from, len(packed))
		}},
		"stands still once, and gives the rest": {resume: true, answer: func(w http.ResponseWriter, r *http.Request, from int) {
			if asked.Load() == 1 {
				part(w, from, len(packed)/2)
				flush(w)
				select {
				case <-r.Context().Done():
				case <-stop:
				}
				panic(http.ErrAbortHandler)
			}
			part(w, from, len(packed))
		}},
		"always stands still": {want: "broke off in the middle", answer: func(w http.ResponseWriter, r *http.Request, from int) {
			part(w, from, from)
			flush(w)
			select {
			case <-r.Context().Done():
			case <-stop:
			}
			panic(http.ErrAbortHandler)
		}},
		"sends without end": {want: "other bytes", answer: func(w http.ResponseWriter, r *http.Request, from int) {
			_, _ = w.Write(packed[from:])
			for r.Context().Err() == nil {
				if _, err := w.Write(packed); err != nil {
					return
				}
			}
		}},
		"gives less than the manifest says": {want: "broke off", answer: func(w http.ResponseWriter, _ *http.Request, from int) {
			body := packed[:len(packed)/2]
			if from >= len(body) {
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				return
			}
			w.Header().Set("Content-Length", strconv.Itoa(len(body)-from))
			_, _ = w.Write(body[from:])
		}},
		"gives the rest of other bytes": {want: "other bytes", resume: true, answer: func(w http.ResponseWriter, _ *http.Request, from int) {
			if from == 0 {
				part(w, 0, len(packed)/2)
				flush(w)
				panic(http.ErrAbortHandler)
			}
			w.Header().Set("Content-Range", "bytes "+strconv.Itoa(from)+"-"+strconv.Itoa(len(packed)-1)+"/"+strconv.Itoa(len(packed)))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(make([]byte, len(packed)-from))
		}},
	} {
		t.Run(sentence, func(t *testing.T) {
			b := &bench{daemon: newDaemon(t), hub: hub, out: &sink{text: map[string]*bytes.Buffer{}}}
			asked.Store(0)
			ranged.Store(0)
			hub.mangl = blob(tt.answer)
			defer func() { hub.mangl = nil }()
			err := b.pull(t, ref, func(o *Options) { o.stall = 500 * time.Millisecond })
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("got %v", err)
			case tt.want != "":
				cause(t, err, tt.want)
			}
			if tt.resume != (ranged.Load() > 0) && tt.want == "" {
				t.Errorf("asked %d times, %d of them for the rest", asked.Load(), ranged.Load())
			}
		})
	}
}

// Blobs may lie elsewhere; the registry's password does not go there.
func TestRedirectedBlobs(t *testing.T) {
	b := newBench(t)
	ref := b.hub.push(t, "app", busybox(t, nil))
	store := newHub(t, "localhost")
	var leaked, served atomic.Bool
	store.open = func(w http.ResponseWriter, r *http.Request) bool {
		served.Store(true)
		if _, _, sent := r.BasicAuth(); sent {
			leaked.Store(true)
		}
		b.hub.blobs.ServeHTTP(w, r)
		return true
	}
	b.hub.mangl = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		http.Redirect(w, r, "https://"+strings.Replace(store.host, "127.0.0.1", "localhost", 1)+r.URL.Path, http.StatusTemporaryRedirect)
		return true
	}
	err := b.pull(t, ref, func(o *Options) { o.TLS.RootCAs.AddCert(store.ca) })
	if err != nil || !served.Load() {
		t.Errorf("got %v, served from elsewhere: %v", err, served.Load())
	}
	if leaked.Load() {
		t.Error("the registry's password went to another host")
	}
}

// An image that cannot fit is refused before its first layer is asked for.
func TestRoom(t *testing.T) {
	b := newBench(t)
	ref := b.hub.push(t, "app", busybox(t, nil))
	var layers atomic.Int32
	b.hub.mangl = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			layers.Add(1)
		}
		return false
	}
	err := b.pull(t, ref, func(o *Options) { o.free = func() (int64, error) { return 1 << 20, nil } })
	cause(t, err, "does not fit")
	if layers.Load() > 0 {
		t.Errorf("%d blobs were asked for", layers.Load())
	}
	if err := b.pull(t, ref, nil); err != nil {
		t.Errorf("with room: %v", err)
	}
}

// A manifest that is endless, or claims layers of any size.
func TestAbsurdManifests(t *testing.T) {
	b := newBench(t)
	ref := b.hub.push(t, "app", busybox(t, nil))
	for sentence, mangle := range map[string]func(w http.ResponseWriter, r *http.Request) bool{
		"endless": func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				return false
			}
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			for r.Method == http.MethodGet && r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 1<<20)); err != nil {
					break
				}
			}
			return true
		},
		"without its end, behind a token server": func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != "/token" {
				w.Header().Set("WWW-Authenticate", `Bearer realm="https://`+b.hub.host+`/token",service="test"`)
				w.WriteHeader(http.StatusUnauthorized)
				return true
			}
			_, _ = w.Write([]byte(`{"token":"`))
			for r.Context().Err() == nil {
				if _, err := w.Write(bytes.Repeat([]byte("a"), 1<<20)); err != nil {
					break
				}
			}
			return true
		},
		"announced with an exabyte": func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				return false
			}
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			w.Header().Set("Content-Length", "1152921504606846976")
			w.WriteHeader(http.StatusOK)
			return true
		},
	} {
		t.Run(sentence, func(t *testing.T) {
			b.hub.mangl = mangle
			defer func() { b.hub.mangl = nil }()
			cause(t, b.pull(t, ref, nil), "")
		})
	}
	huge, err := mutate.Append(busybox(t, nil), mutate.Addendum{Layer: sized{static.NewLayer([]byte("x"), ggcr.OCILayer), 1 << 61}})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := huge.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	cause(t, b.pull(t, b.hub.manifest(t, "huge", raw), nil), "other bytes")
}

// sized lies about a layer's size.
type sized struct {
	v1.Layer
	size int64
}

func (s sized) Size() (int64, error) { return s.size, nil }

// manifest pushes a manifest alone.
func (h *testHub) manifest(t *testing.T, repo string, raw []byte) string {
	t.Helper()
	hash, _, err := v1.SHA256(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	req := httptest.NewRequest(http.MethodPut, "/v2/"+repo+"/manifests/"+hash.String(), bytes.NewReader(raw))
	req.Header.Set("Content-Type", ocispec.MediaTypeImageManifest)
	rec := httptest.NewRecorder()
	h.blobs.ServeHTTP(rec, req)
	if rec.Code != http.StatusCreated {
		t.Fatalf("push a manifest: %d %s", rec.Code, rec.Body)
	}
	return h.host + "/" + repo + "@" + hash.String()
}

// An index of two architectures gives this machine's image; a lone manifest of
// another architecture gives none (TestPullRefusals).
func TestIndex(t *testing.T) {
	b := newBench(t)
	foreign := busybox(t, func(c *v1.ConfigFile) { c.Architecture = "riscv64" })
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: foreign, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "riscv64"}}},
		mutate.IndexAddendum{Add: busybox(t, nil), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}},
		mutate.IndexAddendum{Add: busybox(t, func(c *v1.ConfigFile) { c.Architecture = "s390x" }), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}}})
	ref, err := name.NewTag(b.hub.host + "/multi:1")
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{TLSClientConfig: b.hub.trust()}
	defer tr.CloseIdleConnections()
	if err := remote.WriteIndex(ref, index, remote.WithTransport(basic{tr}), remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	hash, err := index.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if err := b.pull(t, b.hub.host+"/multi@"+hash.String(), nil); err != nil {
		t.Error(err)
	}
}

// Hostile layers. containerd's applier is the defence; what counts is what lies
// outside the container's root afterwards.
func TestHostileLayers(t *testing.T) {
	b := newBench(t)
	outside := filepath.Join(b.dir, "outside")
	if err := os.WriteFile(outside, []byte("untouched"), 0o600); err != nil {
		t.Fatal(err)
	}
	up := strings.Repeat("../", 40)
	reg := func(name string) file {
		return file{Header: tar.Header{Name: name, Typeflag: tar.TypeReg}, data: []byte("evil")}
	}
	link := func(kind byte, name, to string) file {
		return file{Header: tar.Header{Name: name, Typeflag: kind, Linkname: to, Mode: 0o777}}
	}
	inside := strings.TrimPrefix(outside, "/")
	for sentence, tt := range map[string]struct {
		layers  [][]file
		command string // in the container, if the image is taken
		want    string // its output
	}{
		"a path that climbs out":                    {layers: [][]file{{reg(up + inside)}}, command: "cat " + outside, want: "evil\n"},
		"an absolute path":                          {layers: [][]file{{reg(outside)}}, command: "cat " + outside, want: "evil\n"},
		"a file through an absolute symlink":        {layers: [][]file{{link(tar.TypeSymlink, "out", b.dir), reg("out/outside")}}},
		"a file through a relative symlink":         {layers: [][]file{{link(tar.TypeSymlink, "out", up+strings.TrimPrefix(b.dir, "/")), reg("out/outside")}}},
		"a file through a symlink of a lower layer": {layers: [][]file{{link(tar.TypeSymlink, "out", b.dir)}, {reg("out/outside")}}},
		"a file over a symlink":                     {layers: [][]file{{link(tar.TypeSymlink, "f", outside)}, {reg("f")}}, command: "cat /f", want: "evil\n"},
		"a hard link to the outside":                {layers: [][]file{{link(tar.TypeLink, "f", up+inside), reg("f")}}},
		"a hard link through a symlink":             {layers: [][]file{{link(tar.TypeSymlink, "out", b.dir), link(tar.TypeLink, "f", "out/outside"), reg("f")}}},
		"a whiteout of the outside":                 {layers: [][]file{{reg(up + strings.TrimPrefix(b.dir, "/") + "/.wh.outside")}}},
		"a whiteout through a symlink":              {layers: [][]file{{link(tar.TypeSymlink, "out", b.dir)}, {reg("out/.wh.outside")}}},
		"an opaque whiteout through a symlink":      {layers: [][]file{{link(tar.TypeSymlink, "out", b.dir)}, {reg("out/.wh..wh..opq")}}},
		"a whiteout whose name climbs out":          {layers: [][]file{{reg(".wh.." + "/" + up + inside)}}},
		"a device of the host's disk, unusable": {layers: [][]file{{{Header: tar.Header{Name: "disk", Typeflag: tar.TypeBlock, Devmajor: 7, Devminor: 0, Mode: 0o666}}}},
			command: "head -c 1 /disk 2>&1 | grep -o 'not permitted'", want: "not permitted\n"},
		"a set-uid program gains nothing": {layers: [][]file{{{Header: tar.Header{Name: "bin/su", Typeflag: tar.TypeReg, Mode: 0o4755}, data: mustRead(t, "/bin/busybox")}}},
			command: "/bin/su 2>/dev/null; grep NoNewPrivs /proc/self/status", want: "NoNewPrivs:\t1\n"},
	} {
		t.Run(sentence, func(t *testing.T) {
			var layers []v1.Layer
			for _, files := range tt.layers {
				plain := tarOf(t, files...)
				layers = append(layers, layerOf(t, gzipped(t, plain), plain, ggcr.OCILayer))
			}
			ref := b.hub.push(t, "hostile", layered(t, layers...))
			err := b.pull(t, ref, nil)
			if text, rerr := os.ReadFile(outside); rerr != nil || string(text) != "untouched" {
				t.Fatalf("the file outside: %q, %v", text, rerr)
			}
			if st, rerr := os.Lstat(outside); rerr != nil || st.Mode() != 0o600 {
				t.Fatalf("the file outside: %v, %v", st, rerr)
			}
			t.Logf("pull: %v", err)
			if tt.command == "" {
				return
			}
			defer b.out.reset()
			if err != nil {
				t.Fatalf("the image is not taken: %v", err)
			}
			w := b.up(t, "services: {a: {image: '"+ref+"', network_mode: none, stop_grace_period: 1s, command: [sh, -c, \""+tt.command+"\"]}}")
			waitFor(t, "output", func() bool { return b.out.get("a") == tt.want })
			b.down(t, w)
		})
	}
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A layer that grows a thousandfold fills its store, and nothing more: the pull
// fails, and the room comes back.
func TestBomb(t *testing.T) {
	b := newBench(t)
	pr, pw := io.Pipe()
	go func() {
		w := tar.NewWriter(pw)
		_ = w.WriteHeader(&tar.Header{Name: "zeros", Typeflag: tar.TypeReg, Mode: 0o644, Size: 256 << 20})
		zeros := make([]byte, 1<<20)
		for range 256 {
			_, _ = w.Write(zeros)
		}
		_ = w.Close()
		pw.Close()
	}()
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	hash, _, err := v1.SHA256(io.TeeReader(pr, z))
	if err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	ref := b.hub.push(t, "bomb", layered(t, layer{static.NewLayer(packed.Bytes(), ggcr.OCILayer), hash}))
	small := newSmallStore(t, 64<<20)
	err = (&bench{daemon: small, hub: b.hub, out: b.out}).pull(t, ref, nil)
	cause(t, err, "does not fit")
}
