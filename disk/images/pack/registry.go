package pack

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Registries is how images come from registries: over TLS only.
type Registries struct{ puller *remote.Puller }

// NewRegistries trusts the system's authorities and those in ca (PEM; may be
// nil). auth is the text of an auth.json or config.json, as podman login and
// docker login write it (nil = none).
func NewRegistries(ca, auth []byte) (*Registries, error) {
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	if ca != nil && !roots.AppendCertsFromPEM(ca) {
		return nil, errors.New("there is no certificate in the CA file")
	}
	t := remote.DefaultTransport.(*http.Transport).Clone()
	t.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	keys := keychain{}
	if auth != nil {
		if err := json.Unmarshal(auth, &keys); err != nil {
			return nil, errors.New("the auth file is not JSON as podman login or docker login writes it")
		}
	}
	p, err := remote.NewPuller(remote.WithTransport(onlyTLS{t}), remote.WithAuthFromKeychain(keys))
	if err != nil {
		return nil, err
	}
	return &Registries{p}, nil
}

// onlyTLS keeps passwords and names from leaving in clear.
type onlyTLS struct{ next http.RoundTripper }

func (o onlyTLS) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" {
		return nil, errors.New("the registry does not speak TLS: only TLS is used")
	}
	return o.next.RoundTrip(r)
}

// keychain is the part of the file that holds passwords.
type keychain struct {
	Auths map[string]struct {
		Auth     string `json:"auth"` // base64 of user:password
		Username string `json:"username"`
		Password string `json:"password"`
	} `json:"auths"`
}

// Resolve gives a registry its own password, by its host alone.
func (k keychain) Resolve(r authn.Resource) (authn.Authenticator, error) {
	hosts := []string{r.RegistryStr()}
	if r.RegistryStr() == name.DefaultRegistry {
		hosts = append(hosts, authn.DefaultAuthKey, "docker.io")
	}
	for _, h := range hosts {
		a, ok := k.Auths[h]
		if !ok {
			continue
		}
		if a.Auth != "" {
			text, err := base64.StdEncoding.DecodeString(a.Auth)
			user, password, ok := strings.Cut(string(text), ":")
			if err != nil || !ok {
				return nil, errors.New("the auth file's entry for this registry cannot be read")
			}
			a.Username, a.Password = user, password
		}
		return authn.FromConfig(authn.AuthConfig{Username: a.Username, Password: a.Password}), nil
	}
	return authn.Anonymous, nil
}

// FromRegistry takes an image by its reference, NAME[:TAG][@DIGEST], and the
// cosign signatures beside it. Without a digest it is whatever the tag names now.
func (s *Set) FromRegistry(ctx context.Context, from *Registries, ref string) error {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return err
	}
	named = reference.TagNameOnly(named) // no effect beside a digest
	repo, err := name.NewRepository(named.Name())
	if err != nil {
		return err
	}
	src := remoteRepo{from.puller, repo}
	asked, called := name.Reference(nil), ""
	if c, ok := named.(reference.Canonical); ok {
		asked, called = repo.Digest(c.Digest().String()), named.Name()+"@"+c.Digest().String()
	}
	if t, ok := named.(reference.Tagged); ok {
		called = named.Name() + ":" + t.Tag()
		if asked == nil {
			asked = repo.Tag(t.Tag())
		}
	}
	got, err := from.puller.Get(ctx, asked)
	if err != nil {
		return err
	}
	desc := v1.Descriptor{Digest: digest.Digest(got.Digest.String()), Size: got.Size}
	if err := s.add(ctx, src, desc, called, false); err != nil {
		return err
	}
	tag := desc.Digest.Algorithm().String() + "-" + desc.Digest.Encoded() + ".sig"
	got, err = from.puller.Get(ctx, repo.Tag(tag))
	var answer *transport.Error
	if errors.As(err, &answer) && answer.StatusCode == http.StatusNotFound {
		return nil // not signed
	}
	if err == nil {
		err = s.add(ctx, src, v1.Descriptor{Digest: digest.Digest(got.Digest.String()), Size: got.Size}, named.Name()+":"+tag, true)
	}
	if err != nil {
		return fmt.Errorf("signatures by cosign: %w", err)
	}
	return nil
}

// remoteRepo is one repository.
type remoteRepo struct {
	puller *remote.Puller
	repo   name.Repository
}

func (r remoteRepo) open(ctx context.Context, desc v1.Descriptor) (io.ReadCloser, error) {
	d := r.repo.Digest(desc.Digest.String())
	switch desc.MediaType {
	case "", v1.MediaTypeImageIndex, v1.MediaTypeImageManifest, dockerIndex, dockerManifest:
		got, err := r.puller.Get(ctx, d)
		if err != nil {
			return nil, err
		}
		return io.NopCloser(bytes.NewReader(got.Manifest)), nil
	}
	l, err := r.puller.Layer(ctx, d)
	if err != nil {
		return nil, err
	}
	return l.Compressed()
}
