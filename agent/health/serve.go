package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"time"

	"golang.org/x/net/netutil"
)

const (
	maxConnections = 8
	maxHeaderBytes = 4 << 10
	headerLimit    = 2 * time.Second
	requestLimit   = 5 * time.Second
)

// ErrNoVsock: this machine has no vsock device; health is then on the console
// only.
var ErrNoVsock = errors.New("no vsock device")

// ServeVsock answers the host on a vsock port until ctx ends.
func (s *State) ServeVsock(ctx context.Context, port uint32) error {
	l, err := listenVsock(port)
	if err != nil {
		return err
	}
	return s.Serve(ctx, l)
}

// ServeTCP answers everybody who can reach addr, until ctx ends. For dev
// images: what listens here speaks no TLS.
func (s *State) ServeTCP(ctx context.Context, addr string) error {
	l, err := net.Listen("tcp4", addr)
	if err != nil {
		return fmt.Errorf("open the health port: %w", err)
	}
	return s.Serve(ctx, l)
}

// Serve takes l over and closes it when ctx ends; that is no error.
func (s *State) Serve(ctx context.Context, l net.Listener) error { return s.serve(ctx, l, s.answer) }

func (s *State) serve(ctx context.Context, l net.Listener, answer http.HandlerFunc) error {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	srv := &http.Server{
		Handler:                      answer,
		Protocols:                    protocols,
		ReadHeaderTimeout:            headerLimit,
		ReadTimeout:                  requestLimit,
		WriteTimeout:                 requestLimit,
		IdleTimeout:                  requestLimit,
		MaxHeaderBytes:               maxHeaderBytes,
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     log.New(io.Discard, "", 0), // it would quote what clients send
	}
	srv.SetKeepAlivesEnabled(false)
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() }) // Serve returns the reason
	defer stop()
	err := srv.Serve(netutil.LimitListener(l, maxConnections))
	if ctx.Err() != nil && errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve health: %w", err)
}

// answer: every body has 512 octets, every header a fixed value.
func (s *State) answer(w http.ResponseWriter, r *http.Request) {
	now := time.Now()
	report := s.report(now)
	status, kind, body := http.StatusOK, "text/plain", []byte("ok")
	switch {
	case !s.admit(now):
		status, body = http.StatusTooManyRequests, []byte("too many requests")
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		status, body = http.StatusMethodNotAllowed, []byte("GET or HEAD only")
	case r.ContentLength != 0:
		status, body = http.StatusBadRequest, []byte("no body, please")
	case r.URL.Path == "/livez":
		if !report.Live {
			status, body = http.StatusServiceUnavailable, []byte("not live")
		}
	case r.URL.Path == "/readyz":
		if !report.Ready {
			status, body = http.StatusServiceUnavailable, []byte("not ready")
		}
	case r.URL.Path == "/healthz":
		if !report.Ready {
			status = http.StatusServiceUnavailable
		}
		b, err := report.body()
		if err != nil {
			status, b = http.StatusInternalServerError, nil
		}
		kind, body = "application/json", b
	default:
		status, body = http.StatusNotFound, []byte("not found")
	}
	h := w.Header()
	h["Date"] = nil // says nothing that the host must know
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Type", kind)
	h.Set("Content-Length", strconv.Itoa(bodySize))
	w.WriteHeader(status)
	_, _ = w.Write(pad(body)) // a client that has gone needs no answer
}
