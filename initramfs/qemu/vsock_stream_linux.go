package qemu

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// receive takes a packet of the guest.
func (v *vsock) receive(packet []byte) {
	little := binary.LittleEndian
	if len(packet) < vsockHeader {
		return
	}
	h, data := packet[:vsockHeader], packet[vsockHeader:]
	if little.Uint64(h) != guestCID || little.Uint64(h[8:]) != hostCID || uint32(len(data)) < little.Uint32(h[24:]) {
		return
	}
	data = data[:little.Uint32(h[24:])]
	remote, local, op, flags := little.Uint32(h[16:]), little.Uint32(h[20:]), little.Uint16(h[30:]), little.Uint32(h[32:])
	s := v.streams[local]
	if s == nil || s.remote != remote || little.Uint16(h[28:]) != 1 {
		if op != opReset {
			v.send(&stream{local: local, remote: remote}, opReset, 0, nil)
		}
		return
	}
	s.room, s.taken = little.Uint32(h[36:]), little.Uint32(h[40:])
	defer v.changed.Broadcast()
	switch op {
	case opResponse:
		s.up = true
	case opData:
		s.received += uint32(len(data))
		if !s.up || s.ended || s.received-s.read > vsockBuffer {
			v.reset(s)
			return
		}
		s.in = append(s.in, data...)
	case opCredit:
	case opCreditRequest:
		v.send(s, opCredit, 0, nil)
	case opShutdown:
		s.ended = s.ended || flags&2 != 0
		if flags&3 == 3 {
			v.reset(s)
		}
	default:
		v.drop(s)
	}
}

func (v *vsock) reset(s *stream) {
	v.send(s, opReset, 0, nil)
	v.drop(s)
}

// drop forgets a stream; what the guest sent before is still delivered.
func (v *vsock) drop(s *stream) {
	s.over = true
	if v.streams[s.local] == s {
		delete(v.streams, s.local)
	}
	v.changed.Broadcast()
}

// send queues a packet. A guest that makes us talk without taking any of it
// loses packets, and with them its streams.
func (v *vsock) send(s *stream, op uint16, flags uint32, data []byte) {
	if len(v.out) >= 2*maxOut {
		v.drop(s)
		return
	}
	little := binary.LittleEndian
	p := little.AppendUint64(nil, hostCID)
	p = little.AppendUint64(p, guestCID)
	p = little.AppendUint32(p, s.local)
	p = little.AppendUint32(p, s.remote)
	p = little.AppendUint32(p, uint32(len(data)))
	p = little.AppendUint16(p, 1) // stream
	p = little.AppendUint16(p, op)
	p = little.AppendUint32(p, flags)
	p = little.AppendUint32(p, vsockBuffer)
	p = little.AppendUint32(p, s.read)
	v.out = append(v.out, append(p, data...))
}

// push is work outside of messages and kicks: a ring that breaks ends it all.
func (v *vsock) push() {
	if v.work() != nil {
		v.stop()
	}
}

func (v *vsock) dial(ctx context.Context, port uint32) (net.Conn, error) {
	defer context.AfterFunc(ctx, func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.changed.Broadcast()
	})()
	v.mu.Lock()
	defer v.mu.Unlock()
	near, far := net.Pipe()
	v.port++
	s := &stream{local: v.port, remote: port, pipe: far}
	v.streams[s.local] = s
	v.send(s, opRequest, 0, nil)
	v.push()
	for !s.up && !s.over && !v.over && ctx.Err() == nil {
		v.changed.Wait()
	}
	if s.up && !v.over {
		go v.toHost(s)
		go v.toGuest(s)
		return near, nil
	}
	if !s.over {
		v.reset(s)
		v.push()
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("connect to vsock port %d: %w", port, err)
	}
	return nil, fmt.Errorf("connect to vsock port %d: %w", port, unix.ECONNREFUSED)
}

// toHost gives the user what the guest sends. The pipe has no half-close: the
// guest's end of sending is the end of the connection.
func (v *vsock) toHost(s *stream) {
	defer s.pipe.Close()
	for {
		v.mu.Lock()
		for len(s.in) == 0 && !s.ended && !s.over {
			v.changed.Wait()
		}
		data := s.in
		s.in = nil
		v.mu.Unlock()
		if len(data) == 0 {
			return
		}
		if _, err := s.pipe.Write(data); err != nil {
			return // the user has closed; toGuest tells the guest
		}
		v.mu.Lock()
		s.read += uint32(len(data))
		if !s.over {
			v.send(s, opCredit, 0, nil)
			v.push()
		}
		v.mu.Unlock()
	}
}

// toGuest sends what the user writes, as far as the guest has room.
func (v *vsock) toGuest(s *stream) {
	for buf := make([]byte, vsockChunk); ; {
		n, err := s.pipe.Read(buf)
		v.mu.Lock()
		for data := buf[:n]; len(data) > 0 && !s.over; {
			waiting := s.sent - s.taken
			if waiting >= s.room || len(v.out) >= maxOut {
				v.changed.Wait()
				continue
			}
			k := min(uint32(len(data)), s.room-waiting)
			v.send(s, opData, 0, data[:k])
			s.sent, data = s.sent+k, data[k:]
			v.push()
		}
		if err != nil && !s.over {
			v.send(s, opShutdown, 3, nil)
			v.push()
		}
		v.mu.Unlock()
		if err != nil {
			return
		}
	}
}
