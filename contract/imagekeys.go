package contract

import (
	"encoding/base64"
	"net/url"
	"slices"
	"strings"

	"hpcr/agent/hpl"
	"hpcr/contract/compose"
	"hpcr/contract/trust"
)

// imageKey is one key that images are to be signed with, and where it stands.
type imageKey struct {
	trust.Rule
	place at
	err   error // why the key cannot be used
}

const badImageKey hpl.Code = "HPL16002E"

func (r *run) images(im at) {
	if !im.present() || !r.mapping(im) {
		return
	}
	r.closed(im, "dct", "rhs")
	r.unsupported(schema, im.get("dct"), "images.dct")
	r.keysOf(im.get("rhs"), trust.RHS, rhsKey.MatchString,
		"this is not an image reference of images.rhs", "write host.domain/path, with tag or digest if wanted, without a port",
		func(s string) ([]byte, bool) {
			b, err := base64.StdEncoding.DecodeString(s)
			return b, s != "" && err == nil && base64Pattern.MatchString(s)
		}, "the public key is not base64", "give base64 of the armored GPG key: gpg -a --export KEY | base64 -w0")
}

// imageExtensions is workload.x-hpcr.images.
func (r *run) imageExtensions(im at) {
	if !im.present() || !r.mapping(im) {
		return
	}
	r.closed(im, "cosign", "lookaside")
	r.keysOf(im.get("cosign"), trust.Cosign, func(s string) bool {
		return strings.Contains(s, "/") && (trust.Rule{Kind: trust.Cosign, Ref: s}).ParseRef() == nil
	},
		"this is not an image reference", "write HOST/PATH, with port, tag or digest if wanted, or HOST/PATH/* for all below it",
		func(s string) ([]byte, bool) {
			b, _, err := pemText(s)
			return b, err == nil
		}, "the public key is not PEM", "give what cosign public-key prints, or base64 of it")
	r.lookaside(im.get("lookaside"))
}

// keysOf reads a mapping of image references to {publicKey}.
func (r *run) keysOf(a at, kind trust.Kind, ref func(string) bool, badRef, fixRef string, decode func(string) ([]byte, bool), badKey, fixKey string) {
	if !a.present() || !r.mapping(a) {
		return
	}
	if len(a.n.keys) > trust.MaxRules/2 {
		r.fail(schema, a, "there are more than 32 keys", "give one key for a repository, not for each of its tags")
		return
	}
	for i, k := range a.n.keys {
		e := a.entry(i)
		rule := trust.Rule{Kind: kind, Ref: k.text}
		switch {
		case !ref(k.text) || rule.ParseRef() != nil:
			r.fail(schema, a.key(i), badRef, fixRef)
		case slices.ContainsFunc(r.imageKeys, func(o imageKey) bool { return o.Same(rule) }):
			r.fail(schema, a.key(i), "there is a key for this reference already, written in another way", "remove one of them")
		}
		if !r.mapping(e) {
			continue
		}
		r.closed(e, "publicKey")
		p, ok := r.required(e, "publicKey")
		if !ok {
			continue
		}
		if s, ok := r.matching(p, func(s string) bool { _, ok := decode(s); return ok }, badKey, fixKey); ok {
			rule.Key, _ = decode(s)
			r.imageKeys = append(r.imageKeys, imageKey{rule, p, rule.CheckKey()})
		}
	}
}

// maxURL bounds the address of a lookaside server.
const maxURL = 1024

// lookaside names, for a registry, where its images' signatures lie if not on
// the registry itself.
func (r *run) lookaside(a at) {
	if !a.present() || !r.mapping(a) {
		return
	}
	for i, k := range a.n.keys {
		if !validAuthHost(k.text) || k.text == dockerHub {
			r.fail(schema, a.key(i), "this is not a registry", "write HOST or HOST:PORT, docker.io for Docker Hub")
		}
		if s, ok := r.matching(a.entry(i), validLookaside, "this is not the address of a signature store", "write https://HOST/PATH, without user, query or fragment"); ok {
			r.plan.Lookaside = append(r.plan.Lookaside, Lookaside{registry(k.text), s})
		}
	}
}

func validLookaside(s string) bool {
	u, err := url.Parse(s)
	return err == nil && len(s) <= maxURL && u.Scheme == "https" && validHost(u.Hostname()) && (u.Port() == "" || validPort(u.Port())) &&
		u.User == nil && u.RawQuery == "" && u.Fragment == "" && !strings.ContainsAny(s, "?#")
}

// imagePolicy is all rules, those with a key that cannot be used too: an image
// that needs one is refused for the key, not for having none.
func (r *run) imagePolicy() trust.Policy {
	var p trust.Policy
	for _, k := range r.imageKeys {
		p = append(p, k.Rule)
	}
	return p
}

// trust keeps the rules that images of the workload must satisfy. A key that
// none needs may be broken, for nothing depends on it: placeholders beside a
// digest are in contracts that boot.
func (r *run) trust() {
	if r.plan.Compose == nil {
		return
	}
	policy := r.imagePolicy()
	used, beside := make([]bool, len(policy)), make([]bool, len(policy))
	for i := range r.plan.Compose.Services {
		image := r.plan.Compose.Services[i].Signed()
		for _, rule := range policy.For(image) {
			used[slices.IndexFunc(policy, rule.Same)] = true
		}
		image.Pod = true
		for _, rule := range policy.For(image) {
			beside[slices.IndexFunc(policy, rule.Same)] = true
		}
	}
	for i, k := range r.imageKeys {
		switch {
		case !used[i] && beside[i]:
			r.say(SeverityNote, "", k.place, "this key is not looked at: in a compose file a digest alone pins the image", "remove the key, or the digest", nil)
		case !used[i]:
		case k.err != nil && k.Kind == trust.RHS:
			r.failCause(k.err, badImageKey, k.place, "this is not a GPG public key", "give base64 of the armored GPG key: gpg -a --export KEY | base64 -w0")
		case k.err != nil:
			r.failCause(k.err, schema, k.place, "this is not a key that cosign signs with", "give what cosign public-key prints: ECDSA P-256 or P-384, Ed25519, or RSA of at least 2048 bits")
		default:
			r.plan.Trust = append(r.plan.Trust, k.Rule)
		}
	}
}

// verifiedBy says by what the guest would verify an image.
func (r *run) verifiedBy(image string, pod bool) string {
	i, ok := trust.ParseImage(image)
	if !ok {
		if compose.Pinned(image) { // a name with variables, which may not be known here
			return ByDigest
		}
		return ByNothing
	}
	if !compose.Pinned(image) {
		i.Digest = ""
	}
	i.Pod = pod
	return r.verifiedImage(i)
}

func (r *run) verifiedImage(i trust.Image) string {
	var by []string
	for _, rule := range r.imagePolicy().For(i) {
		if r.imageKeys[slices.IndexFunc(r.imagePolicy(), rule.Same)].err != nil {
			return ByNothing
		}
		by = append(by, string(rule.Kind))
	}
	switch {
	case len(by) > 0:
		return strings.Join(by, ", ")
	case i.Digest != "":
		return ByDigest
	}
	return ByNothing
}
