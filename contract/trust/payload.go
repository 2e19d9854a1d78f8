package trust

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"regexp"
)

const (
	maxPayload = 16 << 10 // bytes; real ones have 300

	simpleType = "atomic container signature" // containers-signature(5)
	cosignType = "cosign container image signature"
)

// payload is what a signature of either kind signs.
type payload struct {
	digest    string // "sha256:…", of the manifest
	reference string // of the image, as its signer named it
}

var digestRE = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// parsePayload takes {"critical": {"type", "image": {"docker-manifest-digest"},
// "identity": {"docker-reference"}}, "optional": …}, with nothing else in
// critical, as the format demands, and no key twice.
func parsePayload(text []byte, kind string) (payload, error) {
	p, err := strictPayload(text, kind)
	if err != nil {
		return payload{}, refuse(rankPayload, "the key's owner signed something that is not an image's signature: sign the image again", err)
	}
	return p, nil
}

func strictPayload(text []byte, kind string) (payload, error) {
	if len(text) > maxPayload {
		return payload{}, errors.New("payload of more than 16 KiB")
	}
	top, err := object(text, "critical", "optional")
	if err != nil {
		return payload{}, err
	}
	critical, err := object(top["critical"], "type", "image", "identity")
	if err != nil {
		return payload{}, err
	}
	image, err := object(critical["image"], "docker-manifest-digest")
	if err != nil {
		return payload{}, err
	}
	identity, err := object(critical["identity"], "docker-reference")
	if err != nil {
		return payload{}, err
	}
	var p payload
	var typ string
	for _, f := range []struct {
		raw json.RawMessage
		to  *string
	}{{critical["type"], &typ}, {image["docker-manifest-digest"], &p.digest}, {identity["docker-reference"], &p.reference}} {
		if len(f.raw) == 0 || f.raw[0] != '"' {
			return payload{}, errors.New("a field is missing or no text")
		}
		if err := json.Unmarshal(f.raw, f.to); err != nil {
			return payload{}, err
		}
	}
	if typ != kind {
		return payload{}, errors.New("signature of another type")
	}
	if !digestRE.MatchString(p.digest) {
		return payload{}, errors.New("digest that is not sha256")
	}
	return p, nil
}

// object is a JSON object whose keys are all known and stand in it once.
// encoding/json alone would take the last of two, and any case.
func object(text []byte, known ...string) (map[string]json.RawMessage, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("not an object")
	}
	out := map[string]json.RawMessage{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, err
		}
		key, _ := t.(string)
		if _, had := out[key]; had {
			return nil, errors.New("a key stands twice")
		}
		var v json.RawMessage
		if err := d.Decode(&v); err != nil {
			return nil, err
		}
		out[key] = v
		ok := false
		for _, k := range known {
			ok = ok || k == key
		}
		if !ok {
			return nil, errors.New("unknown key")
		}
	}
	if _, err := d.Token(); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more behind the object")
	}
	return out, nil
}

// about says whether the payload is about an image: the manifest of this
// digest, under the name that the container asks for. An image of a tag must
// be signed for that tag; one that is pinned needs its repository only. Cosign
// signs repositories without their tag, unless it is told to.
func (p payload) about(kind Kind, i Image, digest string) error {
	if p.digest != digest {
		return refuse(rankDigest, "the image's signature is for another digest: sign this image, or ask for the one that was signed", nil)
	}
	n, err := parse(p.reference)
	if err != nil {
		return refuse(rankReference, "the image's signature names no image: sign it again", err)
	}
	signed := scope{Image: Image{Name: name(n)}}
	if t, ok := n.(interface{ Tag() string }); ok {
		signed.Tag = t.Tag()
	}
	const detail = "the image's signature is for another name or tag: sign the image as the workload names it"
	switch {
	case signed.Name != i.Name:
		return refuse(rankReference, detail, errors.New("another repository"))
	case i.Digest != "", signed.Tag == i.Tag, kind == Cosign && signed.Tag == "":
		return nil
	}
	return refuse(rankReference, detail, errors.New("another tag"))
}
