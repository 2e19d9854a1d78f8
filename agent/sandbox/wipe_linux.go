package sandbox

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// wipe overwrites all memory of a child that has given its answer. The kernel
// does not clear what a process leaves behind (init_on_free would, but touches
// all of the guest's memory at boot), and Go's heap cannot be wiped from
// inside. The child is frozen first: a thread that went on would fall over its
// own zeroes and take the process away half done.
func (g *cgroup) wipe(ctx context.Context, pid int) error {
	if err := g.freeze(ctx); err != nil {
		return fmt.Errorf("freeze the child: %w", err)
	}
	if err := wipeProcess(pid); err != nil {
		return fmt.Errorf("wipe the child: %w", err)
	}
	return nil
}

func (g *cgroup) freeze(ctx context.Context) error {
	if err := os.WriteFile(filepath.Join(g.path, "cgroup.freeze"), []byte("1"), 0); err != nil {
		return err
	}
	for {
		events, err := os.ReadFile(filepath.Join(g.path, "cgroup.events"))
		if err != nil {
			return err
		}
		if strings.Contains(string(events), "frozen 1") {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
}

// wipeProcess writes zeroes over every page of private memory that the process
// could write to.
func wipeProcess(pid int) error {
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer mem.Close()
	zero := make([]byte, step)
	return eachPresent(pid, func(at, size int64) error {
		_, err := mem.WriteAt(zero[:size], at)
		return err
	})
}

// step is what eachPresent looks at together.
const step = 1 << 20

// eachPresent calls do for each piece of writable memory that is there, at most
// step bytes long. What is not there would come into being by a write.
func eachPresent(pid int, do func(at, size int64) error) error {
	dir := fmt.Sprintf("/proc/%d", pid)
	maps, err := os.Open(filepath.Join(dir, "maps"))
	if err != nil {
		return err
	}
	defer maps.Close()
	table, err := os.Open(filepath.Join(dir, "pagemap"))
	if err != nil {
		return err
	}
	defer table.Close()
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		var from, to int64
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x rw", &from, &to); err != nil {
			continue // code, constants, guard pages, vsyscall
		}
		for ; from < to; from += step {
			if err := presentIn(table, from, min(from+step, to), do); err != nil {
				return err
			}
		}
	}
	return lines.Err()
}

func presentIn(table *os.File, from, to int64, do func(at, size int64) error) error {
	const inMemory, swapped = 1 << 63, 1 << 62 // Documentation/admin-guide/mm/pagemap.rst
	page := int64(os.Getpagesize())
	entries := make([]byte, (to-from)/page*8)
	if _, err := table.ReadAt(entries, from/page*8); err != nil {
		return err
	}
	begin := from
	for at := from; ; at += page {
		if at < to && binary.NativeEndian.Uint64(entries[(at-from)/page*8:])&(inMemory|swapped) != 0 {
			continue
		}
		if at > begin {
			if err := do(begin, at-begin); err != nil {
				return err
			}
		}
		if begin = at + page; begin > to {
			return nil
		}
	}
}
