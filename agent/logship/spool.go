package logship

import (
	"slices"
	"time"
)

// Bounds of what is kept for the server: what waits, and what was written but
// may have to be repeated.
const (
	spoolBytes = 16 << 20
	itemCost   = 160 // of an item beyond its octets, so that small ones cannot exceed the bound

	// Repeated after a break: what the server's kernel has not acknowledged,
	// and what it has within the last recentFor, up to recentBytes. Linux lets
	// up to 6 MiB lie unread in a receiver's buffer by default.
	recentFor   = 30 * time.Second
	recentBytes = 6 << 20
	markEvery   = time.Second
)

// item is one message in the spool, without its number in the text.
type item struct {
	msg []byte
	cut int // where the number goes
	seq uint32
	at  time.Time // when it was queued
	src *Source
	end uint64   // octets on the connection after it; valid in flight
	old bool     // it has been written before
	seg *segment // the file that it also is in, or nil

	prev, next *item // in the spool
	later      *item // of the same source
}

func (it *item) cost() int { return len(it.msg) + itemCost }

// spool is a queue of items in the order of their numbers. It keeps the bound
// by dropping the oldest item of the source that holds most: a source loses
// nothing as long as it holds less than an equal share. Not safe by itself.
type spool struct {
	first, last *item
	n           int
	bytes       int // of what waits
	flying      int // of what is in flight, see flight
	held        int // of the backlog, what is in memory
	sources     []*Source
	lost        uint64
}

func (s *spool) push(it *item) {
	src := it.src
	if s.last == nil {
		s.first = it
	} else {
		s.last.next, it.prev = it, s.last
	}
	s.last = it
	if src.last == nil {
		src.first = it
	} else {
		src.last.later = it
	}
	src.last = it
	s.n++
	src.n++
	s.bytes += it.cost()
	src.bytes += it.cost()
	for s.bytes+s.flying+s.held > spoolBytes && s.drop() {
	}
}

// drop gives up the oldest item of the largest source, never its last one: the
// record of the loss goes before it.
func (s *spool) drop() bool {
	var largest *Source
	for _, src := range s.sources {
		if src.n > 1 && (largest == nil || src.bytes > largest.bytes) {
			largest = src
		}
	}
	if largest == nil {
		return false
	}
	s.remove(largest.first)
	largest.gap++
	largest.lost++
	s.lost++
	return true
}

// remove takes out an item that is the first of its source.
func (s *spool) remove(it *item) {
	if it.prev == nil {
		s.first = it.next
	} else {
		it.prev.next = it.next
	}
	if it.next == nil {
		s.last = it.prev
	} else {
		it.next.prev = it.prev
	}
	src := it.src
	src.first = it.later
	if src.first == nil {
		src.last = nil
	}
	it.prev, it.next, it.later = nil, nil, nil
	s.n--
	src.n--
	s.bytes -= it.cost()
	src.bytes -= it.cost()
}

// pop takes the oldest item, which is the oldest of its source, too.
func (s *spool) pop() *item {
	it := s.first
	s.remove(it)
	return it
}

// flight holds what was written to the present connection and may have to be
// repeated on the next.
type flight struct {
	items []*item
	bytes int
	marks []mark
}

// mark says how far the server's kernel had acknowledged at a time.
type mark struct {
	at    time.Time
	acked uint64
}

func (f *flight) add(items []*item) {
	for _, it := range items {
		f.bytes += it.cost()
	}
	f.items = append(f.items, items...)
}

// settle forgets what was acknowledged long enough ago, and beyond recentBytes
// whatever was acknowledged. It returns what it forgot.
func (f *flight) settle(now time.Time, acked uint64) (gone []*item) {
	if n := len(f.marks); n == 0 || now.Sub(f.marks[n-1].at) >= markEvery {
		f.marks = append(f.marks, mark{now, acked})
	}
	long := -1
	for i, m := range f.marks {
		if now.Sub(m.at) >= recentFor {
			long = i
		}
	}
	settled := uint64(0)
	if long >= 0 {
		settled = f.marks[long].acked
		f.marks = append(f.marks[:0], f.marks[long:]...)
	}
	n := 0
	for n < len(f.items) && (f.items[n].end <= settled || f.bytes > recentBytes && f.items[n].end <= acked) {
		f.bytes -= f.items[n].cost()
		n++
	}
	gone, f.items = slices.Clone(f.items[:n]), f.items[n:]
	return gone
}
