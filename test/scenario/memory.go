package scenario

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Needle is one form in which a secret may lie in memory.
type Needle struct {
	Kind  string // of the secret
	Form  string // of its writing
	Bytes []byte // at least 8; short enough to lie in one page
}

// Page is one of the guest's, as the guest accounts for it.
type Page struct {
	Number uint64   `json:"number"`
	Flags  uint64   `json:"flags"`
	Users  []string `json:"users"`
}

// Hit is where a needle was found.
type Hit struct {
	Needle
	Address uint64 // physical, or in the file
	Page    Page
}

// Search looks for the needles in the whole of the guest's memory, from
// outside, while the guest stands still; then it asks the guest whose pages
// they are. Nothing that is searched for enters the guest.
func (d *Direct) Search(t *testing.T, needles []Needle) []Hit {
	t.Helper()
	must(t, d.vm.Pause(t.Context()))
	ram, err := d.vm.RAM()
	must(t, err)
	defer func() { must(t, ram.Close()) }()
	hits, size, err := search(ram, needles)
	must(t, errors.Join(err, d.vm.Resume(t.Context())))
	var numbers []uint64
	for _, h := range hits {
		if n := h.Page.Number; !slices.Contains(numbers, n) {
			numbers = append(numbers, n)
		}
	}
	t.Logf("%d MiB of the guest's memory searched, %d hits in %d pages", size>>20, len(hits), len(numbers))
	pages := map[uint64]Page{}
	for part := range slices.Chunk(numbers, 1000) {
		for _, p := range d.ask(t, map[string]any{"cmd": "pages", "pages": part}).Pages {
			pages[p.Number] = p
		}
	}
	for i := range hits {
		if p, known := pages[hits[i].Page.Number]; known {
			hits[i].Page = p
		}
	}
	// The guest went on while it looked: what has no owner and is gone by now
	// had one when it was found; and a process's own page that is a file's as
	// well became the file's meanwhile.
	gone := func(h Hit) bool {
		now := make([]byte, len(h.Bytes))
		_, err := ram.ReadAt(now, int64(h.Address))
		must(t, err)
		return !bytes.Equal(now, h.Bytes)
	}
	for i, h := range hits {
		if own := processesOwn(h.Page.Users); len(own) > 0 && gone(h) {
			hits[i].Page.Users = own
		}
	}
	return slices.DeleteFunc(hits, func(h Hit) bool { return len(h.Page.Users) == 0 && gone(h) })
}

// processesOwn are the users of a page that is not a file's.
func processesOwn(users []string) (own []string) {
	for _, u := range users {
		if strings.HasSuffix(u, " [anon]") {
			own = append(own, u)
		}
	}
	return own
}

// SearchFile looks for the needles in a file, such as a disk whose guest is off.
func SearchFile(t *testing.T, path string, needles []Needle) []Hit {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	hits, _, err := search(f, needles)
	must(t, errors.Join(err, f.Close()))
	return hits
}

const (
	pageSize = 4096
	prefix   = 8 // bytes by which needles are told apart
)

// search goes over the parts of a sparse file that are there, and says how
// large they are.
func search(f *os.File, needles []Needle) (hits []Hit, size int64, err error) {
	fi, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	var first [1 << 16]bool // what a needle may begin with
	table := map[uint64][]Needle{}
	for _, n := range needles {
		first[binary.NativeEndian.Uint16(n.Bytes)] = true
		k := binary.NativeEndian.Uint64(n.Bytes)
		table[k] = append(table[k], n)
	}
	const chunk, overlap = 16 << 20, pageSize
	buf := make([]byte, chunk+overlap)
	for at := int64(0); ; {
		begin, err := f.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return hits, size, nil
		} else if err != nil {
			return nil, 0, err
		}
		end, err := f.Seek(begin, unix.SEEK_HOLE)
		if err != nil {
			return nil, 0, err
		}
		end = min(end, begin+chunk)
		n, err := f.ReadAt(buf[:min(end+overlap, fi.Size())-begin], begin)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, 0, err
		}
		b := buf[:n]
		for i := range min(int(end-begin), n-prefix+1) {
			if !first[binary.NativeEndian.Uint16(b[i:])] {
				continue
			}
			for _, needle := range table[binary.NativeEndian.Uint64(b[i:])] {
				if bytes.HasPrefix(b[i:], needle.Bytes) {
					address := uint64(begin) + uint64(i)
					hits = append(hits, Hit{Needle: needle, Address: address, Page: Page{Number: address / pageSize}})
				}
			}
		}
		size += end - begin
		at = end
	}
}

// Place is the path of the file or the name of the process that accounts for
// the page; "kernel" if none does: slab, buffers, freed pages.
func (p Page) Place() string {
	for _, u := range p.Users {
		if path, is := strings.CutPrefix(u, "file "); is {
			return path
		}
	}
	if len(p.Users) == 0 {
		return "kernel"
	}
	name, _, _ := strings.Cut(p.Users[0], " ")
	return name
}
