package secret

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// chunkSize is what the arena maps at a time; larger secrets get a mapping of
// their own.
const chunkSize = 64 << 10

var arena struct {
	sync.Mutex
	free []byte
}

var lockRequired atomic.Bool

// RequireLock makes memory that cannot be locked a panic from here on, and
// proves that some can. The guest's processes call it first.
func RequireLock() error {
	mem, err := mapPages(chunkSize)
	if err != nil {
		return err
	}
	arena.Lock()
	defer arena.Unlock()
	arena.free = mem
	lockRequired.Store(true)
	return nil
}

// alloc returns n zeroed bytes in locked pages that no core dump holds. Bytes
// are never given out a second time, and their pages never unmapped: a slice
// kept past Wipe then reads zeroes, instead of another secret or killing the
// process. An arena of a boot stays below 100 KiB.
func alloc(n int) []byte {
	if large(n) {
		return mustMap(n)
	}
	arena.Lock()
	defer arena.Unlock()
	if len(arena.free) < n {
		arena.free = mustMap(chunkSize)
	}
	mem := arena.free[:n:n]
	arena.free = arena.free[n:]
	return mem
}

func large(n int) bool { return n > chunkSize/4 }

func mustMap(n int) []byte {
	mem, err := mapPages(n)
	if err == nil {
		return mem
	}
	if mem == nil || lockRequired.Load() {
		panic("secret memory: " + err.Error())
	}
	// A test or the host tool without the right to lock.
	slog.Debug("secret memory is not locked", "error", err)
	return mem
}

// mapPages maps at least n bytes between guard pages and returns n of them,
// the last of which end at the upper guard. With an error, memory that was
// mapped but could not be protected comes along.
func mapPages(n int) ([]byte, error) {
	page := os.Getpagesize()
	room := (n + page - 1) / page * page
	all, err := unix.Mmap(-1, 0, room+2*page, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map: %w", err)
	}
	mem := all[page : page+room]
	if err := unix.Mprotect(mem, unix.PROT_READ|unix.PROT_WRITE); err != nil {
		return nil, errors.Join(fmt.Errorf("map: %w", err), unix.Munmap(all))
	}
	return mem[room-n:], protect(mem)
}

// protect locks pages as they come into being, keeps them out of core dumps
// and out of children that are forked without an exec.
func protect(mem []byte) error {
	lock, dump, fork := lockOnFault(mem), unix.Madvise(mem, unix.MADV_DONTDUMP), unix.Madvise(mem, unix.MADV_WIPEONFORK)
	if err := errors.Join(lock, dump, fork); err != nil {
		return fmt.Errorf("protect: %w", err)
	}
	return nil
}

// release gives the pages of a large secret, which is wiped, back to the
// kernel. Their addresses stay taken and read zeroes.
func release(mem []byte) {
	if !large(len(mem)) {
		return
	}
	// Failing means that the zeroes stay in memory.
	if whole := wholePages(mem); unix.Munlock(whole) == nil {
		_ = unix.Madvise(whole, unix.MADV_DONTNEED)
	}
}

// ReadAll reads up to limit bytes into a Secret. Nothing of them touches the
// heap. It takes address space for all of limit, memory only for what comes.
func ReadAll(r io.Reader, limit int) (*Secret, error) {
	mem := mustMap(max(limit, 1) + 1)
	n := 0
	for n < len(mem) {
		got, err := r.Read(mem[n:])
		n += got
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			clear(mem[:n])
			release(mem)
			return nil, err
		}
	}
	s := &Secret{mem: mem[:n:n], all: mem}
	if n > limit {
		s.Wipe()
		return nil, ErrTooLong
	}
	return s, nil
}
