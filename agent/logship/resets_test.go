package logship

import (
	"context"
	"fmt"
	"io"
	"net"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// cutter is a way to a server that breaks by a reset after so many octets.
type cutter struct {
	net.Listener
	to    string
	after int64
	wg    sync.WaitGroup
	mu    sync.Mutex
	cuts  int
}

func (c *cutter) serve() {
	defer c.wg.Done()
	for {
		in, err := c.Accept()
		if err != nil {
			return
		}
		c.wg.Go(func() {
			out, err := net.Dial("tcp", c.to)
			if err != nil {
				in.Close()
				return
			}
			back := make(chan struct{})
			go func() { io.Copy(in, out); close(back) }()
			if n, _ := io.CopyN(out, in, c.after); n == c.after {
				c.mu.Lock()
				c.cuts++
				c.mu.Unlock()
			}
			in.(*net.TCPConn).SetLinger(0) // a reset, with whatever is on its way
			in.Close()
			out.Close()
			<-back
		})
	}
}

// TestResetsMidFrame: connections that are reset within frames, again and
// again, lose nothing at rsyslogd, and nothing comes under two numbers.
func TestResetsMidFrame(t *testing.T) {
	a := newAuthority(t, "logs")
	r := newRsyslog(t, a, a.issue(t, nil))
	r.start(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cut := &cutter{Listener: l, to: r.addr(), after: 20011}
	cut.wg.Add(1)
	go cut.serve()
	defer func() { l.Close(); cut.wg.Wait() }()
	var way atomic.Value // the address that is dialled
	way.Store(l.Addr().String())
	s, err := Open(t.Context(), config(t, a, a.issue(t, nil), r.port), func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, way.Load().(string))
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	web := s.Source(Origin{Name: "web", App: "web"})
	const n = 40
	for i := range n {
		web.Send(Entry{Text: fmt.Appendf(nil, "n=%d.%s", i, strings.Repeat(" pad", 200))})
		time.Sleep(50 * time.Millisecond)
	}
	// What is repeated is more than one connection takes: then the way heals.
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		cut.mu.Lock()
		enough := cut.cuts >= 2
		cut.mu.Unlock()
		if enough {
			break
		}
	}
	way.Store(r.addr())
	r.waitLine(t, fmt.Sprintf("n=%d.", n-1))
	numbers, form := map[int]string{}, regexp.MustCompile(`sequenceId="(\d+)".*\bn=(\d+)\. pad`)
	for _, line := range r.lines(t) {
		m := form.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		i, err := strconv.Atoi(m[2])
		if err != nil {
			t.Fatal(err)
		}
		if before, again := numbers[i]; again && before != m[1] {
			t.Errorf("message %d came as number %s and %s", i, before, m[1])
		}
		numbers[i] = m[1]
	}
	cut.mu.Lock()
	cuts := cut.cuts
	cut.mu.Unlock()
	if cuts < 2 || len(numbers) != n {
		t.Errorf("%d of %d messages after %d resets", len(numbers), n, cuts)
	}
}
