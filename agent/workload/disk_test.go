package workload

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/pem"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"hpcr/contract/archive"
	"hpcr/contract/compose"
	"hpcr/contract/trust"
	"hpcr/disk/images"
	"hpcr/disk/images/pack"
)

// imageDisk is a disk in memory, read as the child reads one.
type imageDisk struct {
	*images.Layout
	bytes []byte
	reads map[string]int
	lies  func(key string, nth int, p []byte) error // of the nth read of a blob
}

func (d *imageDisk) Size(key string) (int64, bool) {
	s, ok := d.Blobs[key]
	return s.Size, ok
}

func (d *imageDisk) Named(name string) (string, bool) {
	key, ok := d.Names[name]
	return key, ok
}

func (d *imageDisk) ReadBlob(key string, p []byte, at int64) (int, error) {
	s := d.Blobs[key]
	n := copy(p, d.bytes[s.Start+at:s.Start+s.Size])
	if at == 0 {
		d.reads[key]++
	}
	if d.lies != nil {
		return n, d.lies(key, d.reads[key], p[:n])
	}
	return n, nil
}

// packs makes a disk of what the hub has.
func (h *testHub) packs(t *testing.T, refs ...string) *imageDisk {
	t.Helper()
	auth := []byte(`{"auths":{"` + h.host + `":{"username":"` + user + `","password":"` + password + `"}}}`)
	from, err := pack.NewRegistries(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: h.ca.Raw}), auth)
	check(t, err)
	set := pack.NewSet([]ocispec.Platform{{OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "s390x"}})
	for _, ref := range refs {
		check(t, set.FromRegistry(t.Context(), from, ref))
	}
	var b bytes.Buffer
	check(t, set.Write(t.Context(), &b, nil))
	l, err := images.Read(bytes.NewReader(b.Bytes()), int64(b.Len()))
	check(t, err)
	return &imageDisk{l, b.Bytes(), map[string]int{}, nil}
}

// from resolves and pulls with a disk.
func (b *bench) from(t *testing.T, d Disk, ref string, p trust.Policy) ([]Verified, error) {
	t.Helper()
	project, err := compose.Load([]archive.File{{Name: "docker-compose.yaml", Mode: 0o644,
		Data: []byte("services: {a: {image: '" + ref + "', network_mode: none, stop_grace_period: 1s}}")}}, nil, compose.Options{Trust: p})
	check(t, err)
	o := b.options(t, project)
	o.Trust = p
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	w, err := New(ctx, o)
	check(t, err)
	defer b.down(t, w)
	w.UseDisk(d)
	got, err := w.Resolve(ctx)
	if err != nil {
		return nil, err
	}
	if err := w.Pull(ctx); err != nil {
		return got, err
	}
	return got, w.Start(ctx)
}

// TestImageDisk: an image of the disk runs without the registry having been
// asked for anything.
func TestImageDisk(t *testing.T) {
	hub := newHub(t)
	ref := hub.push(t, "team/app", busybox(t, nil))
	disk := hub.packs(t, ref)
	var asked atomic.Int32
	hub.open = func(w http.ResponseWriter, _ *http.Request) bool {
		asked.Add(1)
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	}
	_, d, _ := strings.Cut(ref, "@")
	for _, name := range []string{ref, "registry.invalid/other@" + d} {
		b := &bench{daemon: newDaemon(t), hub: hub, out: &sink{text: map[string]*bytes.Buffer{}}}
		got, err := b.from(t, disk, name, nil)
		if err != nil || len(got) != 1 || !got[0].OnDisk || got[0].By != "digest" {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	if n := asked.Load(); n != 0 {
		t.Errorf("the registry was asked %d times", n)
	}
	// What the disk lacks is asked of the registry.
	b := &bench{daemon: newDaemon(t), hub: hub, out: &sink{text: map[string]*bytes.Buffer{}}}
	_, err := b.from(t, disk, hub.host+"/team/app@sha256:"+strings.Repeat("1", 64), nil)
	cause(t, err, "busy or broken")
	_, err = b.from(t, disk, "registry.invalid/app@sha256:"+strings.Repeat("1", 64), nil)
	cause(t, err, "does not hold it, and the registry cannot be reached")
	hub.open = nil
	other := hub.push(t, "team/other", busybox(t, nil))
	got, err := b.from(t, &imageDisk{Layout: &images.Layout{}}, other, nil)
	if err != nil || got[0].OnDisk {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestHostileImageDisk: nothing that the disk says is believed, and the registry
// does not stand in for a disk that lies: the owner hears of it.
func TestHostileImageDisk(t *testing.T) {
	hub := newHub(t)
	ref := hub.push(t, "team/app", busybox(t, nil))
	_, d, _ := strings.Cut(ref, "@")
	b := &bench{daemon: newDaemon(t), hub: hub, out: &sink{text: map[string]*bytes.Buffer{}}}
	manifest, _ := images.Key(d)
	const promised, silent = "other bytes than the digest promises", "does not answer, or cannot be read"
	for sentence, tt := range map[string]struct {
		change func(d *imageDisk, layer string)
		want   string
	}{
		"one bit of the manifest":                       {func(d *imageDisk, _ string) { d.bytes[d.Blobs[manifest].Start] ^= 1 }, promised},
		"one bit of the layer":                          {func(d *imageDisk, l string) { d.bytes[d.Blobs[l].Start+d.Blobs[l].Size/2] ^= 1 }, promised},
		"another blob under the layer's name":           {func(d *imageDisk, l string) { d.Blobs[l] = d.Blobs[manifest] }, promised},
		"another blob under the image's name":           {func(d *imageDisk, l string) { d.Blobs[manifest] = d.Blobs[l] }, promised},
		"a manifest longer than any":                    {func(d *imageDisk, _ string) { d.Blobs[manifest] = images.Span{Size: maxManifest + 1} }, promised},
		"an empty manifest":                             {func(d *imageDisk, _ string) { d.Blobs[manifest] = images.Span{} }, promised},
		"a layer one byte shorter":                      {func(d *imageDisk, l string) { s := d.Blobs[l]; s.Size--; d.Blobs[l] = s }, promised},
		"a layer one byte longer":                       {func(d *imageDisk, l string) { s := d.Blobs[l]; s.Size++; d.Blobs[l] = s }, promised},
		"a disk that fails in the manifest":             {func(d *imageDisk, _ string) { d.lies = fails(manifest, 1) }, silent},
		"a disk that fails in the layer":                {func(d *imageDisk, l string) { d.lies = fails(l, 1) }, silent},
		"a manifest that changes when it is read again": {func(d *imageDisk, _ string) { d.lies = changes(manifest, 2) }, promised},
		"a layer that is another when it is read":       {func(d *imageDisk, l string) { d.lies = changes(l, 1) }, promised},
	} {
		t.Run(sentence, func(t *testing.T) {
			disk := hub.packs(t, ref)
			layer := ""
			for key, s := range disk.Blobs {
				if layer == "" || s.Size > disk.Blobs[layer].Size {
					layer = key
				}
			}
			tt.change(disk, layer)
			asked := 0
			hub.open = func(http.ResponseWriter, *http.Request) bool { asked++; return false }
			defer func() { hub.open = nil }()
			_, err := b.from(t, disk, ref, nil)
			cause(t, err, tt.want)
			if asked > 0 {
				t.Errorf("the registry was asked %d times", asked)
			}
		})
	}
}

func fails(blob string, from int) func(string, int, []byte) error {
	return func(key string, nth int, _ []byte) error {
		if key == blob && nth >= from {
			return io.ErrClosedPipe
		}
		return nil
	}
}

func changes(blob string, from int) func(string, int, []byte) error {
	return func(key string, nth int, p []byte) error {
		if key == blob && nth >= from {
			p[0] ^= 1
		}
		return nil
	}
}

// TestSignedImageDisk: a tag of the disk counts for what cosign's key signed, and
// the signature comes from the disk too.
func TestSignedImageDisk(t *testing.T) {
	hub := newHub(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	pinned := hub.push(t, "team/app", busybox(t, nil))
	tag, d, _ := strings.Cut(pinned, "@")
	name := strings.TrimSuffix(tag, ":1")
	policy := trust.Policy{{Kind: trust.Cosign, Ref: name, Key: publicPEM(t, key.Public())}}
	unsigned := hub.packs(t, tag)
	hub.cosign(t, "team/app", d, cosignPayload(name, d), key)
	signed := hub.packs(t, pinned)
	otherTag, _, _ := strings.Cut(hub.push(t, "team/other", busybox(t, func(c *v1.ConfigFile) { c.Config.Cmd = []string{"evil"} })), "@")
	other := hub.packs(t, otherTag)
	hub.open = func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusNotFound)
		return true
	}
	b := &bench{daemon: newDaemon(t), hub: hub, out: &sink{text: map[string]*bytes.Buffer{}}}
	got, err := b.from(t, signed, tag, policy)
	if err != nil || got[0].Ref != name+"@"+d || !got[0].OnDisk || got[0].By != "x-hpcr.images.cosign "+policy[0].Fingerprint() {
		t.Errorf("%+v, %v", got, err)
	}
	_, err = b.from(t, unsigned, tag, policy)
	refused(t, err, "no signature")
	// The host moves the tag; nobody signed what it names then.
	signed.Names[tag] = other.Names[otherTag]
	for key, s := range other.Blobs {
		signed.Blobs[key] = images.Span{Start: s.Start + int64(len(signed.bytes)), Size: s.Size}
	}
	signed.bytes = append(bytes.Clone(signed.bytes), other.bytes...)
	_, err = b.from(t, signed, tag, policy)
	refused(t, err, "no signature")
}
