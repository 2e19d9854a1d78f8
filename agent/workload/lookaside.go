package workload

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"hpcr/contract/compose"
	"hpcr/contract/trust"
)

// wellKnown are the signature stores that Podman knows from the start
// (registries.d of containers-common).
var wellKnown = map[string]string{
	"registry.access.redhat.com": "https://access.redhat.com/webassets/docker/content/sigstore",
	"registry.redhat.io":         "https://registry.redhat.io/containers/sigstore",
}

// simple collects the simple signatures of an image's digest: from the
// registry's own extension, if it has one, and from the lookaside server.
func (g *registries) simple(ctx context.Context, img compose.Image, d digest.Digest) ([]trust.Signature, error) {
	named, err := reference.ParseNormalizedNamed(img.Name)
	if err != nil {
		return nil, err
	}
	out, err := g.extension(ctx, named, d)
	if err != nil {
		return nil, err
	}
	base := wellKnown[reference.Domain(named)]
	if own, ok := g.lookaside[strings.ToLower(reference.Domain(named))]; ok {
		base = own
	}
	if base == "" {
		return out, nil
	}
	for n := 1; len(out) < maxSignatures; n++ {
		s, err := g.lookasideOne(ctx, base, reference.Path(named), d, n)
		if err != nil {
			return nil, err
		}
		if s == nil {
			break
		}
		out = append(out, trust.Signature{Signature: s})
	}
	return out, nil
}

// lookasideOne fetches BASE/PATH@sha256=HEX/signature-N, without credentials;
// nil = there is none (signature-protocols.md of containers/image).
func (g *registries) lookasideOne(ctx context.Context, base, path string, d digest.Digest, n int) ([]byte, error) {
	u, err := url.Parse(base)
	if err != nil {
		return nil, err
	}
	u.Path = strings.TrimSuffix(u.Path, "/") + "/" + path + "@" + d.Algorithm().String() + "=" + d.Encoded() + "/signature-" + strconv.Itoa(n)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := g.client.Do(req)
	if err != nil {
		return nil, err
	}
	return body(resp, trust.MaxSignature)
}

// body reads an answer; nil = not found.
func body(resp *http.Response, limit int64) ([]byte, error) {
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return nil, nil
	default:
		return nil, fmt.Errorf("signatures: %w", remoteerrors.ErrUnexpectedStatus{Status: resp.Status, StatusCode: resp.StatusCode})
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(text)) > limit {
		return nil, fmt.Errorf("%w: signatures of more than %d bytes", errOtherDigest, limit)
	}
	return text, nil
}

// extension asks the registry itself, as OpenShift's stores signatures
// (X-Registry-Supports-Signatures: 1).
func (g *registries) extension(ctx context.Context, named reference.Named, d digest.Digest) ([]trust.Signature, error) {
	hosts, err := g.hosts(reference.Domain(named))
	if err != nil {
		return nil, err
	}
	if len(hosts) == 0 {
		return nil, fmt.Errorf("no registry for the image")
	}
	host := hosts[0]
	ping, err := g.get(ctx, host, named, "/v2/")
	if err != nil {
		return nil, err
	}
	ping.Body.Close()
	if ping.Header.Get("X-Registry-Supports-Signatures") != "1" {
		return nil, nil
	}
	resp, err := g.get(ctx, host, named, "/extensions/v2/"+reference.Path(named)+"/signatures/"+d.String())
	if err != nil {
		return nil, err
	}
	text, err := body(resp, maxSigIndex)
	if err != nil || text == nil {
		return nil, err
	}
	return parseExtension(text)
}

// parseExtension takes {"signatures": [{"schemaVersion": 2, "type": "atomic",
// "name": …, "content": base64}]}. Entries of other kinds are passed over.
func parseExtension(text []byte) ([]trust.Signature, error) {
	var list struct {
		Signatures []struct {
			SchemaVersion int    `json:"schemaVersion"`
			Type          string `json:"type"`
			Content       []byte `json:"content"`
		} `json:"signatures"`
	}
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, fmt.Errorf("%w: list of signatures: %w", errOtherDigest, err)
	}
	var out []trust.Signature
	for _, s := range list.Signatures {
		if s.SchemaVersion == 2 && s.Type == "atomic" && len(out) < maxSignatures {
			out = append(out, trust.Signature{Signature: s.Content})
		}
	}
	return out, nil
}

// get asks a registry for a path outside what the resolver knows, with the
// registry's credentials if it wants them.
func (g *registries) get(ctx context.Context, host docker.RegistryHost, named reference.Named, path string) (*http.Response, error) {
	ctx = docker.WithScope(ctx, "repository:"+reference.Path(named)+":pull")
	for try := 1; ; try++ {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, host.Scheme+"://"+host.Host+path, nil)
		if err != nil {
			return nil, err
		}
		if err := host.Authorizer.Authorize(ctx, req); err != nil {
			return nil, err
		}
		resp, err := host.Client.Do(req)
		if err != nil || resp.StatusCode != http.StatusUnauthorized || try == 2 {
			return resp, err
		}
		resp.Body.Close()
		if err := host.Authorizer.AddResponses(ctx, []*http.Response{resp}); err != nil {
			return nil, err
		}
	}
}
