package workload

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/containerd/containerd/v2/pkg/cio"
)

// Stream is one output of a container.
type Stream struct {
	Service   string
	Container string // containerd's id
	Image     string // with its digest
	Stderr    bool   // of a terminal, there is only the other
}

// Name is the stream's name as everybody knows it.
func (s Stream) Name() string {
	if s.Stderr {
		return "stderr"
	}
	return "stdout"
}

// output reads what the shim writes to a container's FIFOs. The daemon is not
// on this way: its death interrupts nothing.
type output struct {
	*cio.DirectIO
	wg    sync.WaitGroup
	lines []*lines

	mu     sync.Mutex
	ended  bool // the run is over
	notice []*time.Timer
}

func (o *output) Wait() { o.wg.Wait() }

// Cancel makes the readers return.
func (o *output) Cancel() {
	o.DirectIO.Cancel()
	// They are closed again by Close, which hears of errors.
	for _, p := range []io.Closer{o.Stdin, o.Stdout, o.Stderr} {
		if p != nil {
			_ = p.Close()
		}
	}
}

// end closes unfinished lines; nobody reads any more, or the reader is stuck.
func (o *output) end() {
	o.mu.Lock()
	o.ended = true
	for _, t := range o.notice {
		t.Stop()
	}
	o.mu.Unlock()
	for _, l := range o.lines {
		l.Close()
	}
}

// io makes the FIFOs that the shim writes to, and their readers.
func (s *service) io(r *run) (cio.Creator, error) {
	dir := s.dir() + "/fifo"
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if s.def.Discard && !s.def.StdinOpen {
		return cio.NullIO, nil
	}
	return func(id string) (cio.IO, error) {
		fifos, err := cio.NewFIFOSetInDir(dir, id, s.def.TTY)
		if err != nil {
			return nil, err
		}
		if !s.def.StdinOpen {
			fifos.Stdin = "" // else it is held open and never written to
		}
		if s.def.TTY {
			fifos.Stderr = ""
		}
		direct, err := cio.NewDirectIO(context.Background(), fifos)
		if err != nil {
			return nil, err
		}
		o := &output{DirectIO: direct}
		r.output = o
		s.read(o, o.Stdout, false)
		if !s.def.TTY {
			s.read(o, o.Stderr, true)
		}
		return o, nil
	}, nil
}

// read copies one FIFO to the owner's log until its end.
func (s *service) read(o *output, from io.Reader, stderr bool) {
	stream := Stream{Service: s.def.Name, Container: s.id(), Image: s.def.Image.Ref(), Stderr: stderr}
	to := io.Discard
	if !s.def.Discard {
		to = s.w.opt.Output(stream)
	}
	l := newLines(to)
	o.lines = append(o.lines, l)
	o.wg.Go(func() {
		switch err := drain(l, from, s.w.starting.Load); {
		case s.w.opt.StreamEnded == nil, errors.Is(err, os.ErrClosed): // by us
		case err != nil:
			s.w.opt.StreamEnded(stream, err)
		default:
			o.later(func() { s.w.opt.StreamEnded(stream, nil) })
		}
	})
}

// later says so if the run goes on. The container's end, which is what ends its
// streams as a rule, may be heard of a little after them.
func (o *output) later(say func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		return
	}
	o.notice = append(o.notice, time.AfterFunc(streamGrace, func() {
		o.mu.Lock()
		ended := o.ended
		o.mu.Unlock()
		if !ended {
			say()
		}
	}))
}

// streamGrace is how long a stream may have ended before its container.
const streamGrace = 5 * time.Second

// drain reads to the end; nil = all was read. While others start, a stream that
// always has more takes at most a fifth of the time: it would slow them by what
// it costs the agent, which goes before all containers.
func drain(l *lines, from io.Reader, starting func() bool) error {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		begin := time.Now()
		l.write(buf[:n])
		if n >= len(buf)/2 && starting() {
			time.Sleep(min(4*time.Since(begin), time.Second))
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// Lines copies a container's output to its end, a line or a piece of one a
// write: what becomes of each stream here, for those who measure it.
func Lines(to io.Writer, from io.Reader) error {
	l := newLines(to)
	err := drain(l, from, func() bool { return false })
	l.Close()
	return err
}

// MaxLine is where a container's line is cut into pieces.
const MaxLine = 7 << 10

// lines turns a stream into writes of one line each, newline included. A long
// line makes several writes, of which only the last has the newline. The
// sink's errors are nothing that a container should notice.
type lines struct {
	mu  sync.Mutex
	out io.Writer
	buf []byte
}

func newLines(out io.Writer) *lines { return &lines{out: out, buf: make([]byte, 0, 512)} }

func (l *lines) write(p []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		part := p
		if i >= 0 {
			part = p[:i]
		}
		if room := MaxLine - len(l.buf); len(part) > room {
			l.buf = append(l.buf, part[:room]...)
			p = p[room:]
			l.piece()
			continue
		}
		l.buf = append(l.buf, part...)
		p = p[len(part):]
		if i >= 0 {
			p = p[1:]
			l.line()
		}
	}
}

// Close ends an unfinished line.
func (l *lines) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.buf) > 0 {
		l.line()
	}
}

func (l *lines) line() {
	// The sink drops what it cannot take and counts it (Options.Output).
	_, _ = l.out.Write(append(l.buf, '\n'))
	l.buf = l.buf[:0]
}

// piece writes what there is of a line, less the beginning of a character
// whose rest is still to come.
func (l *lines) piece() {
	end := len(l.buf)
	for i := end - 1; i >= end-utf8.UTFMax+1; i-- {
		if utf8.RuneStart(l.buf[i]) {
			if !utf8.FullRune(l.buf[i:]) {
				end = i
			}
			break
		}
	}
	_, _ = l.out.Write(l.buf[:end])
	l.buf = append(l.buf[:0], l.buf[end:]...)
}
