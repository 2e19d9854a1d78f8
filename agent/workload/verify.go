package workload

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"hpcr/contract/compose"
	"hpcr/contract/trust"
)

// Bounds on what a registry says about signatures.
const (
	maxSignatures = 16
	maxSigIndex   = 1 << 20 // of a cosign manifest, or the list of the extension
)

var errNoTag = errors.New("unknown tag")

// proven is an image whose digest is settled: literal, or signed for.
type proven struct{ digest, by string }

// resolve asks for an image's digest and for the signatures that the contract
// wants of it. A tag is the registry's word only until one is found: what is
// pulled afterwards is the digest that was signed.
func (w *Workload) resolve(ctx context.Context, s *service, reg *registries, b *blobs) (proven, error) {
	def := s.def
	_, desc, err := b.before(reg.resolver).Resolve(ctx, def.Image.Ref())
	switch {
	case err != nil && def.Image.Digest == "" && errdefs.IsNotFound(err):
		return proven{}, fmt.Errorf("%w: %w", errNoTag, err)
	case err != nil:
		return proven{}, err
	case def.Image.Digest != "" && desc.Digest.String() != def.Image.Digest:
		return proven{}, errOtherDigest
	case desc.Digest.Algorithm() != digest.SHA256:
		return proven{}, errOtherDigest
	}
	rules := w.opt.Trust.For(def.Signed())
	if len(rules) == 0 {
		if def.Image.Digest == "" {
			return proven{}, trust.Unsigned()
		}
		return proven{def.Image.Digest, "digest"}, nil
	}
	out := proven{digest: desc.Digest.String()}
	var by []string
	for _, r := range rules {
		found, err := w.verify(ctx, reg, def, r, desc)
		if err != nil {
			return proven{}, err
		}
		// Podman's signers sign each platform's manifest of an index: then that
		// is what is pulled. The index names it, so another rule may be about
		// the index.
		if found.Digest != desc.Digest {
			out.digest = found.Digest.String()
		}
		by = append(by, string(r.Kind)+" "+r.Fingerprint())
	}
	out.by = strings.Join(by, ", ")
	return out, nil
}

// verify returns the descriptor that a signature by the rule's key vouches for:
// the image's, or that of this machine's manifest in it.
func (w *Workload) verify(ctx context.Context, reg *registries, def *compose.Service, r trust.Rule, desc ocispec.Descriptor) (ocispec.Descriptor, error) {
	fetch := reg.cosign
	if r.Kind == trust.RHS {
		fetch = reg.simple
	}
	var closest *trust.Error
	try := func(desc ocispec.Descriptor) (bool, error) {
		signatures, err := fetch(ctx, def.Image, desc.Digest)
		if err != nil {
			return false, err
		}
		for _, s := range signatures {
			err := r.Verify(s, def.Signed(), desc.Digest.String(), w.opt.Now)
			if err == nil {
				return true, nil
			}
			var why *trust.Error
			if !errors.As(err, &why) {
				return false, err
			}
			closest = trust.Closest(closest, why)
		}
		return false, nil
	}
	ok, err := try(desc)
	if err != nil || ok {
		return desc, err
	}
	if r.Kind == trust.RHS && images.IsIndexType(desc.MediaType) {
		if desc, err = reg.ofPlatform(ctx, def, desc); err != nil {
			return desc, err
		}
		if ok, err = try(desc); err != nil || ok {
			return desc, err
		}
	}
	if closest == nil {
		closest = trust.Unsigned()
	}
	return desc, closest
}

// platform is what of an image this machine takes for a service.
func platform(def *compose.Service) (platforms.MatchComparer, error) {
	if def.Platform == "" {
		return platforms.Default(), nil
	}
	p, err := platforms.Parse(def.Platform)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errPlatform, err)
	}
	if !platforms.Default().Match(p) {
		return nil, errPlatform
	}
	return platforms.Only(p), nil
}

// ofPlatform finds this machine's manifest in an index.
func (g *registries) ofPlatform(ctx context.Context, def *compose.Service, desc ocispec.Descriptor) (ocispec.Descriptor, error) {
	match, err := platform(def)
	if err != nil {
		return desc, err
	}
	text, err := g.blob(ctx, def.Image.Name+"@"+desc.Digest.String(), desc, maxManifest)
	if err != nil {
		return desc, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(text, &index); err != nil {
		return desc, fmt.Errorf("image index: %w", err)
	}
	best := -1
	for i, m := range index.Manifests {
		if m.Platform == nil || !match.Match(*m.Platform) || m.Digest.Validate() != nil || m.Digest.Algorithm() != digest.SHA256 {
			continue
		}
		if best < 0 || match.Less(*m.Platform, *index.Manifests[best].Platform) {
			best = i
		}
	}
	if best < 0 {
		return desc, errPlatform
	}
	return index.Manifests[best], nil
}

// blob fetches what a descriptor names: of its size, and of its digest.
func (g *registries) blob(ctx context.Context, ref string, desc ocispec.Descriptor, limit int64) ([]byte, error) {
	if desc.Size < 0 || desc.Size > limit {
		return nil, fmt.Errorf("%w: %d bytes announced", errOtherDigest, desc.Size)
	}
	f, err := g.resolver.Fetcher(ctx, ref)
	if err != nil {
		return nil, err
	}
	return readBlob(ctx, f, desc)
}

func readBlob(ctx context.Context, f remotes.Fetcher, desc ocispec.Descriptor) ([]byte, error) {
	r, err := f.Fetch(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	text, err := io.ReadAll(io.LimitReader(r, desc.Size+1))
	if err != nil {
		return nil, err
	}
	if int64(len(text)) != desc.Size || digest.FromBytes(text) != desc.Digest {
		return nil, errOtherDigest
	}
	return text, nil
}

// cosign collects the signatures of an image's digest: the layers of the image
// sha256-HEX.sig beside it. Layers of other kinds are passed over.
func (g *registries) cosign(ctx context.Context, img compose.Image, d digest.Digest) ([]trust.Signature, error) {
	ref := img.Name + ":" + d.Algorithm().String() + "-" + d.Encoded() + ".sig"
	_, desc, err := g.resolver.Resolve(ctx, ref)
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	text, err := g.blob(ctx, img.Name+"@"+desc.Digest.String(), desc, maxSigIndex)
	if err != nil {
		return nil, err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(text, &m); err != nil {
		return nil, fmt.Errorf("%w: cosign manifest: %w", errOtherDigest, err)
	}
	var out []trust.Signature
	for _, l := range m.Layers {
		if l.MediaType != trust.CosignPayload || l.Digest.Validate() != nil || l.Digest.Algorithm() != digest.SHA256 || len(out) == maxSignatures {
			continue
		}
		s, err := base64.StdEncoding.DecodeString(l.Annotations[trust.CosignAnnotation])
		if err != nil {
			continue
		}
		payload, err := g.blob(ctx, img.Name+"@"+l.Digest.String(), l, trust.MaxSignature)
		if err != nil {
			return nil, err
		}
		out = append(out, trust.Signature{Payload: payload, Signature: s})
	}
	return out, nil
}
