package workload

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"hpcr/agent/hpl"
)

// stored opens a store over files, by name.
func stored(t *testing.T, files map[string]string) (*blobs, string, *bytes.Buffer) {
	t.Helper()
	var said bytes.Buffer
	dir := t.TempDir()
	b := openBlobs(dir, slog.New(slog.NewTextHandler(&said, nil)))
	if b == nil {
		t.Fatal("no store")
	}
	t.Cleanup(b.close)
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, blobsFolder, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return b, filepath.Join(dir, blobsFolder), &said
}

// TestStoredBlob: only what its digest names is given out. The rest is said,
// and gone.
func TestStoredBlob(t *testing.T) {
	const text = "a layer"
	d := digest.FromString(text)
	name := d.Encoded()
	for sentence, tt := range map[string]struct {
		make func(t *testing.T, path string)
		d    digest.Digest
		size int64
		ok   bool
		said bool
	}{
		"the blob":                  {write(text), d, int64(len(text)), true, false},
		"of any size":               {write(text), d, -1, true, false},
		"one bit of it is changed":  {write("a lbyer"), d, int64(len(text)), false, true},
		"cut":                       {write(text[:3]), d, int64(len(text)), false, true},
		"longer":                    {write(text + "x"), d, int64(len(text)), false, true},
		"cut, of any size":          {write(text[:3]), d, -1, false, true},
		"empty":                     {write(""), d, int64(len(text)), false, true},
		"a folder":                  {func(t *testing.T, p string) { check(t, os.Mkdir(p, 0o755)) }, d, int64(len(text)), false, true},
		"a link to the right bytes": {func(t *testing.T, p string) { write(text)(t, p+"x"); check(t, os.Symlink(p+"x", p)) }, d, int64(len(text)), false, true},
		"not there":                 {func(*testing.T, string) {}, d, int64(len(text)), false, false},
		"a digest of another kind":  {write(text), digest.SHA512.FromString(text), int64(len(text)), false, false},
		"a digest that is a path":   {write(text), "sha256:../../x", int64(len(text)), false, false},
		"no digest":                 {write(text), "", -1, false, false},
	} {
		t.Run(sentence, func(t *testing.T) {
			b, dir, said := stored(t, nil)
			tt.make(t, filepath.Join(dir, name))
			f := b.open(tt.d, tt.size)
			if (f != nil) != tt.ok || (said.Len() > 0) != tt.said {
				t.Fatalf("given out: %v; said %q", f != nil, said)
			}
			if _, err := os.Lstat(filepath.Join(dir, name)); tt.said && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("it is still there: %v", err)
			}
			if f == nil {
				return
			}
			defer f.Close()
			if got, err := io.ReadAll(f); err != nil || string(got) != text {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
	var none *blobs
	if none.open(d, -1) != nil || openBlobs("", slog.New(slog.DiscardHandler)) != nil {
		t.Error("no store gives something out")
	}
}

func write(text string) func(*testing.T, string) {
	return func(t *testing.T, path string) {
		t.Helper()
		check(t, os.WriteFile(path, []byte(text), 0o600))
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestStoredManifest(t *testing.T) {
	for text, want := range map[string]string{
		`{"mediaType":"application/vnd.docker.distribution.manifest.v2+json"}`: "application/vnd.docker.distribution.manifest.v2+json",
		`{"schemaVersion":2,"config":{}}`:                                      ocispec.MediaTypeImageManifest,
		`{"schemaVersion":2,"manifests":[]}`:                                   ocispec.MediaTypeImageIndex,
		`no manifest`:                                                          "",
	} {
		d := digest.FromString(text)
		b, _, _ := stored(t, map[string]string{d.Encoded(): text})
		desc, ok := b.manifest(d)
		if ok != (want != "") || desc.MediaType != want || ok && (desc.Digest != d || desc.Size != int64(len(text))) {
			t.Errorf("%s: %+v, %v", text, desc, ok)
		}
	}
}

// nobody is a registry that does not answer.
type nobody struct{ remotes.Resolver }

func (nobody) Fetcher(context.Context, string) (remotes.Fetcher, error) {
	return remotes.FetcherFunc(func(context.Context, ocispec.Descriptor) (io.ReadCloser, error) { return nil, io.ErrClosedPipe }), nil
}

// TestStoreChangedUnderHands: a blob that was given out, and then did not fit,
// is forgotten: file and half-done ingest.
func TestStoreChangedUnderHands(t *testing.T) {
	const text = "a layer"
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromString(text), Size: int64(len(text))}
	b, dir, _ := stored(t, map[string]string{desc.Digest.Encoded(): text})
	into, err := local.NewStore(t.TempDir())
	check(t, err)
	s := b.before(nobody{})
	if s.forget(t.Context(), into) {
		t.Error("nothing was given out yet")
	}
	fetcher, err := s.Fetcher(t.Context(), "x")
	check(t, err)
	r, err := fetcher.Fetch(t.Context(), desc)
	check(t, err)
	r.Close()
	key := remotes.MakeRefKey(t.Context(), desc)
	w, err := content.OpenWriter(t.Context(), into, content.WithRef(key), content.WithDescriptor(desc))
	check(t, err)
	if _, err := w.Write([]byte("another")); err != nil {
		t.Fatal(err)
	}
	check(t, w.Close())
	if !s.forget(t.Context(), into) {
		t.Error("what was given out is not known")
	}
	if _, err := into.Status(t.Context(), key); !errdefs.IsNotFound(err) {
		t.Errorf("the ingest goes on: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, desc.Digest.Encoded())); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is still there: %v", err)
	}
	if _, err := fetcher.Fetch(t.Context(), desc); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("the registry was not asked: %v", err)
	}
}

// TestImageStore: what a boot pulled is not pulled again, whoever deleted or
// changed it in between; each pull is a daemon's that has nothing.
func TestImageStore(t *testing.T) {
	hub := newHub(t)
	var asked atomic.Int32
	var off atomic.Bool
	hub.mangl = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			asked.Add(1)
		}
		if off.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		return off.Load()
	}
	img := busybox(t, nil)
	one := hub.push(t, "one", img)
	two := hub.push(t, "two", busybox(t, func(c *v1.ConfigFile) { c.Config.Env = append(c.Config.Env, "TWO=2") }))
	volume := t.TempDir()
	files := func() []string {
		t.Helper()
		all, err := filepath.Glob(filepath.Join(volume, blobsFolder, "*"))
		check(t, err)
		return all
	}
	pull := func(ref string) error {
		t.Helper()
		b := &bench{daemon: newDaemon(t), hub: hub, out: &sink{text: map[string]*bytes.Buffer{}}}
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
		defer cancel()
		w, err := New(ctx, b.options(t, project(t, "services:\n  a:\n    network_mode: none\n    stop_grace_period: 1s\n    image: "+ref+"\n", nil)))
		check(t, err)
		defer b.down(t, w)
		w.UseStore(volume)
		if _, err := w.Resolve(ctx); err != nil {
			return err
		}
		if err := w.Pull(ctx); err != nil {
			return err
		}
		return w.Start(ctx)
	}
	check(t, pull(one))
	if n := len(files()); n != 3 || asked.Load() == 0 {
		t.Fatalf("%d blobs are kept after %d were asked for, want manifest, configuration and layer", n, asked.Load())
	}
	off.Store(true)
	check(t, pull(one))

	off.Store(false)
	asked.Store(0)
	for i, f := range files() {
		text, err := os.ReadFile(f)
		check(t, err)
		text[len(text)/2] ^= 1
		check(t, os.WriteFile(f, text, 0o600))
		if i == 0 { // its name is not a digest's
			check(t, os.WriteFile(filepath.Join(filepath.Dir(f), "left"), text, 0o600))
		}
	}
	check(t, pull(one))
	if asked.Load() == 0 {
		t.Error("changed blobs were taken")
	}
	off.Store(true)
	check(t, pull(one))
	if n := len(files()); n != 3 {
		t.Errorf("%d files: %v", n, files())
	}
	check(t, os.Truncate(files()[0], 5))
	if err := pull(one); err == nil || hpl.From(err).Code != "HPL06004E" {
		t.Errorf("a cut blob and no registry: %v", err)
	}
	off.Store(false)
	check(t, pull(two))
	off.Store(true)
	if err := pull(one); err == nil {
		t.Error("an image that the contract no longer names is still kept")
	}
	check(t, pull(two))
}
