package trust

import (
	"bytes"
	"testing"
)

// Whatever a registry gives for a signature: no panic, and nothing but what a
// holder of the key signed is accepted. The vectors hold all that was signed
// by the key for this image.
func FuzzSimpleSigning(f *testing.F) {
	for _, name := range []string{"good", "uncompressed", "two", "sha1", "clear", "encrypted", "bomb", "detached", "unsigned"} {
		f.Add(read(f, name+".gpg"))
	}
	r := Rule{Kind: RHS, Key: read(f, "owner.asc")}
	image := mustImage(f, "registry.example.com/team/app:1")
	other := "sha256:" + string(bytes.Repeat([]byte("9"), 64))
	f.Fuzz(func(t *testing.T, message []byte) {
		if r.Verify(Signature{Signature: message}, image, other, clock) == nil {
			t.Error("accepted for a digest that nobody signed")
		}
		_ = r.Verify(Signature{Signature: message}, image, vectorDigest, clock)
	})
}

// The key is the contract's, whose author may be a stranger to the guest.
func FuzzKeys(f *testing.F) {
	for _, name := range []string{"owner.asc", "ed25519.asc", "private.asc", "p256.pem", "rsa.pem"} {
		f.Add(read(f, name))
	}
	f.Fuzz(func(t *testing.T, key []byte) {
		for _, kind := range []Kind{RHS, Cosign} {
			r := Rule{Kind: kind, Ref: "a.example/b", Key: key}
			if r.CheckKey() == nil && r.Fingerprint() == "" {
				t.Errorf("%s: a good key has no fingerprint", kind)
			}
		}
	})
}

// A payload that is accepted says one thing: written anew from what was read,
// it reads the same.
func FuzzPayload(f *testing.F) {
	f.Add(read(f, "cosign.json"))
	f.Add(read(f, "cosign-type.json"))
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, kind := range []string{simpleType, cosignType} {
			p, err := parsePayload(text, kind)
			if err == nil && (!digestRE.MatchString(p.digest) || !bytes.Contains(text, []byte(p.digest[:6]))) {
				t.Errorf("digest %q", p.digest)
			}
		}
	})
}

// A rule's reference and an image's: never a panic, and an image always fits a
// rule of its own name.
func FuzzReferences(f *testing.F) {
	f.Add("registry.example.com/team/*", "registry.example.com/team/app:1")
	f.Add("docker.io/library/nginx", "nginx")
	f.Fuzz(func(t *testing.T, ref, image string) {
		i, ok := ParseImage(image)
		if !ok {
			return
		}
		p := Policy{{Kind: RHS, Ref: image}, {Kind: Cosign, Ref: ref}}
		if len(p.For(i)) == 0 {
			t.Errorf("%q does not fit itself", image)
		}
	})
}
