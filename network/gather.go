package network

import (
	"crypto/tls"
	"net"
	"sync"
	"sync/atomic"
)

// gather joins the records of one write of crypto/tls, which writes each of
// them by itself, to one write of the connection.
type gather struct {
	net.Conn

	mu   sync.Mutex
	on   bool
	held *[gatherBuffer]byte
	n    int
	err  error // of a write that was not its caller's own

	flushing atomic.Bool
}

// gatherBuffer is for the records of a whole relayBuffer: of 16 KiB each, with
// 22 octets more (RFC 8446 section 5.2), and a few small ones at the start.
const gatherBuffer = relayBuffer + 4<<10

var gatherBuffers = sync.Pool{New: func() any { return new([gatherBuffer]byte) }}

func (g *gather) Write(b []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.on {
		return g.Conn.Write(b)
	}
	if g.n+len(b) > gatherBuffer {
		g.flush()
	}
	if g.err != nil {
		return 0, g.err
	}
	if len(b) > gatherBuffer {
		return g.Conn.Write(b)
	}
	if g.held == nil {
		g.held = gatherBuffers.Get().(*[gatherBuffer]byte)
	}
	g.n += copy(g.held[g.n:], b)
	return len(b), nil
}

// flush: g.mu is held.
func (g *gather) flush() {
	if g.held == nil {
		return
	}
	if g.err == nil {
		g.flushing.Store(true)
		_, g.err = g.Conn.Write(g.held[:g.n])
		g.flushing.Store(false)
	}
	gatherBuffers.Put(g.held)
	g.held, g.n = nil, 0
}

func (g *gather) begin() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.on = true
}

func (g *gather) end() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.on = false
	g.flush()
	return g.err
}

// joined is a TLS connection over a gather.
type joined struct {
	*tls.Conn
	under *gather
}

func (j joined) Write(b []byte) (int, error) {
	if len(b) <= oneRecord {
		return j.Conn.Write(b)
	}
	j.under.begin()
	n, err := j.Conn.Write(b)
	if ferr := j.under.end(); err == nil {
		err = ferr
	}
	return n, err
}

// Close does not wait for a peer that takes nothing: crypto/tls, which knows
// of its own writes alone, would give it five seconds for a farewell.
func (j joined) Close() error {
	if j.under.flushing.Load() {
		_ = j.under.Conn.Close() // the next one says how it went
	}
	return j.Conn.Close()
}

// oneRecord always fits into one: crypto/tls starts with records of a TCP
// segment, and makes them larger.
const oneRecord = 1 << 10
