package logship

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"hpcr/agent/secret"
)

// DefaultPort is syslog over TLS (RFC 5425).
const DefaultPort = 6514

const (
	dialLimit     = 15 * time.Second // to connect, TLS included
	writeLimit    = 10 * time.Second
	closeLimit    = time.Second // for the server to take what is on its way
	minProbeWait  = 200 * time.Millisecond
	maxProbeWait  = 2 * time.Second
	minBackoff    = time.Second
	maxBackoff    = time.Minute
	batchBytes    = 32 << 10
	recentFor     = 5 * time.Second
	recentBytes   = 1 << 20
	ownApp        = "hpcr-logging"
	probeText     = "authentication probe"
	maxLineLength = 64 << 10
)

// Config is /env/logging/syslog. Key stays the caller's: Open copies what it
// needs and the caller may wipe it afterwards.
type Config struct {
	Host     string
	Port     int    // 0 = 6514
	CA, Cert []byte // PEM
	Key      *secret.Secret
	Hostname string           // of the guest, for the HOSTNAME field
	Now      func() time.Time // the clock with the time floor, for certificates; nil = the system's
}

// DialFunc is net.Dialer's DialContext.
type DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error)

// Shipper sends messages until Close. All methods may be called from any
// goroutine.
type Shipper struct {
	addr string
	host string
	tls  *tls.Config
	dial DialFunc

	wake   chan struct{}
	cancel context.CancelFunc
	done   chan struct{}

	mu     sync.Mutex
	queue  ring
	seq    uint32 // the next sequenceId
	busy   bool   // a batch is being written
	closed bool
}

// Open connects, authenticates both sides, sends the probe message and waits
// briefly whether the server refuses us: in TLS 1.3 it judges our certificate
// only after our side of the handshake is over. Errors are *hpl.Error,
// HPL01005E to HPL01011E. dial nil = a plain dialer. No environment variable,
// no proxy, no plain text.
func Open(ctx context.Context, c Config, dial DialFunc) (*Shipper, error) {
	config, err := tlsConfig(c)
	if err != nil {
		return nil, err
	}
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	port := c.Port
	if port == 0 {
		port = DefaultPort
	}
	s := &Shipper{
		addr: net.JoinHostPort(c.Host, strconv.Itoa(port)),
		host: c.Hostname,
		tls:  config,
		dial: dial,
		wake: make(chan struct{}, 1),
		done: make(chan struct{}),
		seq:  1,
	}
	first, err := s.connect(ctx)
	if err != nil {
		return nil, probeError(err)
	}
	run, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	go s.run(run, first)
	return s, nil
}

// Send queues m and returns. It never blocks on the network; after Close it
// does nothing.
func (s *Shipper) Send(m Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	var out [][]byte
	out, s.seq = frames(m, s.host, s.seq)
	for _, f := range out {
		s.queue.push(f)
	}
	s.poke()
}

func (s *Shipper) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Drain waits until everything sent so far has been written to the server.
func (s *Shipper) Drain(ctx context.Context) error {
	for {
		waiting := s.waiting()
		if waiting == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d log messages are still waiting for the server: %w", waiting, ctx.Err())
		case <-s.done:
			return fmt.Errorf("%d log messages were not sent: %w", s.waiting(), net.ErrClosed)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (s *Shipper) waiting() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.queue.n
	if s.busy {
		n++
	}
	if s.queue.dropped > 0 {
		n++
	}
	return n
}

// Close ends the connection in order (close_notify). What still waits is lost:
// Drain before.
func (s *Shipper) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	<-s.done
	if n := s.waiting(); n > 0 {
		return fmt.Errorf("%d log messages were not sent", n)
	}
	return nil
}

// session is one connection. Its reader sees the server's alerts and its end.
type session struct {
	conn *tls.Conn
	dead chan struct{}
	err  error // valid once dead is closed
}

func (s *Shipper) connect(ctx context.Context) (*session, error) {
	ctx, stop := context.WithTimeout(ctx, dialLimit)
	defer stop()
	raw, err := s.dial(ctx, "tcp", s.addr)
	if err != nil {
		return nil, &dialError{err}
	}
	if k, ok := raw.(interface {
		SetKeepAliveConfig(net.KeepAliveConfig) error
	}); ok {
		if err := k.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3}); err != nil {
			return nil, errors.Join(err, raw.Close())
		}
	}
	begin := time.Now()
	c := &session{conn: tls.Client(raw, s.tls), dead: make(chan struct{})}
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

// probe writes the probe message and waits for a refusal.
func (s *Shipper) probe(ctx context.Context, c *session, wait time.Duration) error {
	s.mu.Lock()
	var out [][]byte
	out, s.seq = frames(Message{Facility: FacilitySyslog, Severity: SeverityInfo, App: ownApp, MsgID: "PROBE", Text: []byte(probeText)}, s.host, s.seq)
	s.mu.Unlock()
	if err := c.write(bytes.Join(out, nil)); err != nil {
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

func (c *session) read() {
	defer close(c.dead)
	_, c.err = io.Copy(io.Discard, c.conn) // nothing that a syslog server says has a meaning
	if c.err == nil {
		c.err = io.EOF
	}
}

func (c *session) write(b []byte) error {
	if err := c.conn.SetWriteDeadline(time.Now().Add(writeLimit)); err != nil {
		return err
	}
	_, err := c.conn.Write(b)
	return err
}

// abort closes at once and waits for the reader.
func (c *session) abort() error {
	err := c.conn.NetConn().Close()
	<-c.dead
	return err
}

// finish says goodbye and gives the server a moment to take what is on its way.
func (c *session) finish() {
	if c.conn.CloseWrite() == nil {
		select {
		case <-c.dead:
		case <-time.After(closeLimit):
		}
	}
	// The goodbye was said or could not be: nobody is left to tell.
	_ = c.abort()
}

// run owns the connection until ctx ends.
func (s *Shipper) run(ctx context.Context, c *session) {
	defer close(s.done)
	for {
		recent := s.pump(ctx, c)
		if ctx.Err() != nil {
			c.finish()
			return
		}
		_ = c.abort() // broken already
		broke := time.Now()
		s.mu.Lock()
		s.queue.unshift(recent)
		s.mu.Unlock()
		if c = s.reconnect(ctx); c == nil {
			return
		}
		s.Send(Message{Facility: FacilitySyslog, Severity: SeverityWarning, App: ownApp, MsgID: "RECONNECT",
			Text: fmt.Appendf(nil, "connected to the log server again after %d s; %d messages sent shortly before are repeated with their numbers", int(time.Since(broke).Seconds()), len(recent))})
	}
}

func (s *Shipper) reconnect(ctx context.Context) *session {
	for attempt := 0; ; attempt++ {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(backoff(attempt, rand.Float64())):
		}
		if c, err := s.connect(ctx); err == nil {
			return c
		}
	}
}

// backoff doubles from one second to one minute; random in [0,1) picks from
// the upper half, so that a fleet does not come back in step.
func backoff(attempt int, random float64) time.Duration {
	d := maxBackoff
	if attempt < 6 {
		d = min(minBackoff<<attempt, maxBackoff)
	}
	return d/2 + time.Duration(random*float64(d/2))
}

// sent is a written frame and when.
type sent struct {
	frame []byte
	at    time.Time
}

// pump writes until ctx ends or the connection breaks, and returns what may
// not have arrived.
func (s *Shipper) pump(ctx context.Context, c *session) [][]byte {
	var recent []sent
	size := 0
	unsure := func(now time.Time) (out [][]byte) {
		for _, r := range recent {
			if now.Sub(r.at) < recentFor {
				out = append(out, r.frame)
			}
		}
		return out
	}
	for {
		batch := s.take()
		if batch == nil {
			select {
			case <-ctx.Done():
				return nil
			case <-c.dead:
				return unsure(time.Now())
			case <-s.wake:
			}
			continue
		}
		err := c.write(bytes.Join(batch, nil))
		s.mu.Lock()
		s.busy = false
		if err != nil {
			s.queue.unshift(batch)
		}
		s.mu.Unlock()
		now := time.Now()
		if err != nil {
			return unsure(now)
		}
		for _, f := range batch {
			recent = append(recent, sent{f, now})
			size += len(f) + frameCost
		}
		old := 0
		for old < len(recent) && (size > recentBytes || now.Sub(recent[old].at) >= recentFor) {
			size -= len(recent[old].frame) + frameCost
			old++
		}
		recent = append(recent[:0:0], recent[old:]...)
		if ctx.Err() != nil {
			return nil
		}
	}
}

// take removes the next batch from the queue; before it, where messages were
// dropped, a message that counts them.
func (s *Shipper) take() [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	var batch [][]byte
	if n := s.queue.dropped; n > 0 {
		s.queue.dropped = 0
		batch, s.seq = frames(Message{Facility: FacilitySyslog, Severity: SeverityWarning, App: ownApp, MsgID: "GAP",
			Text: fmt.Appendf(nil, "%d log messages were lost here: the log server was away for too long", n)}, s.host, s.seq)
	}
	for size := 0; s.queue.n > 0 && size < batchBytes; {
		f := s.queue.pop()
		size += len(f)
		batch = append(batch, f)
	}
	s.busy = batch != nil
	return batch
}

// Writer turns lines into messages of the user facility. Close sends what is
// left without a line end.
func (s *Shipper) Writer(app string, severity int) io.WriteCloser {
	return &lineWriter{send: func(line []byte) {
		s.Send(Message{Facility: FacilityUser, Severity: severity, App: app, Text: line})
	}}
}

type lineWriter struct {
	mu     sync.Mutex
	rest   []byte
	closed bool
	send   func([]byte)
}

func (w *lineWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return 0, os.ErrClosed
	}
	n := len(p)
	for {
		i := bytes.IndexByte(p, '\n')
		end := i
		if i < 0 {
			end = len(p)
		}
		if room := maxLineLength - len(w.rest); end > room {
			w.flush(p[:room]) // an endless line goes out in pieces
			p = p[room:]
			continue
		}
		if i < 0 {
			w.rest = append(w.rest, p...)
			return n, nil
		}
		w.flush(bytes.TrimSuffix(p[:i], []byte("\r")))
		p = p[i+1:]
	}
}

func (w *lineWriter) flush(tail []byte) {
	w.send(append(w.rest, tail...))
	w.rest = w.rest[:0]
}

func (w *lineWriter) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.closed && len(w.rest) > 0 {
		w.flush(nil)
	}
	w.closed, w.rest = true, nil
	return nil
}
