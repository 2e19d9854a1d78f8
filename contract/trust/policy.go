package trust

import (
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
)

// Kind is the field of the contract that a rule stands in. It is also what the
// record and contract explain name as verifiedBy.
type Kind string

// The kinds of rules.
const (
	RHS    Kind = "images.rhs"           // GPG simple signing (containers-signature(5))
	Cosign Kind = "x-hpcr.images.cosign" // cosign with a key pair, no transparency log
)

// Bounds on a policy.
const (
	MaxRules = 64
	MaxKey   = 64 << 10 // bytes
	maxRef   = 512
)

// Rule says that the images of a reference must be signed by a key.
type Rule struct {
	Kind Kind   `json:"kind"`
	Ref  string `json:"ref"` // as the contract has it
	Key  []byte `json:"key"` // RHS: OpenPGP, armored or binary; Cosign: PEM "PUBLIC KEY"
}

// Image is what a container names: a normalised name ("docker.io/library/nginx"),
// a tag ("" = none) and a literal digest ("sha256:…", "" = none).
type Image struct {
	Name, Tag, Digest string
	Pod               bool // of a pod, not of a compose project
}

// ParseImage reads a reference. One with neither tag nor digest means the tag
// "latest", as everywhere.
func ParseImage(text string) (Image, bool) {
	named, err := parse(text)
	if err != nil {
		return Image{}, false
	}
	named = reference.TagNameOnly(named)
	img := Image{Name: name(named)}
	if t, ok := named.(reference.Tagged); ok {
		img.Tag = t.Tag()
	}
	if d, ok := named.(reference.Digested); ok {
		if img.Digest = d.Digest().String(); !strings.HasPrefix(img.Digest, "sha256:") {
			return Image{}, false
		}
	}
	return img, true
}

// NewImage is for a name that is normalised already.
func NewImage(name, tag, digest string, pod bool) Image {
	if host, path, ok := strings.Cut(name, "/"); ok {
		name = strings.ToLower(host) + "/" + path
	}
	return Image{name, tag, digest, pod}
}

var errRef = errors.New("not an image reference")

func parse(text string) (reference.Named, error) {
	if len(text) > maxRef {
		return nil, errRef
	}
	return reference.ParseNormalizedNamed(text)
}

// name is a repository's name with its host in lower case: host names that
// differ in case only are one host, and a key must not be missed for that.
func name(n reference.Named) string {
	return strings.ToLower(reference.Domain(n)) + "/" + reference.Path(n)
}

// scope is what a rule's reference covers.
type scope struct {
	Image
	below bool // all repositories below Name, which ends in "/"
}

// ParseRef reads the reference of a rule: NAME is every image of a repository;
// NAME:TAG, NAME@DIGEST or NAME:TAG@DIGEST one. With Cosign NAME/* is all
// repositories below.
func (r Rule) ParseRef() error {
	_, err := r.scope()
	return err
}

func (r Rule) scope() (scope, error) {
	if base, ok := strings.CutSuffix(r.Ref, "/*"); ok && r.Kind == Cosign {
		host, _, nested := strings.Cut(base, "/")
		if !nested { // a registry alone
			host, base = base, base+"/x"
		}
		n, err := parse(base)
		if err != nil || !reference.IsNameOnly(n) || !strings.EqualFold(reference.Domain(n), host) {
			return scope{}, errRef
		}
		prefix := name(n) + "/"
		if !nested {
			prefix = strings.TrimSuffix(prefix, "x/")
		}
		return scope{Image{Name: prefix}, true}, nil
	}
	n, err := parse(r.Ref)
	if err != nil {
		return scope{}, errRef
	}
	s := scope{Image: Image{Name: name(n)}}
	if t, ok := n.(reference.Tagged); ok {
		s.Tag = t.Tag()
	}
	if d, ok := n.(reference.Digested); ok {
		s.Digest = d.Digest().String()
	}
	return s, nil
}

// fits says how closely a scope covers an image; 0 = not at all.
func (s scope) fits(i Image) int {
	switch {
	case s.below && strings.HasPrefix(i.Name, s.Name):
		return len(s.Name)
	case s.below, s.Name != i.Name, s.Tag != "" && s.Tag != i.Tag, s.Digest != "" && s.Digest != i.Digest:
		return 0
	}
	n := maxRef + 1
	if s.Tag != "" {
		n++
	}
	if s.Digest != "" {
		n += 2
	}
	return n
}

// Policy is all rules of a contract.
type Policy []Rule

// For returns the rules that an image must satisfy, all of them: of each kind
// the one whose reference is closest. None means that only a literal digest
// can vouch for the image. A compose image with a literal digest has no rule of
// images.rhs, as in HPCR, whose Docker looks at the digest alone; a pod's has,
// for Podman looks at both.
func (p Policy) For(i Image) []Rule {
	var out []Rule
	for _, kind := range []Kind{RHS, Cosign} {
		if kind == RHS && i.Digest != "" && !i.Pod {
			continue
		}
		best, at := 0, -1
		for n, r := range p {
			if r.Kind != kind {
				continue
			}
			s, err := r.scope()
			if err != nil {
				continue // refused by Check
			}
			if fit := s.fits(i); fit > best {
				best, at = fit, n
			}
		}
		if at >= 0 {
			out = append(out, p[at])
		}
	}
	return out
}

// Check is for a policy that came out of another process.
func (p Policy) Check() error {
	if len(p) > MaxRules {
		return errors.New("too many rules")
	}
	for i, r := range p {
		if err := errors.Join(r.ParseRef(), r.CheckKey()); err != nil {
			return err
		}
		if slices.ContainsFunc(p[:i], r.Same) {
			return errors.New("two rules for one reference")
		}
	}
	return nil
}

// Same says whether two rules are for one reference, however it is written.
func (r Rule) Same(o Rule) bool {
	a, aerr := r.scope()
	b, berr := o.scope()
	return r.Kind == o.Kind && aerr == nil && berr == nil && a == b
}

// CheckKey says whether the key can be used at all.
func (r Rule) CheckKey() error {
	if len(r.Key) > MaxKey {
		return errors.New("the key is larger than 64 KiB")
	}
	switch r.Kind {
	case RHS:
		_, err := keyRing(r.Key)
		return err
	case Cosign:
		_, err := publicKey(r.Key)
		return err
	}
	return errors.New("unknown kind of rule")
}

// Verify says whether a signature by the rule's key is about the image of this
// digest. A nil error is the only yes; others are *Error.
func (r Rule) Verify(s Signature, i Image, digest string, now func() time.Time) error {
	if len(s.Payload) > maxPayload || len(s.Signature) > MaxSignature {
		return refuse(rankFormat, "the image's signature is too large", nil)
	}
	var claims payload
	switch r.Kind {
	case RHS:
		text, err := r.openPGP(s.Signature, now)
		if err != nil {
			return err
		}
		if claims, err = parsePayload(text, simpleType); err != nil {
			return err
		}
	case Cosign:
		if err := r.verifyCosign(s); err != nil {
			return err
		}
		var err error
		if claims, err = parsePayload(s.Payload, cosignType); err != nil {
			return err
		}
	default:
		return refuse(rankFormat, "this kind of signature is not known", nil)
	}
	return claims.about(r.Kind, i, digest)
}
