package logship

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// hangingServer takes one connection and the probe, and then reads no more; its
// kernel does, as far as its buffer goes.
func hangingServer(t *testing.T, a *authority) (port int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := a.issue(t, nil)
	cert, err := tls.X509KeyPair(srv.cert, srv.key)
	if err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		raw, err := l.Accept()
		if err != nil {
			return
		}
		defer raw.Close()
		if err := raw.(*net.TCPConn).SetReadBuffer(64 << 10); err != nil {
			t.Error(err)
		}
		if _, err := io.ReadFull(tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{cert}}), make([]byte, 20)); err != nil {
			t.Error(err)
		}
		<-stop
	}()
	t.Cleanup(func() {
		l.Close()
		close(stop)
		<-done
	})
	return l.Addr().(*net.TCPAddr).Port
}

// TestStopWhileServerHangs: what a server's kernel took and the server never
// read is not said to have arrived.
func TestStopWhileServerHangs(t *testing.T) {
	a := newAuthority(t, "logs")
	for name, n := range map[string]int{"few messages, which its kernel took": 10, "more than its kernel takes": 3000} {
		t.Run(name, func(t *testing.T) {
			s := open(t, config(t, a, a.issue(t, nil), hangingServer(t, a)))
			writeLines(t, s, 1, n)
			ctx, stop := context.WithTimeout(t.Context(), time.Second)
			defer stop()
			if err := s.Drain(ctx); (err == nil) != (n == 10) {
				t.Errorf("what waited: %v", err)
			}
			if err := s.Close(); err == nil || !strings.HasPrefix(err.Error(), fmt.Sprintf("%d log messages are not known", n)) {
				t.Errorf("of %d messages: %v", n, err)
			}
		})
	}
}

// TestParkWhileServerHangs: the next boot sends all that a hanging server had not
// read: what waited, what was being written, what was in its kernel and in ours.
func TestParkWhileServerHangs(t *testing.T) {
	a := newAuthority(t, "logs")
	r := newRsyslog(t, a, a.issue(t, nil))
	r.start(t)
	dir := t.TempDir()
	f := Folder{Dir: dir, Limit: 100 << 20, Lasting: true}
	s := open(t, config(t, a, a.issue(t, nil), hangingServer(t, a)))
	keep(t, s, f)
	const n = 3000
	writeLines(t, s, 1, n)
	ctx, stop := context.WithTimeout(t.Context(), time.Second)
	defer stop()
	if err := s.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the server takes all: %v", err)
	}
	kept, err := s.Park(t.Context())
	if err != nil || kept != n {
		t.Errorf("%d of %d messages are kept: %v", kept, n, err)
	}
	s.Close() // its number is TestStopWhileServerHangs's

	s = open(t, config(t, a, a.issue(t, nil), r.port))
	defer s.Close()
	keep(t, s, f)
	drain(t, s)
	r.waitLine(t, fmt.Sprintf("n=%d.", n))
	if got, lost := arrived(t, r); len(got) != n || lost != 0 {
		t.Errorf("%d of %d arrived, %d are counted as lost", len(got), n, lost)
	}
}
