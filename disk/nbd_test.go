//go:build vm

package disk

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"hpcr/initramfs/qemu"
)

// turnBlock is the unit in which a turncoat counts reads: a guest's page.
const turnBlock = 4096

// turncoat is a disk of which each block reads as in first for some times, and
// as in then from there on. What is written to it goes into both.
type turncoat struct {
	mu          sync.Mutex
	first, then []byte
	turn        int   // reads of a block that see first
	reads       []int // of each block
	writes      int
}

// set gives the disk new content, and forgets what was counted.
func (d *turncoat) set(first, then []byte, turn int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, side := range []struct{ to, from []byte }{{d.first, first}, {d.then, then}} {
		clear(side.to)
		copy(side.to, side.from)
	}
	clear(d.reads)
	d.turn, d.writes = turn, 0
}

// counts says how often the most-read of some blocks was read, and how many
// writes there were.
func (d *turncoat) counts(blocks []int) (reads, writes int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, i := range blocks {
		reads = max(reads, d.reads[i])
	}
	return reads, d.writes
}

func (d *turncoat) holds(text string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return bytes.Contains(d.then, []byte(text))
}

func (d *turncoat) read(b []byte, at int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range b {
		block := (at + i) / turnBlock
		if i == 0 || (at+i)%turnBlock == 0 {
			d.reads[block]++
		}
		side := d.first
		if d.reads[block] > d.turn {
			side = d.then
		}
		b[i] = side[at+i]
	}
}

func (d *turncoat) write(b []byte, at int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.writes++
	copy(d.first[at:], b)
	copy(d.then[at:], b)
}

// newTurncoat serves such a disk for the test's time, to one client after the
// other.
func newTurncoat(t *testing.T, serial string, size int) (*turncoat, qemu.Disk) {
	t.Helper()
	d := &turncoat{first: make([]byte, size), then: make([]byte, size), reads: make([]int, size/turnBlock)}
	dir, err := os.MkdirTemp("", "nbd") // sockets want a short path
	must(t, err)
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	must(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if err := d.talk(c); err != nil {
				t.Errorf("NBD: %v", err)
			}
			c.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
		os.RemoveAll(dir)
	})
	return d, qemu.Disk{Serial: serial, File: "nbd+unix:///?socket=" + socket}
}

// Numbers of the NBD protocol (github.com/NetworkBlockDevice/nbd, doc/proto.md).
const (
	nbdMagic, nbdOption, nbdReply = 0x4e42444d41474943, 0x49484156454F5054, 0x3e889045565a9
	nbdRequest, nbdSimple         = 0x25609513, 0x67446698
	nbdFixed                      = 1               // handshake flag: newstyle
	nbdAbort, nbdGo               = 2, 7            // options
	nbdAck, nbdInfo, nbdUnknown   = 1, 3, 1<<31 | 1 // answers to options
	nbdHasFlags, nbdCanFlush      = 1, 4            // of the export
	nbdRead, nbdWrite, nbdDisc    = 0, 1, 2         // commands
	nbdFlush                      = 3
	nbdInvalid                    = 22 // EINVAL
)

// talk is the server's side of one connection.
func (d *turncoat) talk(c net.Conn) error {
	in, be := bufio.NewReader(c), binary.BigEndian
	send := func(values ...any) error {
		var b []byte
		for _, v := range values {
			var err error
			if b, err = binary.Append(b, be, v); err != nil {
				return err
			}
		}
		_, err := c.Write(b)
		return err
	}
	if err := send(uint64(nbdMagic), uint64(nbdOption), uint16(nbdFixed)); err != nil {
		return err
	}
	var flags uint32
	if err := binary.Read(in, be, &flags); err != nil {
		return err
	}
	for ready := false; !ready; {
		var o struct {
			Magic    uint64
			Kind, Of uint32
		}
		if err := binary.Read(in, be, &o); err != nil {
			return err
		}
		if _, err := io.CopyN(io.Discard, in, int64(o.Of)); err != nil {
			return err
		}
		answer := func(kind uint32, content ...any) error {
			n := 0
			for _, v := range content {
				n += binary.Size(v)
			}
			return send(append([]any{uint64(nbdReply), o.Kind, kind, uint32(n)}, content...)...)
		}
		var err error
		switch o.Kind {
		case nbdGo:
			err = errors.Join(answer(nbdInfo, uint16(0), uint64(len(d.first)), uint16(nbdHasFlags|nbdCanFlush)), answer(nbdAck))
			ready = true
		case nbdAbort:
			return answer(nbdAck)
		default:
			err = answer(nbdUnknown)
		}
		if err != nil {
			return err
		}
	}
	for {
		var r struct {
			Magic       uint32
			Flags, Kind uint16
			Cookie, At  uint64
			Of          uint32
		}
		if err := binary.Read(in, be, &r); errors.Is(err, io.EOF) {
			return nil // the machine went off
		} else if err != nil {
			return err
		}
		if r.Kind == nbdDisc {
			return nil
		}
		data, status := []byte{}, uint32(0)
		switch bounded := r.At+uint64(r.Of) <= uint64(len(d.first)); {
		case r.Kind == nbdRead && bounded:
			data = make([]byte, r.Of)
			d.read(data, int(r.At))
		case r.Kind == nbdWrite && bounded:
			b := make([]byte, r.Of)
			if _, err := io.ReadFull(in, b); err != nil {
				return err
			}
			d.write(b, int(r.At))
		case r.Kind == nbdFlush:
		default:
			status = nbdInvalid
		}
		if err := send(uint32(nbdSimple), status, r.Cookie, data); err != nil {
			return err
		}
	}
}
