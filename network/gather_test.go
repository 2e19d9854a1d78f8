package network

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// counting counts the writes that reach the wire.
type counting struct {
	net.Conn
	writes int
}

func (c *counting) Write(b []byte) (int, error) { c.writes++; return c.Conn.Write(b) }

// joinedPair is our end, over something that counts, and the peer's.
func joinedPair(t *testing.T) (*counting, joined, *tls.Conn) {
	t.Helper()
	cert, key := selfSigned(t)
	server, err := ServerConfig(fixed(t, cert, key), nil, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	client, err := ClientConfig(cert, nil, nil, "guest.example", nil)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	peer := make(chan *tls.Conn, 1)
	go func() {
		c, err := tls.Dial("unix", l.Addr().String(), client)
		if err != nil {
			t.Error(err)
		}
		peer <- c
	}()
	raw, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	under := &counting{Conn: raw}
	near, err := handshakeTLS(t.Context(), under, server, tls.Server)
	far := <-peer
	if err != nil || far == nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	return under, near.(joined), far
}

// The records of one write leave together, and arrive as they were.
func TestGather(t *testing.T) {
	wire, near, far := joinedPair(t)
	for size := range 5 {
		want := bytes.Repeat([]byte{byte('a' + size)}, 1+size*relayBuffer/4)
		before := wire.writes
		if n, err := near.Write(want); n != len(want) || err != nil {
			t.Fatal(n, err)
		}
		if n := wire.writes - before; n != 1 {
			t.Errorf("%d octets left in %d writes", len(want), n)
		}
		got := make([]byte, len(want))
		if _, err := io.ReadFull(far, got); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d octets arrive otherwise: %v", len(want), err)
		}
	}
	big := bytes.Repeat([]byte("x"), 10*relayBuffer)
	sent := make(chan error, 1)
	go func() { _, err := near.Write(big); sent <- err }()
	got := make([]byte, len(big))
	if _, err := io.ReadFull(far, got); err != nil || !bytes.Equal(got, big) {
		t.Errorf("what is larger than a buffer arrives otherwise: %v", err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

// A peer that takes nothing holds a Close for no time worth speaking of.
func TestGatherClose(t *testing.T) {
	_, near, _ := joinedPair(t)
	sent := make(chan error, 1)
	go func() {
		for {
			if _, err := near.Write(make([]byte, relayBuffer)); err != nil {
				sent <- err
				return
			}
		}
	}()
	for begin := time.Now(); !near.under.flushing.Load() || time.Since(begin) < time.Second; time.Sleep(10 * time.Millisecond) {
		if time.Since(begin) > 20*time.Second {
			t.Fatal("the peer takes everything")
		}
	}
	begin := time.Now()
	_ = near.Close() // it cannot say farewell
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("closed after %v", took)
	}
	select {
	case err := <-sent:
		if !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the write ended with %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the write goes on")
	}
}
