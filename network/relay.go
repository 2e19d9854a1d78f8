package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Limits on TLS connections from and to the containers. What a peer can make
// the guest keep is bounded by the first two.
const (
	maxRelayed       = 8192 // connections of all endpoints together
	maxHandshakes    = 256  // of them in a handshake
	handshakeLimit   = 10 * time.Second
	dialLimit        = 10 * time.Second
	keepAliveIdle    = time.Minute
	keepAliveProbe   = 15 * time.Second
	relayReportEvery = time.Minute
	relayBuffer      = 32 << 10
)

// relays is what the endpoints of a guest share.
type relays struct {
	log      *slog.Logger
	all      chan struct{} // slots
	starting chan struct{}
	wg       sync.WaitGroup
	ctx      context.Context
	stop     context.CancelFunc

	mu        sync.Mutex
	listeners map[net.Listener]bool
	points    []*relayPoint
}

// Endpoint is what an endpoint has done so far.
type Endpoint struct {
	Name                   string
	Open, Accepted, Failed int64
}

// Endpoints are the TLS endpoints in the order of their listeners, of which an
// egress has one on each network.
func (n *Net) Endpoints() (out []Endpoint) {
	n.relays.mu.Lock()
	defer n.relays.mu.Unlock()
	for _, p := range n.relays.points {
		i := slices.IndexFunc(out, func(e Endpoint) bool { return e.Name == p.name })
		if i < 0 {
			i = len(out)
			out = append(out, Endpoint{Name: p.name})
		}
		out[i].Open += p.live.Load()
		out[i].Accepted += p.accepted.Load()
		out[i].Failed += p.failed.Load()
	}
	return out
}

var errFull = errors.New("too many connections")

func newRelays(log *slog.Logger) *relays {
	r := &relays{log: log, all: make(chan struct{}, maxRelayed), starting: make(chan struct{}, maxHandshakes), listeners: map[net.Listener]bool{}}
	r.ctx, r.stop = context.WithCancel(context.Background())
	return r
}

// relayPoint is one listener: open answers a connection with the two ends that
// are to be joined, after every handshake.
type relayPoint struct {
	name string
	open func(ctx context.Context, c net.Conn) (near, far net.Conn, err error)

	live, accepted, failed atomic.Int64
	mu                     sync.Mutex
	cause                  error // the last failure
}

// drop closes one listener; its connections go on.
func (r *relays) drop(l net.Listener) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.listeners[l] {
		return nil
	}
	delete(r.listeners, l)
	return l.Close()
}

// serve takes l over; it is closed by drop or close.
func (r *relays) serve(l net.Listener, p *relayPoint) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ctx.Err() != nil {
		return errors.Join(net.ErrClosed, l.Close())
	}
	r.listeners[l] = true
	r.points = append(r.points, p)
	r.wg.Go(func() { r.accept(l, p) })
	r.wg.Go(func() { r.report(p) })
	return nil
}

// close ends listeners and connections, and waits for them.
func (r *relays) close() error {
	r.mu.Lock()
	r.stop()
	var errs []error
	for l := range r.listeners {
		errs = append(errs, l.Close())
	}
	clear(r.listeners)
	r.mu.Unlock()
	r.wg.Wait()
	return errors.Join(errs...)
}

func (r *relays) accept(l net.Listener, p *relayPoint) {
	for {
		c, err := l.Accept()
		switch {
		case r.ctx.Err() != nil:
			if err == nil {
				_ = c.Close() // the guest stops
			}
			return
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil: // out of files, or the peer was gone before
			p.fail(err)
			select {
			case <-r.ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		if !take(r.all) {
			p.fail(errFull)
			_ = c.Close() // there is no more to tell it
			continue
		}
		r.wg.Go(func() {
			defer func() { <-r.all }()
			r.handle(c, p)
		})
	}
}

func take(slots chan struct{}) bool {
	select {
	case slots <- struct{}{}:
		return true
	default:
		return false
	}
}

func (r *relays) handle(c net.Conn, p *relayPoint) {
	defer c.Close()
	if !take(r.starting) {
		p.fail(errFull)
		return
	}
	ctx, cancel := context.WithTimeout(r.ctx, handshakeLimit+dialLimit)
	near, far, err := p.open(ctx, c)
	cancel()
	<-r.starting
	if err != nil {
		p.fail(err)
		return
	}
	defer far.Close()
	stop := context.AfterFunc(r.ctx, func() { _, _ = near.Close(), far.Close() })
	defer stop()
	p.accepted.Add(1)
	p.live.Add(1)
	defer p.live.Add(-1)
	both(near, far)
}

func (p *relayPoint) fail(err error) {
	p.failed.Add(1)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cause = err
}

// report says once a minute what went wrong: a stranger's connections must not
// become lines of the log one by one.
func (r *relays) report(p *relayPoint) {
	tick := time.NewTicker(relayReportEvery)
	defer tick.Stop()
	told := int64(0)
	for {
		select {
		case <-r.ctx.Done():
			return
		case <-tick.C:
		}
		failed := p.failed.Load()
		if failed == told {
			continue
		}
		p.mu.Lock()
		cause := p.cause
		p.mu.Unlock()
		r.log.Warn("connections of a TLS endpoint failed", "endpoint", p.name, "failed", failed-told, "last", fmt.Sprintf("%.200q", fmt.Sprint(cause)))
		told = failed
	}
}

// both copies both ways until both have said their last word, or one breaks.
func both(a, b net.Conn) {
	var wg sync.WaitGroup
	wg.Go(func() { pump(a, b) })
	pump(b, a)
	wg.Wait()
}

// pump copies one way. The end of the source becomes the end of what the
// destination reads; an error ends both directions.
func pump(dst, src net.Conn) {
	err := copyAll(dst, src)
	if err == nil {
		err = closeWrite(dst)
	}
	if err != nil {
		_, _ = dst.Close(), src.Close() // what else there is to say, the first error said
	}
}

type writeCloser interface{ CloseWrite() error }

func closeWrite(c net.Conn) error {
	w, ok := c.(writeCloser)
	if !ok {
		return errors.ErrUnsupported
	}
	return w.CloseWrite()
}

// copyAll is io.Copy that keeps next to no memory for a connection on which
// nothing comes: most are idle most of the time.
func copyAll(dst io.Writer, src net.Conn) error {
	if c, ok := src.(*net.TCPConn); ok {
		return copyTCP(dst, c)
	}
	return copyTLS(dst, src)
}

var relayBuffers = sync.Pool{New: func() any { return new([relayBuffer]byte) }}

// copyTCP holds a buffer only while there is something in it.
func copyTCP(dst io.Writer, src *net.TCPConn) error {
	raw, err := src.SyscallConn()
	if err != nil {
		return err
	}
	for {
		var buf *[relayBuffer]byte
		var n int
		var rerr error
		if err := raw.Read(func(fd uintptr) (done bool) {
			buf = relayBuffers.Get().(*[relayBuffer]byte)
			if n, rerr = readNow(fd, buf[:]); rerr != errNotYet {
				return true
			}
			relayBuffers.Put(buf)
			return false
		}); err != nil {
			return err
		}
		done, err := pass(dst, buf[:n], rerr)
		relayBuffers.Put(buf)
		if done || err != nil {
			return err
		}
	}
}

// copyTLS cannot ask whether crypto/tls holds something back. It waits with a
// small buffer, and with one for a whole record while they come full.
func copyTLS(dst io.Writer, src io.Reader) error {
	var small [2 << 10]byte
	var large *[relayBuffer]byte
	defer func() {
		if large != nil {
			relayBuffers.Put(large)
		}
	}()
	for {
		buf := small[:]
		if large != nil {
			buf = large[:]
		}
		n, err := src.Read(buf)
		if done, err := pass(dst, buf[:n], err); done || err != nil {
			return err
		}
		switch full := n >= len(small); {
		case full && large == nil:
			large = relayBuffers.Get().(*[relayBuffer]byte)
		case !full && large != nil:
			relayBuffers.Put(large)
			large = nil
		}
	}
}

// pass hands on what a Read gave. The end of the source is no error.
func pass(dst io.Writer, b []byte, read error) (done bool, err error) {
	if len(b) > 0 {
		if _, err := dst.Write(b); err != nil {
			return false, err
		}
	}
	if read == io.EOF { // crypto/tls: only after close_notify
		return true, nil
	}
	return false, read
}
