package peers

import (
	"bytes"
	"context"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
)

// Registry is an OCI distribution registry on the loopback, in memory, behind
// TLS with a certificate for GuestHost and Loopback, and basic auth.
type Registry struct {
	User, Password string

	server *http.Server
	port   int
	client *http.Client
	served chan error

	mu         sync.Mutex
	requests   []string
	signatures map[string][]byte // by path
}

// StartRegistry starts a registry whose certificate ca issues. Close ends it.
func StartRegistry(ca *CA, user, password string) (*Registry, error) {
	id, err := ca.Server("registry", GuestHost, Loopback)
	if err != nil {
		return nil, err
	}
	pair, err := id.TLS()
	if err != nil {
		return nil, fmt.Errorf("load the registry's identity: %w", err)
	}
	l, err := net.Listen("tcp", net.JoinHostPort(Loopback, "0"))
	if err != nil {
		return nil, fmt.Errorf("listen for the registry: %w", err)
	}
	r := &Registry{
		User:     user,
		Password: password,
		port:     l.Addr().(*net.TCPAddr).Port,
		served:   make(chan error, 1),
		client: &http.Client{
			Timeout:   time.Minute,
			Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.Pool()}},
		},
	}
	silent := log.New(io.Discard, "", 0)
	r.server = &http.Server{
		Handler:           r.guard(registry.New(registry.Logger(silent))),
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12},
		ErrorLog:          silent, // refused handshakes are a scenario's own doing
		ReadHeaderTimeout: 10 * time.Second,
	}
	go func() { r.served <- r.server.ServeTLS(l, "", "") }()
	return r, nil
}

// Guest is the registry's host:port as a guest names it in references, auths
// and contracts.
func (r *Registry) Guest() string { return net.JoinHostPort(GuestHost, strconv.Itoa(r.port)) }

// Standard serves the registry on TLS's own port as well, where a guest reaches
// it under GuestHost alone: references in images.rhs have no port. The caller
// closes it.
func (r *Registry) Standard(ctx context.Context) (io.Closer, error) {
	var conf net.ListenConfig
	l, err := conf.Listen(ctx, "tcp", net.JoinHostPort(Loopback, "443"))
	if err != nil {
		return nil, fmt.Errorf("listen for the registry: %w", err)
	}
	s := &http.Server{Handler: r.server.Handler, TLSConfig: r.server.TLSConfig.Clone(), ErrorLog: r.server.ErrorLog, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = s.ServeTLS(l, "", "") }() // ends with Close
	return s, nil
}

// Host is the registry's host:port as a program on this machine names it.
func (r *Registry) Host() string { return net.JoinHostPort(Loopback, strconv.Itoa(r.port)) }

// Requests lists what was asked of the registry so far: status, method, path.
func (r *Registry) Requests() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.requests...)
}

// Close stops the registry and drops its content.
func (r *Registry) Close() error {
	r.client.CloseIdleConnections()
	if err := r.server.Close(); err != nil {
		return fmt.Errorf("stop the registry: %w", err)
	}
	if err := <-r.served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("the registry ended early: %w", err)
	}
	return nil
}

// Push uploads an image or index under repo and returns what a compose file
// names it by, without the registry: "repo@sha256:…".
func (r *Registry) Push(ctx context.Context, repo string, image *Image) (string, error) {
	for _, m := range image.Manifests {
		if _, err := r.Push(ctx, repo, m); err != nil {
			return "", err
		}
	}
	for _, b := range image.Blobs {
		if err := r.put(ctx, "/v2/"+repo+"/blobs/uploads/", b); err != nil {
			return "", fmt.Errorf("push a blob of %s: %w", repo, err)
		}
	}
	d := digest.FromBytes(image.Manifest)
	err := r.do(ctx, http.MethodPut, "/v2/"+repo+"/manifests/"+d.String(), image.MediaType, image.Manifest, http.StatusCreated, nil)
	if err != nil {
		return "", fmt.Errorf("push the manifest of %s: %w", repo, err)
	}
	return repo + "@" + d.String(), nil
}

// put uploads one blob in the distribution protocol's two steps.
func (r *Registry) put(ctx context.Context, uploads string, blob []byte) error {
	var location string
	err := r.do(ctx, http.MethodPost, uploads, "", nil, http.StatusAccepted, func(resp *http.Response) { location = resp.Header.Get("Location") })
	if err != nil {
		return err
	}
	query := url.Values{"digest": {digest.FromBytes(blob).String()}}
	return r.do(ctx, http.MethodPut, location+"?"+query.Encode(), "application/octet-stream", blob, http.StatusCreated, nil)
}

func (r *Registry) do(ctx context.Context, method, path, kind string, body []byte, want int, seen func(*http.Response)) error {
	req, err := http.NewRequestWithContext(ctx, method, "https://"+r.Host()+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	req.SetBasicAuth(r.User, r.Password)
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	defer resp.Body.Close() //nolint:errcheck // nothing is left to lose
	text, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	if resp.StatusCode != want {
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, text)
	}
	if seen != nil {
		seen(resp)
	}
	return nil
}

// guard asks for basic auth on every path, as private registries do, and
// notes each request with its answer.
func (r *Registry) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		noted := &status{ResponseWriter: w, code: http.StatusOK}
		user, password, ok := req.BasicAuth()
		if strings.HasPrefix(req.URL.Path, Lookaside+"/") {
			r.signature(noted, req)
		} else if ok && same(user, r.User) && same(password, r.Password) {
			next.ServeHTTP(noted, req)
		} else {
			noted.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
			http.Error(noted, "a user name and a password are needed", http.StatusUnauthorized)
		}
		r.mu.Lock()
		r.requests = append(r.requests, fmt.Sprintf("%d %s %s", noted.code, req.Method, req.URL.Path))
		r.mu.Unlock()
	})
}

func same(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

type status struct {
	http.ResponseWriter
	code int
}

func (s *status) WriteHeader(code int) {
	s.code = code
	s.ResponseWriter.WriteHeader(code)
}
