package logship

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"

	"hpcr/agent/event"
)

const (
	dialLimit    = 15 * time.Second // to connect, TLS included
	writeLimit   = 10 * time.Second // for one TLS record to leave, at most 16 KiB
	ackLimit     = 20 * time.Second // for the server's kernel to acknowledge anything
	closeLimit   = time.Second      // for the backlog's disk
	goodbyeLimit = 3 * time.Second  // for the server to read what is on its way
	sendBuffer   = 512 << 10        // of our kernel; it takes twice that
	minProbeWait = 200 * time.Millisecond
	maxProbeWait = 2 * time.Second
	probeText    = "authentication probe"
)

// link is one connection to the log host, of either kind.
type link interface {
	send(context.Context, []*item) error // one batch
	written() uint64                     // octets, so far
	acked() uint64                       // how many of them the other side's kernel has
	sure() bool                          // send returns when the log host itself has it
	ended() <-chan struct{}
	abort() error
	finish() bool // true = the log host has read all that was written
}

// session is a connection to a syslog server. Its reader sees the server's
// alerts and its end.
type session struct {
	conn *tls.Conn
	wire *wire
	buf  []byte
	mark []byte // structured data that goes before all other
	dead chan struct{}
	err  error // valid once dead is closed
}

func (c *session) sure() bool             { return false }
func (c *session) ended() <-chan struct{} { return c.dead }

func (c *session) send(_ context.Context, batch []*item) error {
	c.buf = c.buf[:0]
	for _, it := range batch {
		c.buf = it.appendMarked(c.buf, c.mark)
	}
	return c.write(c.buf)
}

// wire counts octets below TLS, and bounds each write: a server that takes a
// record in ten seconds is slow, one that takes none has gone.
type wire struct {
	net.Conn
	total atomic.Uint64
}

func (w *wire) Write(b []byte) (int, error) {
	if err := w.SetWriteDeadline(time.Now().Add(writeLimit)); err != nil {
		return 0, err
	}
	n, err := w.Conn.Write(b)
	w.total.Add(uint64(n))
	return n, err
}

// syslog connects to a syslog server and proves the connection.
func (s *Shipper) syslog(ctx context.Context) (link, error) {
	ctx, stop := context.WithTimeout(ctx, dialLimit)
	defer stop()
	raw, err := s.dial(ctx, "tcp", s.addr)
	if err != nil {
		return nil, &dialError{err}
	}
	if tcp, ok := raw.(*net.TCPConn); ok {
		if err := tune(tcp); err != nil {
			return nil, errors.Join(err, raw.Close())
		}
	}
	begin := time.Now()
	w := &wire{Conn: raw}
	c := &session{conn: tls.Client(w, s.tls), wire: w, mark: s.mark, dead: make(chan struct{})}
	if err := c.conn.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	took := time.Since(begin)
	go c.read()
	if err := s.probe(ctx, c, min(max(took, minProbeWait), maxProbeWait)); err != nil {
		return nil, errors.Join(err, c.abort())
	}
	return c, nil
}

// tune makes a dead path show within seconds, not within TCP's quarter of an
// hour, and keeps little in our kernel.
func tune(tcp *net.TCPConn) error {
	return errors.Join(
		tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3}),
		tcp.SetWriteBuffer(sendBuffer),
		setAckLimit(tcp, ackLimit))
}

// probe writes the probe message and waits for a refusal.
func (s *Shipper) probe(ctx context.Context, c *session, wait time.Duration) error {
	if err := c.send(ctx, s.probeMessage()); err != nil {
		select { // the reader knows the reason, if the server gave one
		case <-c.dead:
			return &refusedError{c.err}
		case <-time.After(wait):
			return &refusedError{err}
		}
	}
	select {
	case <-c.dead:
		return &refusedError{c.err}
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(wait):
		return nil
	}
}

func (s *Shipper) probeMessage() []*item {
	items, _ := s.own.form.render(Entry{Severity: SeverityInfo, MsgID: string(event.LogProbe), Text: []byte(probeText)}, 0)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.number(items[0])
	items[0].src = s.own
	return items
}

func (c *session) read() {
	defer close(c.dead)
	_, c.err = io.Copy(io.Discard, c.conn) // nothing that a syslog server says has a meaning
	if c.err == nil {
		c.err = io.EOF
	}
}

func (c *session) write(b []byte) error {
	_, err := c.conn.Write(b)
	return err
}

// written is how many octets have gone to our kernel.
func (c *session) written() uint64 { return c.wire.total.Load() }

// acked is how many of them the server's kernel has acknowledged.
func (c *session) acked() uint64 {
	tcp, ok := c.wire.Conn.(*net.TCPConn)
	if !ok {
		return c.written() // a pipe, in tests, hands over what it takes
	}
	total := c.written() // first: what is written meanwhile is not acknowledged
	waiting, err := unacked(tcp)
	if err != nil {
		return total // by time alone, so that what is kept stays bounded
	}
	return total - min(uint64(waiting), total)
}

// abort closes at once and waits for the reader.
func (c *session) abort() error {
	err := c.conn.NetConn().Close()
	<-c.dead
	return err
}

// finish says goodbye and gives the server a moment to take what is on its way.
// A server that ends the connection only then has read everything: had it not,
// its kernel would reset the connection.
func (c *session) finish() bool {
	answered := false
	select {
	case <-c.dead: // before
	default:
		if c.conn.CloseWrite() == nil {
			select {
			case <-c.dead:
				answered = errors.Is(c.err, io.EOF) || errors.Is(c.err, io.ErrUnexpectedEOF) // without its own close_notify
			case <-time.After(goodbyeLimit):
			}
		}
	}
	// The goodbye was said or could not be: nobody is left to tell.
	_ = c.abort()
	return answered
}
