package qemu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Bounds, and the addresses of the virtio specification, 5.10.
const (
	hostCID, guestCID = 2, 3

	vsockHeader = 44
	vsockBuffer = 64 << 10 // what a guest may send ahead; also the longest payload
	vsockChunk  = 2 << 10  // what we send at once: Linux gives buffers of nearly 4 KiB
	maxOut      = 256      // packets that wait for the guest's buffers
	maxRing     = 1024
	maxRegions  = 8
	maxMessage  = 4 << 10
)

// Operations of a vsock packet.
const (
	opRequest = iota + 1
	opResponse
	opReset
	opShutdown
	opData
	opCredit
	opCreditRequest
)

const (
	rxRing = iota
	txRing
)

// vsock is the device behind vhost-user-vsock-pci: QEMU connects to its socket
// and hands over the guest's memory; packets then go by without QEMU. Streams
// that the host opens, and no others: what the guest asks for is reset.
type vsock struct {
	listener *net.UnixListener

	mu      sync.Mutex // of all below, the guest's memory included
	changed *sync.Cond
	conn    *net.UnixConn
	over    bool
	memory  []region
	rings   [2]ring
	out     [][]byte
	streams map[uint32]*stream // by our port
	port    uint32             // the last one given
}

// region is a piece of the guest's memory, by its two names.
type region struct {
	guest, qemu uint64
	bytes       []byte
}

// ring is a split virtqueue; addresses are QEMU's.
type ring struct {
	size              uint32
	next              uint16
	desc, avail, used uint64
	off               bool
	kick, call        *os.File
}

// stream is one connection. Its user holds the other end of the pipe.
type stream struct {
	local, remote     uint32
	pipe              net.Conn
	up, over          bool
	in                []byte // from the guest, not yet read
	ended             bool   // the guest sends no more
	received, read    uint32 // bytes from the guest
	sent, taken, room uint32 // bytes to the guest, and how many it buffers
}

func listenVsock(path string) (*vsock, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("offer a vsock: %w", err)
	}
	v := &vsock{listener: l, streams: map[uint32]*stream{}, port: 1 << 16}
	v.changed = sync.NewCond(&v.mu)
	go v.serve()
	return v, nil
}

// close ends all streams; what waits for the device then fails.
func (v *vsock) close() {
	_ = v.listener.Close() // nothing was written to it
	v.mu.Lock()
	defer v.mu.Unlock()
	v.stop()
}

// stop lets serve end. The caller holds mu.
func (v *vsock) stop() {
	v.over = true
	if v.conn != nil {
		_ = v.conn.Close() // wakes serve, which cleans up
	}
}

func (v *vsock) serve() {
	conn, err := v.listener.AcceptUnix()
	_ = v.listener.Close() // one QEMU only
	v.mu.Lock()
	if err == nil {
		v.conn = conn
	}
	if v.over {
		v.stop()
	}
	v.mu.Unlock()
	for err == nil {
		err = v.message(conn)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.stop()
	for i := range v.rings {
		swap(&v.rings[i].kick, nil)
		swap(&v.rings[i].call, nil)
	}
	v.unmap()
	for _, s := range v.streams {
		v.drop(s)
	}
	v.changed.Broadcast() // who dials has no stream yet
}

// message takes one vhost-user message and answers it.
func (v *vsock) message(c *net.UnixConn) error {
	head, control := make([]byte, 12), make([]byte, unix.CmsgSpace(4*maxRegions))
	n, m, _, _, err := c.ReadMsgUnix(head, control)
	if err != nil {
		return err
	}
	fds, err := descriptors(control[:m])
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(fd) // what nobody took
		}
	}()
	if err != nil {
		return err
	}
	if _, err := io.ReadFull(c, head[n:]); err != nil {
		return err
	}
	host := binary.NativeEndian
	request, flags, size := host.Uint32(head), host.Uint32(head[4:]), host.Uint32(head[8:])
	if size > maxMessage {
		return fmt.Errorf("vhost-user message of %d bytes", size)
	}
	payload := make([]byte, size)
	if _, err := io.ReadFull(c, payload); err != nil {
		return err
	}
	v.mu.Lock()
	answer, err := v.handle(request, payload, &fds)
	v.mu.Unlock()
	if err != nil {
		return err
	}
	const replyFlags, needReply = 1 | 1<<2, 1 << 3
	if answer == nil {
		if flags&needReply == 0 {
			return nil
		}
		answer = make([]byte, 8)
	}
	reply := host.AppendUint32(nil, request)
	reply = host.AppendUint32(reply, replyFlags)
	reply = host.AppendUint32(reply, uint32(len(answer)))
	_, err = c.Write(append(reply, answer...))
	return err
}

func descriptors(control []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(control)
	var all []int
	for i := range messages {
		fds, ferr := unix.ParseUnixRights(&messages[i])
		all, err = append(all, fds...), errors.Join(err, ferr)
	}
	return all, err
}

// handle does what a message asks; the numbers are the vhost-user protocol's.
// It removes from fds what it keeps.
func (v *vsock) handle(request uint32, p []byte, fds *[]int) ([]byte, error) {
	host := binary.NativeEndian
	number := func(n uint64) ([]byte, error) { return host.AppendUint64(nil, n), nil }
	need := map[uint32]int{5: 8, 8: 8, 9: 40, 10: 8, 11: 8, 12: 8, 13: 8, 18: 8, 24: 12}[request]
	if len(p) < need {
		return nil, fmt.Errorf("vhost-user message %d is too short", request)
	}
	switch request {
	case 1: // features: VERSION_1, PROTOCOL_FEATURES
		return number(1<<32 | 1<<30)
	case 15: // protocol features: MQ, REPLY_ACK, CONFIG
		return number(1<<0 | 1<<3 | 1<<9)
	case 17: // queues
		return number(uint64(len(v.rings)))
	case 24: // configuration: the guest's CID
		cid := binary.LittleEndian.AppendUint64(nil, guestCID)
		if at := host.Uint32(p); at < uint32(len(cid)) {
			copy(p[12:], cid[at:])
		}
		return p, nil
	case 5:
		return nil, v.mapMemory(p, *fds)
	case 8, 9, 10, 11, 12, 13, 18:
	default:
		return nil, nil // owner, features, errors, logs: nothing to do
	}
	// Kick and call have flags above the index.
	index, argument := host.Uint32(p), host.Uint32(p[4:])
	if request == 12 || request == 13 {
		index &= 0xff
	}
	if index >= uint32(len(v.rings)) {
		return nil, fmt.Errorf("no ring %d", index)
	}
	r := &v.rings[index]
	switch request {
	case 8:
		if argument == 0 || argument > maxRing || argument&(argument-1) != 0 {
			return nil, fmt.Errorf("a ring of %d", argument)
		}
		r.size = argument
	case 9:
		r.desc, r.used, r.avail = host.Uint64(p[8:]), host.Uint64(p[16:]), host.Uint64(p[24:])
	case 10:
		r.next = uint16(argument)
	case 11:
		swap(&r.kick, nil)
		return host.AppendUint32(host.AppendUint32(nil, index), uint32(r.next)), nil
	case 12:
		f := take(fds, "kick")
		if swap(&r.kick, f); f != nil {
			go v.watch(index, f)
		}
	case 13:
		swap(&r.call, take(fds, "call"))
		r.notify()
	case 18:
		r.off = argument == 0
	}
	return nil, v.work()
}

// take makes a file of the first descriptor. The eventfd is shared with QEMU:
// it must stay non-blocking, and Fd would make it block.
func take(fds *[]int, name string) *os.File {
	if len(*fds) == 0 {
		return nil
	}
	fd := (*fds)[0]
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil
	}
	*fds = (*fds)[1:]
	return os.NewFile(uintptr(fd), name)
}

func swap(old **os.File, f *os.File) {
	if *old != nil {
		_ = (*old).Close() // an eventfd has nothing to flush
	}
	*old = f
}

// watch works whenever the guest kicks, until the ring gets another eventfd.
func (v *vsock) watch(index uint32, kick *os.File) {
	for b := make([]byte, 8); ; {
		if _, err := kick.Read(b); err != nil {
			return
		}
		v.mu.Lock()
		if v.rings[index].kick == kick && v.work() != nil {
			v.stop()
		}
		v.mu.Unlock()
	}
}

// mapMemory replaces the guest's memory.
func (v *vsock) mapMemory(p []byte, fds []int) error {
	host := binary.NativeEndian
	v.unmap()
	n := int(host.Uint32(p))
	if n > maxRegions || n != len(fds) || len(p) < 8+32*n {
		return fmt.Errorf("%d regions of memory with %d files", n, len(fds))
	}
	for i, fd := range fds {
		r := p[8+32*i:]
		guest, size, user, offset := host.Uint64(r), host.Uint64(r[8:]), host.Uint64(r[16:]), host.Uint64(r[24:])
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return fmt.Errorf("memory of the guest: %w", err)
		}
		// Beyond its end a mapping would kill us with SIGBUS.
		if end := uint64(st.Size); offset > end || size > end-offset {
			return fmt.Errorf("memory of the guest: region %d is longer than its file", i)
		}
		b, err := unix.Mmap(fd, int64(offset), int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return fmt.Errorf("memory of the guest: %w", err)
		}
		v.memory = append(v.memory, region{guest, user, b})
	}
	return nil
}

func (v *vsock) unmap() {
	for _, r := range v.memory {
		_ = unix.Munmap(r.bytes) // of a mapping of ours
	}
	v.memory = nil
}

var errMemory = errors.New("an address that is not the guest's memory")

// at is guest memory by the guest's address, or by QEMU's.
func (v *vsock) at(addr, size uint64, qemu bool) ([]byte, error) {
	for _, r := range v.memory {
		base, n := r.guest, uint64(len(r.bytes))
		if qemu {
			base = r.qemu
		}
		if addr >= base && size <= n && addr-base <= n-size {
			return r.bytes[addr-base:][:size:size], nil
		}
	}
	return nil, errMemory
}

// work moves packets both ways as far as the rings allow.
func (v *vsock) work() error {
	tx := &v.rings[txRing]
	err := v.each(tx, func(chain [][]byte, write bool) (uint32, bool) {
		var packet []byte
		for _, b := range chain {
			// The copy is ours alone: the guest cannot change what was checked.
			if write || len(packet)+len(b) > vsockHeader+vsockBuffer {
				return 0, true
			}
			packet = append(packet, b...)
		}
		v.receive(packet)
		return 0, true
	})
	if err != nil {
		return err
	}
	rx := &v.rings[rxRing]
	defer v.changed.Broadcast()
	return v.each(rx, func(chain [][]byte, write bool) (uint32, bool) {
		if len(v.out) == 0 {
			return 0, false
		}
		packet := v.out[0]
		v.out[0], v.out = nil, v.out[1:]
		n := 0
		for _, b := range chain {
			if write {
				n += copy(b, packet[n:])
			}
		}
		return uint32(n), true // a guest with small buffers loses what does not fit
	})
}

// each offers every waiting chain of a ring to use, which says how much it
// wrote and whether it took the chain.
func (v *vsock) each(r *ring, use func(chain [][]byte, write bool) (uint32, bool)) error {
	if r.size == 0 || r.kick == nil || r.off || len(v.memory) == 0 {
		return nil
	}
	desc, err1 := v.at(r.desc, 16*uint64(r.size), true)
	avail, err2 := v.at(r.avail, 4+2*uint64(r.size), true)
	used, err3 := v.at(r.used, 4+8*uint64(r.size), true)
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	little := binary.LittleEndian
	done := false
	var fence atomic.Uint32
	for range r.size {
		end := little.Uint16(avail[2:])
		fence.Add(1) // the entries are read after the index
		if waiting := end - r.next; waiting == 0 {
			break
		} else if uint32(waiting) > r.size {
			return errors.New("a ring with more entries than it has")
		}
		head := little.Uint16(avail[4+2*(uint32(r.next)%r.size):])
		chain, write, err := v.chain(desc, r.size, head)
		if err != nil {
			return err
		}
		n, taken := use(chain, write)
		if !taken {
			break
		}
		r.next++
		at := little.Uint16(used[2:])
		entry := used[4+8*(uint32(at)%r.size):]
		little.PutUint32(entry, uint32(head))
		little.PutUint32(entry[4:], n)
		fence.Add(1) // the index is written after the entry
		little.PutUint16(used[2:], at+1)
		done = true
	}
	if done {
		fence.Add(1)
		r.notify()
	}
	return nil
}

// chain follows descriptors, at most as many as the ring has. Linux never
// mixes directions in one of these rings.
func (v *vsock) chain(desc []byte, size uint32, head uint16) (chain [][]byte, write bool, err error) {
	const next, writable, indirect = 1, 2, 4
	little := binary.LittleEndian
	for i := uint32(0); i < size; i++ {
		if uint32(head) >= size {
			break
		}
		d := desc[16*uint32(head):][:16]
		addr, n, flags := little.Uint64(d), little.Uint32(d[8:]), little.Uint16(d[12:])
		if flags&indirect != 0 || i > 0 && write != (flags&writable != 0) {
			break
		}
		b, err := v.at(addr, uint64(n), false)
		if err != nil {
			return nil, false, err
		}
		chain, write = append(chain, b), flags&writable != 0
		if flags&next == 0 {
			return chain, write, nil
		}
		head = little.Uint16(d[14:])
	}
	return nil, false, errors.New("a chain of descriptors that does not hold together")
}

// notify interrupts the guest, asked for or not.
func (r *ring) notify() {
	if r.call != nil {
		_, _ = r.call.Write(binary.NativeEndian.AppendUint64(nil, 1)) // QEMU has gone: serve sees it
	}
}
