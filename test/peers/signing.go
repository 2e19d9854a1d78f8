package peers

import (
	"bytes"
	"context"
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

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// GPG is a signer of images: Debian's gpg with a home and a key of its own, and
// skopeo.
type GPG struct {
	PublicKey   []byte // armored
	Fingerprint string // in lower case

	home string
}

// NewGPG makes a key. Its home has a short name: a socket lies in it. Close ends
// gpg's agent.
func NewGPG(ctx context.Context) (*GPG, error) {
	home, err := os.MkdirTemp("", "gpg")
	if err != nil {
		return nil, fmt.Errorf("make a GPG home: %w", err)
	}
	g := &GPG{home: home}
	const who = "signer@example.com"
	if _, err := g.run(ctx, "gpg", "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", "", "--quick-gen-key", who, "rsa2048", "sign", "never"); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	if g.PublicKey, err = g.run(ctx, "gpg", "--batch", "--armor", "--export", who); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	list, err := g.run(ctx, "gpg", "--batch", "--with-colons", "--list-keys", who)
	if err != nil {
		return nil, errors.Join(err, g.Close())
	}
	for line := range strings.Lines(string(list)) {
		if f := strings.Split(line, ":"); f[0] == "fpr" && len(f) > 9 && g.Fingerprint == "" {
			g.Fingerprint = strings.ToLower(f[9])
		}
	}
	return g, nil
}

// Sign is skopeo's simple signature of an image under a reference.
func (g *GPG) Sign(ctx context.Context, image *Image, reference string) ([]byte, error) {
	manifest, out := filepath.Join(g.home, "manifest"), filepath.Join(g.home, "signature")
	if err := os.WriteFile(manifest, image.Manifest, 0o600); err != nil {
		return nil, fmt.Errorf("sign an image: %w", err)
	}
	if _, err := g.run(ctx, "skopeo", "standalone-sign", "--output", out, manifest, reference, strings.ToUpper(g.Fingerprint)); err != nil {
		return nil, err
	}
	signature, err := os.ReadFile(out)
	if err != nil {
		return nil, fmt.Errorf("sign an image: %w", err)
	}
	return signature, nil
}

// Close ends gpg's agent and removes its home.
func (g *GPG) Close() error {
	_, err := g.run(context.Background(), "gpgconf", "--kill", "all")
	return errors.Join(err, os.RemoveAll(g.home))
}

func (g *GPG) run(ctx context.Context, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.Env = append(os.Environ(), "GNUPGHOME="+g.home)
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", name, err, stderr.Bytes())
	}
	return out, nil
}

// Cosign is a key pair as cosign generate-key-pair makes it.
type Cosign struct {
	PublicKey []byte // PEM

	key *ecdsa.PrivateKey
}

// NewCosign makes a key pair.
func NewCosign() (*Cosign, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a cosign key: %w", err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("encode a cosign key: %w", err)
	}
	return &Cosign{PublicKey: pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), key: key}, nil
}

// Fingerprint is SHA-256 of the key's DER form, in hex.
func (c *Cosign) Fingerprint() string {
	block, _ := pem.Decode(c.PublicKey)
	return fmt.Sprintf("%x", sha256.Sum256(block.Bytes))
}

// Sign pushes what cosign sign --key pushes for an image of the registry: an
// image sha256-HEX.sig beside it, whose layer is the signed payload, with the
// signature as the layer's annotation (cosign's SIGNATURE_SPEC).
func (c *Cosign) Sign(ctx context.Context, r *Registry, repo string, image *Image) error {
	payload := fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":%q},"image":{"docker-manifest-digest":%q},"type":"cosign container image signature"},"optional":null}`,
		r.Guest()+"/"+repo, image.Digest())
	sum := sha256.Sum256(payload)
	signature, err := ecdsa.SignASN1(rand.Reader, c.key, sum[:])
	if err != nil {
		return fmt.Errorf("sign as cosign does: %w", err)
	}
	layer := descriptor("application/vnd.dev.cosign.simplesigning.v1+json", payload)
	layer.Annotations = map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(signature)}
	config, err := json.Marshal(v1.Image{RootFS: v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{layer.Digest}}})
	if err != nil {
		return fmt.Errorf("encode cosign's configuration: %w", err)
	}
	manifest, err := json.Marshal(v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest,
		Config: descriptor(v1.MediaTypeImageConfig, config), Layers: []v1.Descriptor{layer},
	})
	if err != nil {
		return fmt.Errorf("encode cosign's manifest: %w", err)
	}
	signed := &Image{Manifest: manifest, MediaType: v1.MediaTypeImageManifest, Blobs: [][]byte{config, payload}}
	if _, err := r.Push(ctx, repo, signed); err != nil {
		return err
	}
	return r.Tag(ctx, repo, strings.Replace(image.Digest(), ":", "-", 1)+".sig", signed)
}

// Tag gives an image that was pushed a tag.
func (r *Registry) Tag(ctx context.Context, repo, tag string, image *Image) error {
	return r.do(ctx, http.MethodPut, "/v2/"+repo+"/manifests/"+tag, image.MediaType, image.Manifest, http.StatusCreated, nil)
}

// Lookaside is the path below which the registry serves simple signatures, to
// everybody.
const Lookaside = "/sigstore"

// Keep puts a simple signature of an image where Podman looks for it.
func (r *Registry) Keep(repo string, image *Image, signature []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.signatures == nil {
		r.signatures = map[string][]byte{}
	}
	r.signatures[Lookaside+"/"+repo+"@"+strings.Replace(image.Digest(), ":", "=", 1)+"/signature-1"] = signature
}

// signature answers a question for one.
func (r *Registry) signature(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	text, ok := r.signatures[req.URL.Path]
	r.mu.Unlock()
	if !ok {
		http.NotFound(w, req)
		return
	}
	_, _ = w.Write(text) // a guest that goes away is a scenario's own doing
}
