package logship

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"time"

	"hpcr/agent/event"
	"hpcr/agent/secret"
)

// DefaultPort is syslog over TLS (RFC 5425).
const DefaultPort = 6514

const (
	minBackoff = time.Second
	maxBackoff = time.Minute
	batchBytes = 32 << 10
	settleTick = time.Second
	ownApp     = "hpcr-logging"
)

// Config is /env/logging/syslog, or with Cloud /env/logging/logRouter. Key stays the caller's: Open copies what it
// needs and the caller may wipe it afterwards.
type Config struct {
	Host     string
	Port     int    // 0 = 6514
	CA, Cert []byte // PEM
	Key      *secret.Secret
	Hostname string           // of the guest, for the HOSTNAME field
	Now      func() time.Time // the clock with the time floor, for certificates; nil = the system's
	Cloud    *Cloud           // not syslog: CA, Cert and Key are not used
	DNA      *DNA             // syslog for LogDNA: CA, Cert and Key are not used
}

// DialFunc is net.Dialer's DialContext.
type DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error)

// Shipper sends messages until Close. All methods may be called from any
// goroutine.
type Shipper struct {
	addr    string
	host    string
	tls     *tls.Config
	dial    DialFunc
	connect func(context.Context) (link, error)
	forget  func() // wipes what only connecting needs
	mark    []byte // goes before the structured data of each message
	own     *Source

	wake   chan struct{}
	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	spool   spool
	backlog *backlog // older than the spool; nil = memory alone
	repeat  []*item  // of a broken connection; they go before all else
	seq     uint32   // the next sequenceId
	sending []*item  // a batch that is being written, or that could not be
	link    link     // the present connection, or nil
	fl      flight   // what was written to it
	closed  bool
	batch   int   // octets that are sent at once
	most    int   // what batch grows to again
	stats   Stats // the counters of it
}

// Stats are the shipper's counters, since Open. The gauges are of now.
type Stats struct {
	Sent       uint64 // messages written to a connection
	Repeated   uint64 // written again after a break
	Lost       uint64 // dropped for want of room; each is a hole in the numbers
	Reconnects uint64

	Connected   bool
	Spooled     int           // messages that wait
	Kept        int           // how many of them are on the disk
	SpooledSize int           // their octets, with what each costs
	Lag         time.Duration // how long the oldest of them has waited
}

// Source is one origin of messages, with its share of the spool.
type Source struct {
	ship *Shipper
	name string
	form form

	mu   sync.Mutex // orders entries; taken before the shipper's
	part int        // of an unfinished line

	// The shipper's lock guards these.
	first, last *item
	n, bytes    int
	gap         uint64 // lost since the last record of loss
	lost        uint64
}

// Open connects, authenticates both sides, sends the probe message and waits
// briefly whether the server refuses us: in TLS 1.3 it judges our certificate
// only after our side of the handshake is over. Errors are *hpl.Error,
// HPL01005E to HPL01011E. dial nil = a plain dialer. No environment variable,
// no proxy, no plain text.
func Open(ctx context.Context, c Config, dial DialFunc) (*Shipper, error) {
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	s := &Shipper{
		host: c.Hostname,
		dial: dial,
		wake: make(chan struct{}, 1),
		done: make(chan struct{}),
		seq:  1,

		batch:  batchBytes,
		most:   batchBytes,
		forget: func() {},
	}
	failed := probeError
	if c.Cloud != nil {
		service, err := newService(c, dial)
		if err != nil {
			return nil, err
		}
		s.connect = func(ctx context.Context) (link, error) { return service.open(ctx, s.probeMessage) }
		s.forget = service.key.Wipe
		failed, s.batch, s.most = cloudError, cloudBatch, cloudBatch
	} else {
		config, err := tlsConfig(c)
		if c.DNA != nil {
			config, err = c.DNA.tls(c.Host)
			s.mark, s.forget = c.DNA.mark()
			failed = dnaError
		}
		if err != nil {
			s.forget()
			return nil, err
		}
		config.DynamicRecordSizingDisabled = true
		s.tls = config
		s.addr = net.JoinHostPort(c.Host, strconv.Itoa(cmp.Or(c.Port, DefaultPort)))
		s.connect = s.syslog
	}
	s.own = s.Source(Origin{Name: ownApp, Facility: FacilitySyslog, App: ownApp})
	first, err := s.connect(ctx)
	if err != nil {
		s.forget()
		return nil, failed(err)
	}
	run, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	go s.run(run, first)
	return s, nil
}

// Source returns the source of that name; the first call makes it.
func (s *Shipper) Source(o Origin) *Source {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, src := range s.spool.sources {
		if src.name == o.Name {
			return src
		}
	}
	src := &Source{ship: s, name: o.Name, form: newForm(o, s.host)}
	s.spool.sources = append(s.spool.sources, src)
	return src
}

// Send queues e and returns. It never blocks on the network; after Close it
// does nothing.
func (src *Source) Send(e Entry) {
	src.mu.Lock()
	defer src.mu.Unlock()
	var items []*item
	items, src.part = src.form.render(e, src.part)
	s := src.ship
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	for _, it := range items {
		it.src = src
		s.number(it)
		s.spool.push(it)
	}
	signal(s.wake)
	if s.backlog != nil && s.spool.bytes > spillAt {
		signal(s.backlog.wake)
	}
}

func (s *Shipper) number(it *item) {
	it.seq = s.seq
	s.seq = nextSeq(s.seq)
}

// Stats says how it stands.
func (s *Shipper) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stats
	st.Lost = s.spool.lost
	older, kept := s.backlog.waiting()
	st.Spooled, st.SpooledSize, st.Kept = s.spool.n+len(s.repeat)+older, s.spool.bytes+s.spool.held, kept
	switch since := s.backlog.oldest(); {
	case len(s.repeat) > 0:
		st.Lag = time.Since(s.repeat[0].at)
	case !since.IsZero():
		st.Lag = time.Since(since)
	case s.spool.first != nil:
		st.Lag = time.Since(s.spool.first.at)
	}
	return st
}

// Drain waits until the server's kernel, or the service, has everything sent so far.
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
	older, _ := s.backlog.waiting()
	return s.spool.n + len(s.repeat) + older + len(s.sending) + s.unacked()
}

// unacked counts what was written and the server's kernel has not acknowledged.
func (s *Shipper) unacked() (n int) {
	if len(s.fl.items) == 0 {
		return 0
	}
	acked := s.link.acked()
	for n < len(s.fl.items) && s.fl.items[len(s.fl.items)-1-n].end > acked {
		n++
	}
	return n
}

// Close ends the connection in order (close_notify). What still waits is lost:
// Drain before. A server that does not end the connection, too, may not have read
// what it got in the last 30 seconds: all of it counts as not sent.
func (s *Shipper) Close() error {
	s.mu.Lock()
	s.closed = true
	b := s.backlog
	s.mu.Unlock()
	s.cancel()
	<-s.done
	s.forget()
	if b != nil {
		b.stop()
		select {
		case <-b.ended:
		case <-time.After(closeLimit): // the disk does not answer
		}
	}
	if n := s.waiting(); n > 0 {
		return fmt.Errorf("%d log messages are not known to have arrived", n)
	}
	return nil
}

// run owns the connection until ctx ends.
func (s *Shipper) run(ctx context.Context, c link) {
	defer close(s.done)
	for {
		s.connected(c)
		why := s.pump(ctx, c)
		ends := ctx.Err() != nil
		arrived := ends && c.finish() && why == nil
		if !ends {
			_ = c.abort() // broken already
		}
		n := s.broken(arrived)
		if ends {
			return
		}
		broke := time.Now()
		if c = s.reconnect(ctx, &why); c == nil {
			return
		}
		text := fmt.Appendf(nil, "connected to the log server again after %d s; %d messages sent shortly before are repeated with their numbers", int(time.Since(broke).Seconds()), n)
		if st := new(stageError); errors.As(why, &st) && st.status != 0 {
			text = fmt.Appendf(text, "; the last answer before was HTTP status %d", st.status)
		}
		s.own.Send(Entry{Severity: SeverityWarning, MsgID: string(event.LogReconnected), Text: text})
	}
}

// broken takes back what may not have arrived; n = how many messages. They go
// before what an earlier break had left.
func (s *Shipper) broken(arrived bool) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	unsure := append(s.fl.items, s.sending...)
	if arrived {
		unsure = nil
	}
	s.repeat = append(unsure, s.repeat...)
	s.spool.flying = size(s.repeat)
	s.link, s.fl, s.sending, s.stats.Connected = nil, flight{}, nil, false
	return len(unsure)
}

func (s *Shipper) connected(c link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.link, s.stats.Connected = c, true
}

// reconnect tries until ctx ends. why is left at the last failure.
func (s *Shipper) reconnect(ctx context.Context, why *error) link {
	for attempt := 0; ; attempt++ {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(backoff(attempt, rand.Float64())):
		}
		c, err := s.connect(ctx)
		if err == nil {
			s.mu.Lock()
			s.stats.Reconnects++
			s.mu.Unlock()
			return c
		}
		*why = err
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

// pump writes until ctx ends or the connection breaks, which it returns the
// cause of.
func (s *Shipper) pump(ctx context.Context, c link) error {
	tick := time.NewTicker(settleTick)
	defer tick.Stop()
	settle := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.settled(s.fl.settle(time.Now(), c.acked()))
		s.spool.flying = s.fl.bytes + size(s.repeat)
	}
	for ctx.Err() == nil {
		batch := s.take()
		if batch == nil {
			select {
			case <-ctx.Done():
			case <-c.ended():
				return io.EOF
			case <-s.wake:
			case <-tick.C:
				settle()
				s.giveUp(time.Now())
			}
			continue
		}
		err := c.send(ctx, batch)
		var refused *batchRefused
		switch {
		case errors.As(err, &refused):
			s.refuse(batch, refused)
			pause(ctx, cloudPause) // it may refuse all
		case err != nil:
			return err
		case s.wrote(batch, c):
			pause(ctx, cloudPause) // one request for what is said together
		case !c.sure():
			settle()
		}
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// take removes the next batch. Where messages of a source were lost, a record
// that counts them goes before the source's next one.
func (s *Shipper) take() (batch []*item) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	add := func(it *item) {
		batch = append(batch, it)
		n += len(it.msg)
	}
	for n < s.batch && len(s.repeat) > 0 {
		add(s.repeat[0])
		s.repeat[0] = nil
		s.repeat = s.repeat[1:]
	}
	if len(s.repeat) == 0 {
		s.repeat = nil
	}
	wait := false
	for n < s.batch && !wait {
		var it *item
		if it, wait = s.backlog.older(); it == nil {
			break
		}
		add(it)
	}
	if s.backlog != nil {
		s.backlog.hold(&s.spool)
	}
	for n < s.batch && s.spool.n > 0 && !wait {
		it := s.spool.pop()
		if it.src.gap > 0 {
			add(s.lossRecord(it.src, it.src.gap))
			it.src.gap = 0
		}
		add(it)
	}
	s.sending = batch
	return batch
}

func (s *Shipper) lossRecord(src *Source, n uint64) *item {
	f := s.own.form
	f.data = appendParam(appendParam(nil, "lost", strconv.FormatUint(n, 10)), "source", src.name)
	items, _ := f.render(Entry{Severity: SeverityWarning, MsgID: string(event.LogLost),
		Text: fmt.Appendf(nil, "%d log messages of one source were lost here: the log server was away, or too slow, for too long", n)}, 0)
	s.number(items[0]) // it fits one message
	items[0].src = s.own
	return items[0]
}

// wrote notes that a batch is on the connection, and where it ends there. few =
// the log host has it, and little waits.
func (s *Shipper) wrote(batch []*item, c link) (few bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sending = nil
	end := c.written()
	for _, it := range batch {
		it.end = end
		if it.old {
			s.stats.Repeated++
		} else {
			s.stats.Sent++
		}
		it.old = true
	}
	if !c.sure() {
		s.fl.add(batch)
		return false
	}
	s.settled(batch)
	s.spool.flying = size(s.repeat)
	few = s.spool.bytes < s.batch/2
	s.batch = min(s.batch+s.batch/8+1, s.most)
	return few
}

// refuse divides a batch that is too large. One that the log host does not want,
// now or later, it counts.
func (s *Shipper) refuse(batch []*item, why *batchRefused) {
	s.mu.Lock()
	s.sending = nil
	if why.tooLarge() && len(batch) > 1 {
		s.batch = max(min(s.batch, octets(batch))/2, 1) // small before large: less than half may be needed
		s.repeat = append(batch, s.repeat...)
		s.spool.flying = size(s.repeat)
		s.mu.Unlock()
		return
	}
	lost := map[*Source]uint64{}
	for _, it := range batch {
		lost[it.src]++
		it.src.lost++
	}
	s.spool.lost += uint64(len(batch))
	s.settled(batch)
	s.spool.flying = size(s.repeat)
	s.mu.Unlock()
	for src, n := range lost {
		if src == s.own {
			continue // else a log host that refuses all would be told so without end
		}
		s.mu.Lock()
		it := s.lossRecord(src, n)
		it.msg = fmt.Appendf(it.msg, " (%s)", why)
		s.spool.push(it)
		s.mu.Unlock()
	}
}

func octets(items []*item) (n int) {
	for _, it := range items {
		n += len(it.msg)
	}
	return n
}

func size(items []*item) (n int) {
	for _, it := range items {
		n += it.cost()
	}
	return n
}
