package logship

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"hpcr/agent/event"
)

const (
	spillAt    = 4 << 20 // octets that wait in memory before some go to the disk
	spillAfter = 2 * time.Second
	backlogNap = 500 * time.Millisecond
	diskLimit  = 30 * time.Second // for one operation; then the disk is given up
	diskPause  = 5 * time.Second  // after a failed write, as on a full disk
	firstFile  = 1 << 40          // so that there are numbers before it, too
)

// Folder is where messages wait that memory should not hold.
type Folder struct {
	Dir     string // on encrypted storage; nobody else writes to it
	Limit   int64  // octets of files in it
	Lasting bool   // it outlives the boot: what waits is written early, with fsync
}

// backlog are the messages between those that are in flight and the spool: they
// are older than the spool's. The shipper's lock guards it, but never while the
// disk is asked: the disk is the host's and may not answer.
type backlog struct {
	Folder
	read    []*item    // taken from the oldest file, or held back from writing
	files   []*segment // younger than read
	writing []*item    // younger than files, on their way to the disk
	stolen  bool       // writing was sent meanwhile: its file goes at once
	open    []*segment // have been read, not all of it has settled
	settled []*segment // their messages have arrived
	used    int64
	next    uint64
	want    bool      // read is empty and the pump waits
	since   time.Time // when the present operation began; zero = none
	pause   time.Time // no write before
	wake    chan struct{}
	stop    context.CancelFunc
	ended   chan struct{}
}

// Keep makes messages wait in f. What an earlier boot left there is sent, as
// soon as what was in flight is, before what waits; n is how many messages.
// It may be called once.
func (s *Shipper) Keep(f Folder) (n int, err error) {
	files, err := findSegments(f.Dir)
	if err != nil {
		return 0, fmt.Errorf("messages kept on a disk: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	b := &backlog{Folder: f, files: files, next: firstFile, wake: make(chan struct{}, 1), stop: stop, ended: make(chan struct{})}
	for _, g := range files {
		n += g.n
		b.used += g.size
		b.next = max(b.next, g.number+1)
	}
	s.mu.Lock()
	s.backlog = b
	s.mu.Unlock()
	signal(s.wake)
	go s.serve(ctx, b)
	return n, nil
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// older moves the next message of the backlog to a batch. wait = there is one,
// but it must be read first.
func (b *backlog) older() (it *item, wait bool) {
	switch {
	case b == nil:
		return nil, false
	case len(b.read) > 0:
	case len(b.files) > 0:
		b.want = true
		signal(b.wake)
		return nil, true
	case len(b.writing) > 0 && !b.stolen: // faster than the disk
		b.read, b.stolen = slices.Clone(b.writing), true // it is being encoded
	default:
		return nil, false
	}
	it, b.read[0] = b.read[0], nil
	b.read = b.read[1:]
	return it, false
}

// held is what of it is in memory.
func (b *backlog) held() int {
	if b == nil {
		return 0
	}
	n := size(b.read)
	if !b.stolen {
		n += size(b.writing)
	}
	return n
}

// waiting counts messages; on is how many of them are on the disk.
func (b *backlog) waiting() (n, on int) {
	if b == nil {
		return 0, 0
	}
	for _, g := range b.files {
		on += g.n
	}
	n = on + len(b.read)
	if !b.stolen {
		n += len(b.writing)
	}
	return n, on
}

// oldest is when its oldest message was queued, or zero.
func (b *backlog) oldest() (t time.Time) {
	switch {
	case b == nil:
	case len(b.read) > 0:
		t = b.read[0].at
	case len(b.files) > 0:
		t = b.files[0].at // zero of an earlier boot's
	case len(b.writing) > 0 && !b.stolen:
		t = b.writing[0].at
	}
	return t
}

// serve is the only one who asks the disk, until ctx ends.
func (s *Shipper) serve(ctx context.Context, b *backlog) {
	defer close(b.ended)
	tick := time.NewTicker(backlogNap)
	defer tick.Stop()
	for ctx.Err() == nil {
		if job := s.diskJob(b, time.Now()); job != nil {
			job()
			continue
		}
		select {
		case <-ctx.Done():
		case <-b.wake:
		case <-tick.C:
		}
	}
}

// diskJob chooses what to do next on the disk.
func (s *Shipper) diskJob(b *backlog, now time.Time) func() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.backlog != b {
		return nil
	}
	switch {
	case len(b.settled) > 0:
		g := b.settled[0]
		b.settled = b.settled[1:]
		b.since = now
		return func() { s.removeFile(b, g) }
	case b.want && len(b.files) > 0:
		g := b.files[0]
		b.since = now
		return func() { s.readFile(b, g) }
	case now.Before(b.pause):
		return nil
	case b.writing == nil && s.spills(b, now):
		b.writing = s.spool.cutOff(s, segmentBytes)
		b.hold(&s.spool)
		fallthrough
	case b.writing != nil:
		g := newSegment(b.next, b.writing)
		b.next++
		b.since = now
		return func() { s.writeFile(b, g) }
	}
	return nil
}

// hold tells the spool how much of the bound the backlog has taken.
func (b *backlog) hold(s *spool) { s.held = b.held() }

// spills says whether messages leave memory: when they are many, and on a disk
// that lasts also when they wait because the server is away.
func (s *Shipper) spills(b *backlog, now time.Time) bool {
	if s.spool.n == 0 || b.used+int64(maxSegment) > b.Limit {
		return false
	}
	return s.spool.bytes > spillAt || b.Lasting && !s.stats.Connected && now.Sub(s.spool.first.at) > spillAfter
}

// cutOff takes the oldest messages, and records of loss where some are missing.
func (sp *spool) cutOff(s *Shipper, octets int) (out []*item) {
	for n := 0; n < octets && sp.n > 0; {
		it := sp.pop()
		if it.src.gap > 0 {
			out = append(out, s.lossRecord(it.src, it.src.gap))
			it.src.gap = 0
		}
		out = append(out, it)
		n += len(it.msg) + recordHead
	}
	return out
}

func newSegment(number uint64, items []*item) *segment {
	g := &segment{number: number, n: len(items), at: items[0].at, lost: map[*Source]uint64{}}
	for _, it := range items {
		g.lost[it.src]++
	}
	return g
}

func (s *Shipper) writeFile(b *backlog, g *segment) {
	s.mu.Lock()
	items := b.writing // stays as it is; older only looks at it
	s.mu.Unlock()
	octets := encodeSegment(items)
	g.size = int64(len(octets))
	err := g.store(b.Dir, octets, b.Lasting)
	s.mu.Lock()
	defer s.mu.Unlock()
	b.since = time.Time{}
	if s.backlog != b {
		return // given up meanwhile; the messages have been taken back
	}
	if err != nil {
		b.pause = time.Now().Add(diskPause)
		if b.stolen {
			b.writing, b.stolen = nil, false
		}
		return
	}
	b.used += g.size
	if b.stolen {
		b.settled = append(b.settled, g)
	} else {
		b.files = append(b.files, g)
	}
	b.writing, b.stolen = nil, false
	b.hold(&s.spool)
	signal(s.wake)
}

func (s *Shipper) readFile(b *backlog, g *segment) {
	items, err := g.load(b.Dir)
	s.mu.Lock()
	defer s.mu.Unlock()
	b.since = time.Time{}
	if s.backlog != b {
		return
	}
	b.want, b.files = false, b.files[1:]
	if err != nil {
		items = s.missing(g)
	}
	for _, it := range items {
		it.seg = g
		if err == nil && g.earlier() {
			markEarlier(it)
		}
		if it.src == nil {
			it.src = s.own
		}
	}
	if g.left = len(items); g.left == 0 {
		b.settled = append(b.settled, g)
	} else {
		b.open = append(b.open, g)
	}
	b.read = items
	b.hold(&s.spool)
	signal(s.wake)
}

// missing are records of what was lost with a file.
func (s *Shipper) missing(g *segment) (out []*item) {
	if g.earlier() {
		items, _ := s.own.form.render(Entry{Severity: SeverityWarning, MsgID: string(event.LogLost),
			Text: fmt.Appendf(nil, "a file of log messages that an earlier boot kept cannot be read; by its head it held %d", g.n)}, 0)
		s.number(items[0])
		items[0].src = s.own
		return items
	}
	for src, n := range g.lost {
		src.lost += n
		s.spool.lost += n
		out = append(out, s.lossRecord(src, n))
	}
	return out
}

func (s *Shipper) removeFile(b *backlog, g *segment) {
	// A file that stays is sent again by the next boot, with its old numbers.
	err := remove(g.path(b.Dir))
	s.mu.Lock()
	defer s.mu.Unlock()
	b.since = time.Time{}
	if err == nil {
		b.used -= g.size
	}
}

// settle notes that messages will not be repeated.
func (s *Shipper) settled(items []*item) {
	b := s.backlog
	if b == nil {
		return
	}
	for _, it := range items {
		if it.seg == nil {
			continue
		}
		if it.seg.left--; it.seg.left == 0 {
			b.open = slices.DeleteFunc(b.open, func(g *segment) bool { return g == it.seg })
			b.settled = append(b.settled, it.seg)
			signal(b.wake)
		}
	}
}

// giveUp is called often. It stops using a disk that does not answer: what is
// in its files is lost, and counted.
func (s *Shipper) giveUp(now time.Time) {
	s.mu.Lock()
	b := s.backlog
	hangs := b != nil && !b.since.IsZero() && now.Sub(b.since) >= diskLimit
	if hangs {
		s.forsake(b)
	}
	s.mu.Unlock()
	if hangs {
		s.own.Send(Entry{Severity: SeverityError, MsgID: string(event.LogKept),
			Text: fmt.Appendf(nil, "the disk of waiting log messages has not answered for %d s and is not used any more", int(diskLimit.Seconds()))})
	}
}

// forsake goes on without the disk, with the shipper's lock held.
func (s *Shipper) forsake(b *backlog) {
	b.stop()
	back := b.read
	for _, g := range b.files {
		back = append(back, s.missing(g)...)
	}
	if !b.stolen {
		back = append(back, b.writing...)
	}
	for _, it := range back {
		it.seg = nil
	}
	s.repeat = append(s.repeat, back...)
	s.backlog = nil
	s.spool.held = 0
	signal(s.wake)
}

// Park writes what waits to a lasting folder, for the next boot, and uses the
// folder no more: after it, nothing of the shipper's keeps it from being
// unmounted. kept is how many messages are in it. Without a folder it does nothing.
func (s *Shipper) Park(ctx context.Context) (kept int, err error) {
	s.mu.Lock()
	b := s.backlog
	s.mu.Unlock()
	if b == nil {
		return 0, nil
	}
	b.stop()
	select {
	case <-b.ended:
	case <-ctx.Done():
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.backlog == b {
			s.forsake(b)
		}
		return 0, fmt.Errorf("messages kept on a disk: %w", ctx.Err())
	}
	type result struct {
		kept int
		err  error
	}
	done := make(chan result, 1)
	go func() {
		kept, err := s.park(b)
		done <- result{kept, err}
	}()
	select {
	case r := <-done:
		return r.kept, r.err
	case <-ctx.Done(): // what was taken for the disk is lost if the disk has it not
		return 0, fmt.Errorf("messages kept on a disk: %w", ctx.Err())
	}
}

// park runs while nobody else asks the disk.
func (s *Shipper) park(b *backlog) (kept int, err error) {
	s.mu.Lock()
	if s.backlog != b {
		s.mu.Unlock()
		return 0, nil
	}
	s.backlog = nil
	s.spool.held = 0
	if !b.Lasting {
		s.backlog = b
		s.forsake(b)
		s.mu.Unlock()
		return 0, nil
	}
	// Messages whose file is still there need no other.
	fresh := func(items []*item) (out []*item) {
		for _, it := range items {
			if it.seg == nil {
				out = append(out, it)
			}
		}
		return out
	}
	// To a server that takes nothing more, what was written may not have arrived.
	var flying []*item
	if len(s.sending) > 0 || s.unacked() > 0 {
		flying = append(flying, s.fl.items...)
		flying = append(flying, s.sending...)
	}
	flying = append(flying, s.repeat...)
	before, after := append(fresh(flying), fresh(b.read)...), b.writing
	if b.stolen {
		after = nil
	}
	// A file that was read stays if a message of it was not written to any
	// connection, or was to one that broke or hangs.
	stays := map[*segment]int{}
	for _, it := range append(flying, b.read...) {
		if it.seg != nil {
			stays[it.seg]++
		}
	}
	for _, g := range b.open {
		if stays[g] == 0 {
			b.settled = append(b.settled, g)
		}
	}
	s.repeat = nil
	after = append(after, s.spool.cutOff(s, spoolBytes)...)
	first := uint64(firstFile)
	for _, g := range b.files {
		first = min(first, g.number)
		kept += g.n
	}
	for g, n := range stays {
		first = min(first, g.number)
		kept += n
	}
	s.mu.Unlock()

	for _, g := range b.settled {
		err = errors.Join(err, remove(g.path(b.Dir)))
	}
	write := func(items []*item, number func(i int) uint64) {
		for i, part := range parts(items) {
			if e := newSegment(number(i), part).store(b.Dir, encodeSegment(part), true); e != nil {
				err = errors.Join(err, e)
				continue
			}
			kept += len(part)
		}
	}
	n := uint64(len(parts(before)))
	write(before, func(i int) uint64 { return first - n + uint64(i) })
	write(after, func(i int) uint64 { return b.next + uint64(i) })
	return kept, err
}

// parts cuts messages into segments.
func parts(items []*item) (out [][]*item) {
	begin, n := 0, 0
	for i, it := range items {
		if n += len(it.msg) + recordHead; n >= segmentBytes || i == len(items)-1 {
			out = append(out, items[begin:i+1])
			begin, n = i+1, 0
		}
	}
	return out
}
