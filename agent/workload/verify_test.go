package workload

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	ggcr "github.com/google/go-containerregistry/pkg/v1/types"

	"hpcr/agent/hpl"
	"hpcr/contract/archive"
	"hpcr/contract/compose"
	"hpcr/contract/trust"
)

// gpgHome is a GPG home with one key, made by gpg. It returns its public key.
func gpgHome(t *testing.T) (string, []byte) {
	t.Helper()
	home := t.TempDir()
	if err := os.Chmod(home, 0o700); err != nil {
		t.Fatal(err)
	}
	command(t, home, "gpg", "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", "", "--quick-gen-key", "signer@example.com", "rsa2048", "sign", "never")
	t.Cleanup(func() {
		cmd := exec.Command("gpgconf", "--kill", "all")
		cmd.Env = append(os.Environ(), "GNUPGHOME="+home)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("end gpg-agent: %v: %s", err, out)
		}
	})
	return home, command(t, home, "gpg", "--batch", "--armor", "--export", "signer@example.com")
}

func command(t *testing.T, home, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.Env = append(os.Environ(), "GNUPGHOME="+home)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v: %s (install the test tools with 'make deps')", name, err, stderr.Bytes())
	}
	return out
}

// skopeoSigns lets skopeo sign an image of the hub in place, as its users do:
// the signature goes to the lookaside store, a folder.
func skopeoSigns(t *testing.T, hub *testHub, home, tag, store string) {
	t.Helper()
	conf := t.TempDir()
	policy := filepath.Join(conf, "policy.json")
	if err := os.WriteFile(policy, []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(conf, "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	// Debian's skopeo 1.9 knows the old name of the field as well.
	yaml := fmt.Sprintf("default-docker:\n  sigstore-staging: file://%s\n", store)
	if err := os.WriteFile(filepath.Join(conf, "d", "default.yaml"), []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	command(t, home, "skopeo", "--policy", policy, "--registries.d", filepath.Join(conf, "d"), "copy", "--quiet",
		"--src-tls-verify=false", "--dest-tls-verify=false", "--src-creds", user+":"+password, "--dest-creds", user+":"+password,
		"--sign-by", "signer@example.com", "docker://"+tag, "docker://"+tag)
}

// signingHub serves lookaside signatures out of a folder, or by the extension.
func signingHub(t *testing.T, extension bool) (*testHub, string) {
	t.Helper()
	hub, store := newHub(t), t.TempDir()
	hub.mangl = func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case r.URL.Path == "/v2/" && extension:
			w.Header().Set("X-Registry-Supports-Signatures", "1")
			return true
		case strings.HasPrefix(r.URL.Path, "/extensions/v2/") && extension:
			repo, digest, ok := strings.Cut(strings.TrimPrefix(r.URL.Path, "/extensions/v2/"), "/signatures/")
			s, err := os.ReadFile(filepath.Join(store, repo+"@"+strings.Replace(digest, ":", "=", 1), "signature-1"))
			list := map[string]any{"signatures": []any{map[string]any{"schemaVersion": 1, "type": "other"}}}
			if err == nil && ok {
				list["signatures"] = append(list["signatures"].([]any), map[string]any{"schemaVersion": 2, "name": digest + "@1", "type": "atomic", "content": s})
			}
			_ = json.NewEncoder(w).Encode(list)
			return true
		}
		return false
	}
	if extension {
		return hub, store
	}
	hub.open = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasPrefix(r.URL.Path, "/sigstore/") {
			return false
		}
		if _, _, sent := r.BasicAuth(); sent {
			t.Error("the registry's password was sent to the lookaside server")
		}
		http.StripPrefix("/sigstore/", http.FileServer(http.Dir(store))).ServeHTTP(w, r)
		return true
	}
	return hub, store
}

// asks resolves one service's image under a policy.
func (b *bench) asks(t *testing.T, image string, p trust.Policy) ([]Verified, error) {
	t.Helper()
	project, err := compose.Load([]archive.File{{Name: "docker-compose.yaml", Mode: 0o644, Data: []byte("services: {a: {image: '" + image + "'}}")}},
		nil, compose.Options{Trust: p})
	if err != nil {
		t.Fatal(err)
	}
	o := b.options(t, project)
	o.Trust = p
	if b.hub.open != nil {
		o.Lookaside = map[string]string{b.hub.host: "https://" + b.hub.host + "/sigstore"}
	}
	w, err := New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer b.down(t, w)
	got, err := w.Resolve(t.Context())
	if err != nil {
		if pull := w.Pull(t.Context()); pull == nil {
			t.Error("what did not resolve can be pulled")
		}
		return nil, err
	}
	if err := w.Pull(t.Context()); err != nil {
		t.Errorf("what was verified cannot be pulled: %v", err)
	}
	return got, nil
}

func refused(t *testing.T, err error, want string) {
	t.Helper()
	var e *hpl.Error
	if !errors.As(err, &e) || e.Code != "HPL06004E" || e.Path != "/workload/compose/services/#1/image" || !strings.Contains(e.Detail, want) {
		t.Errorf("got %v, want HPL06004E with %q", err, want)
	}
}

// Signed by skopeo with gpg, served both ways.
func TestSimpleSigning(t *testing.T) {
	home, key := gpgHome(t)
	_, strangers := gpgHome(t)
	for _, extension := range []bool{false, true} {
		t.Run(map[bool]string{false: "lookaside", true: "extension"}[extension], func(t *testing.T) {
			hub, store := signingHub(t, extension)
			b := &bench{daemon: newDaemon(t), hub: hub, out: &sink{text: map[string]*bytes.Buffer{}}}
			pinned := hub.push(t, "team/app", busybox(t, nil))
			tag, digest, _ := strings.Cut(pinned, "@")
			name := strings.TrimSuffix(tag, ":1")
			policy := trust.Policy{{Kind: trust.RHS, Ref: name, Key: key}}

			_, err := b.asks(t, tag, policy)
			refused(t, err, "no signature")
			skopeoSigns(t, hub, home, tag, store)
			got, err := b.asks(t, tag, policy)
			if err != nil || len(got) != 1 || got[0].Ref != name+"@"+digest || got[0].By != "images.rhs "+policy[0].Fingerprint() {
				t.Fatalf("got %v, %v", got, err)
			}
			_, err = b.asks(t, tag, trust.Policy{{Kind: trust.RHS, Ref: name, Key: strangers}})
			refused(t, err, "not signed by the contract's key")
			// The tag now names another image, which nobody signed.
			hub.push(t, "team/app", busybox(t, func(c *v1.ConfigFile) { c.Config.Cmd = []string{"evil"} }))
			_, err = b.asks(t, tag, policy)
			refused(t, err, "no signature")
			// The old signature, put where the new image's would lie.
			other := strings.Replace(digestOfTag(t, hub, "team/app"), ":", "=", 1)
			old := filepath.Join(store, "team/app@"+strings.Replace(digest, ":", "=", 1))
			if err := os.CopyFS(filepath.Join(store, "team/app@"+other), os.DirFS(old)); err != nil {
				t.Fatal(err)
			}
			_, err = b.asks(t, tag, policy)
			refused(t, err, "for another digest")
			// A signature for a tag is none for its neighbour.
			if err := os.RemoveAll(filepath.Join(store, "team/app@"+other)); err != nil {
				t.Fatal(err)
			}
			hub.retag(t, "team/app", digest, "2")
			_, err = b.asks(t, name+":2", policy)
			refused(t, err, "another name or tag")
		})
	}
}

func TestCosign(t *testing.T) {
	b := newBench(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pinned := b.hub.push(t, "team/app", busybox(t, nil))
	tag, digest, _ := strings.Cut(pinned, "@")
	name := strings.TrimSuffix(tag, ":1")
	policy := trust.Policy{{Kind: trust.Cosign, Ref: b.hub.host + "/*", Key: publicPEM(t, key.Public())}}

	_, err = b.asks(t, tag, policy)
	refused(t, err, "no signature")
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b.hub.cosign(t, "team/app", digest, cosignPayload(name, digest), stranger)
	_, err = b.asks(t, tag, policy)
	refused(t, err, "not signed by the contract's key")
	b.hub.cosign(t, "team/app", digest, cosignPayload(name, digest), stranger, key)
	for _, image := range []string{tag, pinned, name + "@" + digest} {
		got, err := b.asks(t, image, policy)
		if err != nil || len(got) != 1 || got[0].Ref != name+"@"+digest || got[0].By != "x-hpcr.images.cosign "+policy[0].Fingerprint() {
			t.Errorf("%s: got %v, %v", image, got, err)
		}
	}
	b.hub.cosign(t, "team/app", digest, cosignPayload(b.hub.host+"/team/other", digest), key)
	_, err = b.asks(t, pinned, policy)
	refused(t, err, "another name or tag")
	b.hub.cosign(t, "team/app", digest, cosignPayload(name, "sha256:"+strings.Repeat("1", 64)), key)
	_, err = b.asks(t, pinned, policy)
	refused(t, err, "another digest")
	// A tag that does not exist, and one whose digest is refused without a rule.
	_, err = b.asks(t, name+":9", policy)
	refused(t, err, "does not know this tag")
}

// Both kinds of keys for one image: both signatures are needed.
func TestTwoRules(t *testing.T) {
	home, gpg := gpgHome(t)
	hub, store := signingHub(t, false)
	b := &bench{daemon: newDaemon(t), hub: hub, out: &sink{text: map[string]*bytes.Buffer{}}}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tag, digest, _ := strings.Cut(hub.push(t, "team/app", busybox(t, nil)), "@")
	name := strings.TrimSuffix(tag, ":1")
	policy := trust.Policy{{Kind: trust.RHS, Ref: name, Key: gpg}, {Kind: trust.Cosign, Ref: name, Key: publicPEM(t, key.Public())}}
	skopeoSigns(t, hub, home, tag, store)
	_, err = b.asks(t, tag, policy)
	refused(t, err, "no signature")
	hub.cosign(t, "team/app", digest, cosignPayload(name, digest), key)
	got, err := b.asks(t, tag, policy)
	if err != nil || !strings.HasPrefix(got[0].By, "images.rhs ") || !strings.Contains(got[0].By, ", x-hpcr.images.cosign ") {
		t.Errorf("got %v, %v", got, err)
	}
}

func cosignPayload(ref, digest string) []byte {
	return fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":%q},"image":{"docker-manifest-digest":%q},"type":"cosign container image signature"},"optional":null}`, ref, digest)
}

func publicPEM(t *testing.T, key crypto.PublicKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// cosign pushes an image as cosign's tag form has it, with a signature of each
// key in order.
func (h *testHub) cosign(t *testing.T, repo, digest string, payload []byte, keys ...*ecdsa.PrivateKey) {
	t.Helper()
	img := mutate.MediaType(empty.Image, ggcr.OCIManifestSchema1)
	for _, key := range keys {
		sum := sha256.Sum256(payload)
		s, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
		if err != nil {
			t.Fatal(err)
		}
		img, err = mutate.Append(img, mutate.Addendum{
			Layer:       static.NewLayer(payload, trust.CosignPayload),
			Annotations: map[string]string{trust.CosignAnnotation: base64.StdEncoding.EncodeToString(s)},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	h.put(t, h.host+"/"+repo+":"+strings.Replace(digest, ":", "-", 1)+".sig", img)
}
