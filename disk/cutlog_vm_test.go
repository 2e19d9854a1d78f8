//go:build vm

package disk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"

	"hpcr/initramfs/qemu"
)

// recording is a disk as it was, and what a guest then did to it, write for
// write: QEMU's blklogwrites, in dm-log-writes' form
// (Documentation/admin-guide/device-mapper/log-writes.rst).
type recording struct {
	d      disks
	kind   string // of file system, or "integrity"
	base   string // file
	size   int64  // of the disk, while it was recorded
	log    *os.File
	writes []logged
	marks  map[string]int // name of a file of keep to the number of writes after which it is durable
}

type logged struct {
	at, n   int64 // bytes
	pos     int64 // of the data in the log
	flushes int   // before it
}

// record has the disk's writes logged while the guest of boot runs.
func (d disks) record(what string, disks []qemu.Disk, boot func(disks []qemu.Disk)) []*recording {
	d.t.Helper()
	var all []*recording
	logged := slices.Clone(disks)
	for i, v := range disks {
		logged[i].Log = d.path(what + "-log-" + v.Serial)
		must(d.t, os.WriteFile(logged[i].Log, nil, 0o600))
		st, err := os.Stat(v.File)
		must(d.t, err)
		r := &recording{d: d, kind: v.Serial, base: d.path(what + "-base-" + v.Serial), size: st.Size(), marks: map[string]int{}}
		run(d.t, "cp", "--sparse=always", v.File, r.base)
		all = append(all, r)
	}
	boot(logged)
	for i, r := range all {
		f, err := os.Open(logged[i].Log)
		must(d.t, err)
		d.t.Cleanup(func() { f.Close() })
		r.log = f
		if r.parse(); len(r.marks) == 0 {
			d.t.Fatalf("%s: no mark of keep in what was logged", r.kind)
		}
	}
	return all
}

func (r *recording) parse() {
	t, le := r.d.t, binary.LittleEndian
	t.Helper()
	head := make([]byte, 512)
	_, err := r.log.ReadAt(head, 0)
	must(t, err)
	if le.Uint64(head) != 0x6a736677736872 || le.Uint64(head[8:]) != 1 || le.Uint32(head[24:]) != 512 {
		t.Fatalf("not a log of writes: %x", head[:32])
	}
	pos, flushes := int64(512), 0
	for range le.Uint64(head[16:]) {
		_, err := r.log.ReadAt(head[:32], pos)
		must(t, err)
		pos += 512
		w := logged{at: int64(le.Uint64(head)) * 512, n: int64(le.Uint64(head[8:])) * 512, pos: pos, flushes: flushes}
		switch flags := le.Uint64(head[16:]); {
		case flags == 1 && w.n == 0: // flush
			flushes++
		case flags == 0 && w.n > 0:
			r.writes = append(r.writes, w)
			pos += w.n
			if w.at == keptMark {
				name, _, _ := bytes.Cut(r.data(w), []byte{0})
				r.marks[string(name)] = len(r.writes)
			}
		default:
			t.Fatalf("an entry of the log that no disk of a volume gets: %x", head[:32])
		}
	}
	t.Logf("%s: %d writes, %d flushes, marks %v", r.kind, len(r.writes), flushes, r.marks)
}

func (r *recording) data(w logged) []byte {
	r.d.t.Helper()
	b := make([]byte, w.n)
	_, err := io.ReadFull(io.NewSectionReader(r.log, w.pos, w.n), b)
	must(r.d.t, err)
	return b
}

// cut is one moment at which power goes: after how many writes, and which.
type cut struct {
	writes int
	how    int // see image
	seed   uint64
}

func (c cut) String() string {
	return fmt.Sprintf("after %d writes, %s (%d)", c.writes, []string{"all of them whole", "the next torn", "some of those lost that no flush covers"}[c.how], c.seed)
}

// cuts spreads n of them over the writes from..to, the three ways in turn.
func (r *recording) cuts(from, to, n int) []cut {
	r.d.t.Helper()
	if n > 3*(to-from) {
		r.d.t.Fatalf("%s: %d different cuts of %d writes", r.kind, n, to-from)
	}
	var all []cut
	for i := range n {
		all = append(all, cut{from + (2*i+1)*(to-from)/(2*n), i % 3, uint64(i)})
	}
	return all
}

// image makes the disk as that moment leaves it. What a flush covers is there
// whole. (A write that was under way when the flush was asked for counts as
// covered: nobody relies on it.)
func (r *recording) image(name string, c cut) string {
	t := r.d.t
	t.Helper()
	to := r.d.path(name)
	run(t, "cp", "--sparse=always", r.base, to)
	rng := rand.New(rand.NewPCG(1, c.seed))
	flushes := 0
	if c.writes > 0 {
		flushes = r.writes[c.writes-1].flushes
	}
	r.d.edit(qemu.Disk{File: to}, func(f *os.File) {
		must(t, f.Truncate(r.size))
		for _, w := range r.writes[:c.writes] {
			if c.how == 2 && w.flushes == flushes && rng.IntN(2) == 0 {
				continue
			}
			_, err := f.WriteAt(r.data(w), w.at)
			must(t, err)
		}
		if c.how == 1 && c.writes < len(r.writes) {
			w, grain := r.writes[c.writes], int64(512)
			if (r.kind == "xfs" || r.kind == "btrfs") && w.at >= dataStart && w.n%4096 == 0 {
				grain = 4096 // which these take for granted on a device of such sectors
			}
			_, err := f.WriteAt(r.data(w)[:rng.Int64N(w.n/grain)*grain], w.at)
			must(t, err)
		}
	})
	return to
}

// durable: the file of keep was, when power went.
func (r *recording) durable(c cut, name string) bool {
	n, ok := r.marks[name]
	return ok && c.writes >= n
}
