//go:build dev

package agent

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// page says to whom a page of the guest's memory belongs. A test searches the
// memory from outside and asks here: what is searched for never enters the
// guest, where it would be found.
type page struct {
	Number uint64   `json:"number"` // of the page frame
	Flags  uint64   `json:"flags"`  // Linux, include/uapi/linux/kernel-page-flags.h
	Users  []string `json:"users"`  // "agent [anon]", "file /run/x"
}

const pageSize = 4096 // on both architectures

// owners looks the pages up among all processes, and among all files that lie
// in memory.
func owners(numbers []uint64) []page {
	pages := make([]page, len(numbers))
	at := map[uint64]int{}
	flags, err := os.Open("/proc/kpageflags")
	if err != nil {
		return nil
	}
	defer flags.Close()
	for i, n := range numbers {
		pages[i].Number = n
		at[n] = i
		b := make([]byte, 8)
		if _, err := flags.ReadAt(b, int64(n)*8); err == nil {
			pages[i].Flags = binary.NativeEndian.Uint64(b)
		}
	}
	note := func(n uint64, user string) {
		if i, wanted := at[n]; wanted && !slices.Contains(pages[i].Users, user) {
			pages[i].Users = append(pages[i].Users, user)
		}
	}
	ours := processes()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil
	}
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		name := ours[pid]
		if name == "" {
			name = "container"
		}
		eachPage(dir, func(n uint64, what string) { note(n, name+" "+what) })
	}
	eachFile(note)
	return pages
}

// eachPage tells of every page that a process has mapped.
func eachPage(dir string, tell func(number uint64, what string)) {
	maps, err := os.Open(filepath.Join(dir, "maps"))
	if err != nil {
		return // it ended meanwhile
	}
	defer maps.Close()
	table, err := os.Open(filepath.Join(dir, "pagemap"))
	if err != nil {
		return
	}
	defer table.Close()
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		f := strings.Fields(lines.Text())
		var from, to uint64
		if _, err := fmt.Sscanf(f[0], "%x-%x", &from, &to); err != nil || f[1] == "---p" || to > 1<<63 {
			continue
		}
		what := "[anon]"
		if len(f) > 5 {
			what = f[5]
		}
		eachNumber(table, from/pageSize, to/pageSize, func(n uint64) { tell(n, what) })
	}
}

// eachNumber reads a part of a page table (Documentation/admin-guide/mm/pagemap.rst).
func eachNumber(table *os.File, from, to uint64, tell func(uint64)) {
	const present = 1 << 63
	b := make([]byte, 8*4096)
	for from < to {
		part := b[:8*min(to-from, 4096)]
		if _, err := table.ReadAt(part, int64(from)*8); err != nil {
			return
		}
		for i := 0; i < len(part); i += 8 {
			if e := binary.NativeEndian.Uint64(part[i:]); e&present != 0 {
				tell(e & (1<<55 - 1))
			}
		}
		from += uint64(len(part) / 8)
	}
}

// eachFile tells of the pages of every file below /, as far as memory holds
// them, by mapping the file here for a moment.
func eachFile(tell func(number uint64, user string)) {
	table, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return
	}
	defer table.Close()
	_ = filepath.WalkDir("/", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return nil // it vanished
		case d.IsDir() && (path == "/proc" || path == "/sys" || path == "/dev"):
			return fs.SkipDir
		case !d.Type().IsRegular():
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return nil
		}
		defer f.Close()
		fi, err := f.Stat()
		if err != nil || fi.Size() == 0 {
			return nil
		}
		mem, err := unix.Mmap(int(f.Fd()), 0, int(fi.Size()), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
		if err != nil {
			return nil
		}
		defer unix.Munmap(mem)
		from := uint64(uintptr(unsafe.Pointer(&mem[0]))) / pageSize
		eachNumber(table, from, from+(uint64(len(mem))+pageSize-1)/pageSize, func(n uint64) { tell(n, "file "+path) })
		return nil
	})
}
