package workload

import (
	"bytes"
	"io"
	"sync"
)

// MaxLine is where a container's line is cut; the rest of it is a line of its
// own.
const MaxLine = 8 << 10

// lines turns a stream into writes of one line each, newline included, and
// never reports an error: a container must not notice that its log is gone.
type lines struct {
	mu  sync.Mutex
	out io.Writer
	buf []byte
}

func newLines(out io.Writer) *lines { return &lines{out: out, buf: make([]byte, 0, 512)} }

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(p)
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		part := p
		if i >= 0 {
			part = p[:i]
		}
		if room := MaxLine - len(l.buf); len(part) > room {
			l.buf = append(l.buf, part[:room]...)
			p = p[room:]
			l.flush()
			continue
		}
		l.buf = append(l.buf, part...)
		p = p[len(part):]
		if i >= 0 {
			p = p[1:]
			l.flush()
		}
	}
	return n, nil
}

// Close ends an unfinished line.
func (l *lines) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.buf) > 0 {
		l.flush()
	}
	return nil
}

func (l *lines) flush() {
	// The sink drops what it cannot take and counts it (Options.Output).
	_, _ = l.out.Write(append(l.buf, '\n'))
	l.buf = l.buf[:0]
}
