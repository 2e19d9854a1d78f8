package secret

import (
	"errors"
	"log/slog"
	"sync"

	"golang.org/x/sys/unix"
)

// chunkSize is what the arena maps at a time; larger secrets get a mapping of
// their own.
const chunkSize = 64 << 10

var arena struct {
	sync.Mutex
	free []byte
}

// alloc returns n zeroed bytes in locked pages that no core dump holds.
// The pages are wiped by their owner but never unmapped: a slice kept past
// Wipe then reads zeroes instead of killing the process.
func alloc(n int) []byte {
	if n > chunkSize/4 {
		return mapPages(n)
	}
	arena.Lock()
	defer arena.Unlock()
	if len(arena.free) < n {
		arena.free = mapPages(chunkSize)
	}
	mem := arena.free[:n:n]
	arena.free = arena.free[n:]
	return mem
}

// mapPages may fail to lock for want of a limit (a test, the host tool): the
// bytes are then merely off the heap.
func mapPages(n int) []byte {
	mem, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return make([]byte, n)
	}
	if err := errors.Join(unix.Mlock(mem), unix.Madvise(mem, unix.MADV_DONTDUMP)); err != nil {
		slog.Debug("secret memory is not locked", "error", err)
	}
	return mem
}
