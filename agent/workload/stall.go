package workload

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"
)

// stallLimit is how long a registry may send nothing of a body.
const stallLimit = 30 * time.Second

// maxAnswer bounds what a registry answers but blobs, which their descriptors
// bound: manifests, tokens, errors.
const maxAnswer = maxManifest + 64<<10

var errEndless = errors.New("an answer that is larger than any")

// unstalled ends a body that stands still, or that is no blob and does not end.
// Of one that breaks off, in whatever way, it says so: containerd then asks for
// the rest by Range.
type unstalled struct {
	next  http.RoundTripper
	limit time.Duration
}

// isBlob says whether a request, or the one that was redirected to it, is for a
// blob.
func isBlob(r *http.Request) bool {
	for r.Response != nil && r.Response.Request != nil {
		r = r.Response.Request
	}
	return strings.HasPrefix(r.URL.Path, "/v2/") && strings.Contains(r.URL.Path, "/blobs/")
}

func (u unstalled) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancel(r.Context())
	resp, err := u.next.RoundTrip(r.WithContext(ctx))
	if err != nil {
		cancel()
		return nil, err
	}
	resp.Body = &steady{ReadCloser: resp.Body, ctx: r.Context(), cancel: cancel, limit: u.limit, blob: isBlob(r), left: maxAnswer}
	return resp, nil
}

func (u unstalled) CloseIdleConnections() {
	if c, ok := u.next.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// steady is a body whose every Read ends within the limit. The clock stands
// still between reads: a slow disk is not the registry's fault.
type steady struct {
	io.ReadCloser
	ctx    context.Context // of the request; its end is not the registry's doing
	cancel func()
	limit  time.Duration
	blob   bool
	left   int64 // bytes; of what is no blob
}

func (s *steady) Read(p []byte) (int, error) {
	guard := time.AfterFunc(s.limit, s.cancel)
	n, err := s.ReadCloser.Read(p)
	guard.Stop()
	if s.left -= int64(n); s.left < 0 && !s.blob {
		return 0, errEndless
	}
	if err != nil && !errors.Is(err, io.EOF) && s.ctx.Err() == nil {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (s *steady) Close() error {
	defer s.cancel()
	return s.ReadCloser.Close()
}
