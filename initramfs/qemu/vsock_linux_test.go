package qemu

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hpcr/initramfs"
)

// Layout of the guest's memory in these tests.
const (
	guestBase, qemuBase       = 0x10000, 0x7f0000000000
	memorySize                = 1 << 16
	rxAt, txAt, rxBufs, txBuf = 0x0, 0x1000, 0x4000, 0x8000
	availAt, usedAt           = 0x400, 0x800
	ringSize                  = 8
)

// fakeGuest is QEMU and a guest in one: the other side of the socket.
type fakeGuest struct {
	t      *testing.T
	v      *vsock
	conn   *net.UnixConn
	memory []byte
	kick   [2]int
	rxUsed uint16
}

func newFakeGuest(t *testing.T) *fakeGuest {
	t.Helper()
	path := filepath.Join(t.TempDir(), "vsock")
	v, err := listenVsock(path)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	g := &fakeGuest{t: t, v: v, conn: conn}
	t.Cleanup(func() {
		v.close()
		_ = conn.Close() // closed already, or about to be
	})
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Ftruncate(fd, memorySize); err != nil {
		t.Fatal(err)
	}
	if g.memory, err = unix.Mmap(fd, 0, memorySize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(g.memory) })
	g.ask(5, words(1, guestBase, memorySize, qemuBase, 0), fd)
	for i, at := range []uint64{rxAt, txAt} {
		kick, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(kick) })
		g.kick[i] = kick
		index := uint64(i)
		g.ask(8, words(index|ringSize<<32))
		g.ask(9, words(index, qemuBase+at, qemuBase+at+usedAt, qemuBase+at+availAt, 0))
		g.ask(10, words(index))
		dup, err := unix.FcntlInt(uintptr(kick), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		g.ask(12, words(index), dup)
		g.ask(18, words(index|1<<32))
	}
	return g
}

func words(w ...uint64) []byte {
	var b []byte
	for _, n := range w {
		b = binary.NativeEndian.AppendUint64(b, n)
	}
	return b
}

// ask sends a message, closes its files, and waits for the acknowledgement.
func (g *fakeGuest) ask(request uint32, payload []byte, fds ...int) []byte {
	g.t.Helper()
	reply, err := g.tell(request, payload, fds...)
	if err != nil {
		g.t.Fatalf("message %d: %v", request, err)
	}
	return reply
}

func (g *fakeGuest) tell(request uint32, payload []byte, fds ...int) ([]byte, error) {
	head := binary.NativeEndian.AppendUint32(nil, request)
	head = binary.NativeEndian.AppendUint32(head, 1|1<<3)
	head = binary.NativeEndian.AppendUint32(head, uint32(len(payload)))
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	_, _, err := g.conn.WriteMsgUnix(append(head, payload...), rights, nil)
	for _, fd := range fds {
		err = errors.Join(err, unix.Close(fd))
	}
	if err != nil {
		return nil, err
	}
	if err := g.conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return nil, err
	}
	reply := make([]byte, 12)
	if _, err := io.ReadFull(g.conn, reply); err != nil {
		return nil, err
	}
	body := make([]byte, binary.NativeEndian.Uint32(reply[8:]))
	_, err = io.ReadFull(g.conn, body)
	return body, err
}

// descriptor writes one into a ring.
func (g *fakeGuest) descriptor(ring, i int, addr uint64, n uint32, flags, next uint16) {
	d := g.memory[ring+16*i:]
	binary.LittleEndian.PutUint64(d, addr)
	binary.LittleEndian.PutUint32(d[8:], n)
	binary.LittleEndian.PutUint16(d[12:], flags)
	binary.LittleEndian.PutUint16(d[14:], next)
}

// offer makes a chain available, and kicks.
func (g *fakeGuest) offer(q, ring int, head uint16) {
	g.t.Helper()
	g.v.mu.Lock() // the race detector knows nothing of fences
	avail := g.memory[ring+availAt:]
	n := binary.LittleEndian.Uint16(avail[2:])
	binary.LittleEndian.PutUint16(avail[4+2*(n%ringSize):], head)
	binary.LittleEndian.PutUint16(avail[2:], n+1)
	g.v.mu.Unlock()
	if _, err := unix.Write(g.kick[q], words(1)); err != nil {
		g.t.Fatal(err)
	}
}

// send gives the device a packet.
func (g *fakeGuest) send(packet []byte) {
	g.t.Helper()
	g.v.mu.Lock()
	copy(g.memory[txBuf:], packet)
	g.descriptor(txAt, 0, guestBase+txBuf, uint32(len(packet)), 0, 0)
	used := binary.LittleEndian.Uint16(g.memory[txAt+usedAt+2:])
	g.v.mu.Unlock()
	g.offer(txRing, txAt, 0)
	g.wait(txAt, used+1)
}

// receive offers a buffer and returns the packet that comes.
func (g *fakeGuest) receive() []byte {
	g.t.Helper()
	g.v.mu.Lock()
	g.descriptor(rxAt, 0, guestBase+rxBufs, 0x1000, 2, 0)
	g.v.mu.Unlock()
	g.offer(rxRing, rxAt, 0)
	g.rxUsed++
	g.wait(rxAt, g.rxUsed)
	g.v.mu.Lock()
	defer g.v.mu.Unlock()
	n := binary.LittleEndian.Uint32(g.memory[rxAt+usedAt+4+8*(uint32(g.rxUsed-1)%ringSize)+4:])
	return slices.Clone(g.memory[rxBufs:][:n])
}

func (g *fakeGuest) wait(ring int, used uint16) {
	g.t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		g.v.mu.Lock()
		now := binary.LittleEndian.Uint16(g.memory[ring+usedAt+2:])
		g.v.mu.Unlock()
		if now == used {
			return
		}
		if time.Now().After(end) {
			g.t.Fatalf("the device used %d chains, want %d", now, used)
		}
	}
}

// packet is the guest's answer to one of ours.
func packet(to []byte, op uint16, flags, room uint32, data string) []byte {
	little := binary.LittleEndian
	p := little.AppendUint64(nil, guestCID)
	p = little.AppendUint64(p, hostCID)
	p = little.AppendUint32(p, little.Uint32(to[20:]))
	p = little.AppendUint32(p, little.Uint32(to[16:]))
	p = little.AppendUint32(p, uint32(len(data)))
	p = little.AppendUint16(p, 1)
	p = little.AppendUint16(p, op)
	p = little.AppendUint32(p, flags)
	p = little.AppendUint32(p, room)
	p = little.AppendUint32(p, 0)
	return append(p, data...)
}

func operation(p []byte) uint16 { return binary.LittleEndian.Uint16(p[30:]) }

type dialed struct {
	conn net.Conn
	err  error
}

func (g *fakeGuest) dial() (<-chan dialed, []byte) {
	g.t.Helper()
	c := make(chan dialed, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		conn, err := g.v.dial(ctx, 9080)
		c <- dialed{conn, err}
	}()
	request := g.receive()
	if operation(request) != opRequest || binary.LittleEndian.Uint32(request[20:]) != 9080 {
		g.t.Fatalf("the guest got % x, want a request for port 9080", request)
	}
	return c, request
}

// Bytes go both ways, within the guest's credit, and the end is an end.
func TestVsockCarriesAStream(t *testing.T) {
	g := newFakeGuest(t)
	config := g.ask(24, append(words(8<<32), make([]byte, 12)...))
	if cid := binary.LittleEndian.Uint64(config[12:]); cid != guestCID {
		t.Errorf("the configuration says CID %d", cid)
	}
	c, request := g.dial()
	g.send(packet(request, opResponse, 0, 4, ""))
	d := <-c
	if d.err != nil {
		t.Fatal(d.err)
	}
	written := make(chan error, 1)
	go func() {
		_, err := d.conn.Write([]byte("questions"))
		written <- err
	}()
	if p := g.receive(); operation(p) != opData || string(p[vsockHeader:]) != "ques" {
		t.Errorf("with credit for 4 bytes the guest got %q", p[vsockHeader:])
	}
	g.send(packet(request, opCredit, 0, 100, ""))
	if p := g.receive(); string(p[vsockHeader:]) != "tions" {
		t.Errorf("after more credit the guest got %q", p[vsockHeader:])
	}
	if err := <-written; err != nil {
		t.Error(err)
	}
	g.send(packet(request, opData, 0, 100, "answer"))
	g.send(packet(request, opShutdown, 3, 100, ""))
	got, err := io.ReadAll(d.conn)
	if err != nil || string(got) != "answer" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestVsockRefusal(t *testing.T) {
	g := newFakeGuest(t)
	c, request := g.dial()
	g.send(packet(request, opReset, 0, 0, ""))
	if d := <-c; !errors.Is(d.err, unix.ECONNREFUSED) {
		t.Errorf("got %v, want refused", d.err)
	}
	// What the guest begins itself is reset.
	g.send(packet(make([]byte, vsockHeader), opRequest, 0, 100, ""))
	if p := g.receive(); operation(p) != opReset {
		t.Errorf("a request of the guest got operation %d, want a reset", operation(p))
	}
}

// A guest that breaks a ring, or a stream's bounds, loses the device or the
// stream. The tests' process survives; so do its other files and memory.
func TestVsockBounds(t *testing.T) {
	type guest = *fakeGuest
	for name, hostile := range map[string]func(guest){
		"an address outside":          func(g guest) { g.descriptor(txAt, 0, 1<<40, 44, 0, 0) },
		"an address that wraps":       func(g guest) { g.descriptor(txAt, 0, ^uint64(0)-8, 44, 0, 0) },
		"a length beyond the memory":  func(g guest) { g.descriptor(txAt, 0, guestBase, memorySize+1, 0, 0) },
		"an end beyond the memory":    func(g guest) { g.descriptor(txAt, 0, guestBase+memorySize-4, 44, 0, 0) },
		"QEMU's address":              func(g guest) { g.descriptor(txAt, 0, qemuBase, 44, 0, 0) },
		"a chain in a circle":         func(g guest) { g.descriptor(txAt, 0, guestBase, 4, 1, 0) },
		"a next one outside the ring": func(g guest) { g.descriptor(txAt, 0, guestBase, 4, 1, ringSize) },
		"an indirect one":             func(g guest) { g.descriptor(txAt, 0, guestBase, 16, 4, 0) },
		"an index far ahead": func(g guest) {
			g.descriptor(txAt, 0, guestBase+txBuf, vsockHeader, 0, 0)
			binary.LittleEndian.PutUint16(g.memory[txAt+availAt+2:], 1000)
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := newFakeGuest(t)
			g.v.mu.Lock()
			hostile(g)
			g.v.mu.Unlock()
			g.offer(txRing, txAt, 0)
			if err := g.conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err := g.conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("the device goes on: %v", err)
			}
			if _, err := g.v.dial(t.Context(), 9080); err == nil {
				t.Error("a device that has ended connects")
			}
		})
	}
	t.Run("more than its credit", func(t *testing.T) {
		g := newFakeGuest(t)
		c, request := g.dial()
		g.send(packet(request, opResponse, 0, 100, ""))
		d := <-c
		if d.err != nil {
			t.Fatal(d.err)
		}
		for range vsockBuffer>>14 + 1 { // nobody reads
			g.send(packet(request, opData, 0, 100, strings.Repeat("x", 1<<14)))
		}
		if p := g.receive(); operation(p) != opReset {
			t.Errorf("got operation %d, want a reset", operation(p))
		}
		if err := d.conn.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestVsockMessageBounds(t *testing.T) {
	for name, m := range map[string]struct {
		request uint32
		payload []byte
	}{
		"memory without a file":    {5, words(1, guestBase, memorySize, qemuBase, 0)},
		"memory of many regions":   {5, words(1 << 31)},
		"a short message":          {9, words(0)},
		"a third ring":             {8, words(2 | ringSize<<32)},
		"a ring of no power of 2":  {8, words(7 << 32)},
		"a ring of 2 Ki":           {8, words(2 << 10 << 32)},
		"addresses outside":        {9, words(0, 1, 2, 3, 4)},
		"a message of 5000 octets": {1, make([]byte, 5000)},
	} {
		t.Run(name, func(t *testing.T) {
			g := newFakeGuest(t)
			if reply, err := g.tell(m.request, m.payload); err == nil {
				t.Errorf("answered % x", reply)
			}
		})
	}
}

// Without the option the command line is what it was.
func TestVsockIsOffByDefault(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, initramfs.ParmFile), []byte("quiet"), 0o644); err != nil {
		t.Fatal(err)
	}
	for arch, machine := range map[string]string{"amd64": "q35", "s390x": "s390-ccw-virtio"} {
		for _, on := range []bool{false, true} {
			args, err := arguments(Options{Image: dir, Dir: dir, Vsock: on, Memory: 512}, &initramfs.Manifest{Recipe: initramfs.Recipe{Arch: arch}})
			if err != nil {
				t.Fatal(err)
			}
			line := strings.Join(args, " ") + " "
			if strings.Contains(line, "vsock") != on || strings.Contains(line, "memfd") != on || strings.Contains(line, "-M "+machine+" ") == on {
				t.Errorf("%s, vsock %v: %s", arch, on, line)
			}
			if on && !strings.Contains(line, "size=512M,share=on") {
				t.Errorf("%s: the memory's size is not the machine's: %s", arch, line)
			}
		}
	}
}
