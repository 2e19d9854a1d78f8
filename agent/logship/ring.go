package logship

// Bounds of what waits for the server.
const (
	ringMessages = 64 << 10
	ringBytes    = 8 << 20
	frameCost    = 48 // of a frame beyond its octets, so that small ones cannot exceed the bound
)

// ring is a queue of frames that drops its oldest when full. Not safe by itself.
type ring struct {
	buf     [][]byte // circular
	head    int
	n       int
	bytes   int
	dropped uint64 // since the last gap message
}

// push adds a frame at the end and drops from the front what exceeds the bounds.
func (r *ring) push(frame []byte) {
	r.grow()
	r.buf[(r.head+r.n)%len(r.buf)] = frame
	r.n++
	r.bytes += len(frame) + frameCost
	for r.n > ringMessages || r.bytes > ringBytes {
		r.pop()
		r.dropped++
	}
}

// unshift puts frames back at the front, in order; where the ring is full they
// are the oldest, hence the first to go.
func (r *ring) unshift(frames [][]byte) {
	for i := len(frames) - 1; i >= 0; i-- {
		cost := len(frames[i]) + frameCost
		if r.n+1 > ringMessages || r.bytes+cost > ringBytes {
			r.dropped += uint64(i + 1)
			return
		}
		r.grow()
		r.head = (r.head - 1 + len(r.buf)) % len(r.buf)
		r.buf[r.head] = frames[i]
		r.n++
		r.bytes += cost
	}
}

func (r *ring) pop() []byte {
	frame := r.buf[r.head]
	r.buf[r.head] = nil
	r.head = (r.head + 1) % len(r.buf)
	r.n--
	r.bytes -= len(frame) + frameCost
	return frame
}

func (r *ring) grow() {
	if r.n < len(r.buf) {
		return
	}
	bigger := make([][]byte, max(64, 2*len(r.buf)))
	for i := range r.n {
		bigger[i] = r.buf[(r.head+i)%len(r.buf)]
	}
	r.buf, r.head = bigger, 0
}
