package health

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// Management is what those whom the contract names get beside health.
type Management struct {
	Metrics func() []byte                         // Prometheus' text format 0.0.4
	Renew   func(name string, chain []byte) error // of an identity's certificate, by PEM
}

// ErrNoIdentity: there is none of this name that may be renewed.
var ErrNoIdentity = errors.New("no identity of this name is renewable")

const (
	identities = "/v1/identities/"
	maxChain   = 64 << 10 // octets of PEM
)

// ServeManagement is Serve with GET /metrics and PUT /v1/identities/NAME
// beside the rest. The listener must have proved who its clients are.
func (s *State) ServeManagement(ctx context.Context, l net.Listener, m Management) error {
	return s.serve(ctx, l, func(w http.ResponseWriter, r *http.Request) {
		name, renew := strings.CutPrefix(r.URL.Path, identities)
		renew = renew && r.Method == http.MethodPut
		metrics := r.URL.Path == "/metrics" && r.Method == http.MethodGet && r.ContentLength == 0
		if !renew && !metrics || !s.admit(time.Now()) {
			s.answer(w, r)
			return
		}
		w.Header().Set("Cache-Control", "no-store")
		if metrics {
			w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
			_, _ = w.Write(m.Metrics()) // a client that has gone needs no answer
			return
		}
		status, text := m.renew(name, r)
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, text+"\n") // as above
	})
}

// renew reads at most maxChain octets and says what came of them.
func (m Management) renew(name string, r *http.Request) (status int, text string) {
	chain, err := io.ReadAll(io.LimitReader(r.Body, maxChain+1))
	if err != nil {
		return http.StatusBadRequest, "the body could not be read"
	}
	if len(chain) > maxChain {
		return http.StatusRequestEntityTooLarge, "more than 64 KiB"
	}
	switch err := m.Renew(name, chain); {
	case errors.Is(err, ErrNoIdentity):
		return http.StatusNotFound, err.Error()
	case err != nil:
		return http.StatusUnprocessableEntity, err.Error()
	}
	return http.StatusOK, "replaced"
}
