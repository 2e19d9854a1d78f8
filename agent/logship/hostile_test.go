package logship

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestImpostor: when somebody else takes the log host's place after the boot,
// with a certificate of another authority, nothing goes there; the log waits,
// and goes to the log host when it is back.
func TestImpostor(t *testing.T) {
	a, other := newAuthority(t, "logs"), newAuthority(t, "logs") // the same name
	r := newRsyslog(t, a, a.issue(t, nil))
	r.start(t)
	s := open(t, config(t, a, a.issue(t, nil), r.port))
	defer s.Close()
	web := s.Source(Origin{Name: "web", App: "web"})
	web.Send(Entry{Text: []byte("before.")})
	r.waitLine(t, "before.")
	r.stop(t)

	fake := newRsyslog(t, other, other.issue(t, nil))
	fake.port, r.port = r.port, fake.port
	fake.configure(t, other, other.issue(t, nil))
	fake.start(t)
	const n = 100
	for i := range n {
		web.Send(Entry{Text: fmt.Appendf(nil, "to the owner %d.", i)})
	}
	time.Sleep(5 * time.Second) // two attempts at least
	st := s.Stats()
	if st.Connected || st.Reconnects > 0 || st.Spooled < n || st.Lag < 4*time.Second {
		t.Errorf("before the impostor: %+v", st)
	}
	fake.stop(t)
	if got := strings.Join(fake.lines(t), "\n"); got != "" {
		t.Errorf("the impostor has %q", got)
	}

	r.port = fake.port
	r.start(t)
	r.waitLine(t, fmt.Sprintf("to the owner %d.", n-1))
	got := strings.Join(r.lines(t), "\n")
	for i := range n {
		if !strings.Contains(got, fmt.Sprintf("to the owner %d.", i)) {
			t.Errorf("message %d is lost", i)
		}
	}
}

// TestSlowReader: a server that takes 128 KiB/s is slow and not gone: no new
// connection is made, nothing is lost, and the way that is left is not blocked
// for the sender.
func TestSlowReader(t *testing.T) {
	a := newAuthority(t, "logs")
	r := newRsyslog(t, a, a.issue(t, nil))
	r.start(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		in, err := l.Accept()
		if err != nil {
			return
		}
		if err := in.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
			t.Error(err)
		}
		out, err := net.Dial("tcp", r.addr())
		if err != nil {
			t.Error(err)
			return
		}
		back := make(chan struct{})
		go func() { io.Copy(in, out); in.(*net.TCPConn).CloseWrite(); close(back) }()
		for err = nil; err == nil; time.Sleep(50 * time.Millisecond) {
			_, err = io.CopyN(out, in, 128<<10/20)
		}
		out.Close()
		in.Close()
		<-back
	}()
	s := open(t, config(t, a, a.issue(t, nil), l.Addr().(*net.TCPAddr).Port))
	web := s.Source(Origin{Name: "web", App: "web"})
	const n = 900 // close to a megabyte
	begin := time.Now()
	for i := range n {
		web.Send(Entry{Text: fmt.Appendf(nil, "n=%d.%s", i, strings.Repeat(" pad", 250))})
	}
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("sending took %v", took)
	}
	r.waitLine(t, fmt.Sprintf("n=%d.", n-1))
	if took := time.Since(begin); took < 4*time.Second {
		t.Errorf("the reader was not slow: %v", took)
	}
	if st := s.Stats(); st.Reconnects > 0 || st.Lost > 0 || st.Repeated > 0 || st.Sent < n {
		t.Errorf("%+v", st)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	l.Close()
	<-done
}

// TestClockJumps: a clock that the host sets to 2100 or 1970 holds the log up
// while it is wrong, and loses nothing.
func TestClockJumps(t *testing.T) {
	for name, year := range map[string]int{"to 2100": 2100, "to 1970": 1970} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAuthority(t, "logs")
			r := newRsyslog(t, a, a.issue(t, nil))
			r.start(t)
			c := config(t, a, a.issue(t, nil), r.port)
			var wrong atomic.Bool
			c.Now = func() time.Time {
				if wrong.Load() {
					return time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC)
				}
				return time.Now()
			}
			s := open(t, c)
			defer s.Close()
			web := s.Source(Origin{Name: "web", App: "web"})
			web.Send(Entry{Text: []byte("n=1.")})
			r.waitLine(t, "n=1.")
			wrong.Store(true)
			r.stop(t)
			web.Send(Entry{Text: []byte("n=2.")})
			r.start(t)
			time.Sleep(3 * time.Second)
			if s.Stats().Connected {
				t.Errorf("in the year %d the server's certificate is accepted", year)
			}
			wrong.Store(false)
			web.Send(Entry{Text: []byte("n=3.")})
			r.waitLine(t, "n=3.")
			r.stop(t)
			if got, lost := arrived(t, r); len(got) != 3 || lost != 0 {
				t.Errorf("%v arrived, %d are counted as lost", got, lost)
			}
		})
	}
}

// TestFullCollector: a collector whose disk is full holds nobody up; once it has
// room, the log goes on. What it had taken and could not write is its own loss.
func TestFullCollector(t *testing.T) {
	a := newAuthority(t, "logs")
	r := newRsyslog(t, a, a.issue(t, nil))
	logFile := filepath.Join(r.dir, "log")
	if err := os.Symlink("/dev/full", logFile); err != nil {
		t.Fatal(err)
	}
	r.start(t)
	s := open(t, config(t, a, a.issue(t, nil), r.port))
	defer s.Close()
	web := s.Source(Origin{Name: "web", App: "web"})
	pad := strings.Repeat("x", 990)
	const n = 4 * spoolBytes / 1000
	begin := time.Now()
	for i := 1; i <= n; i++ {
		web.Send(Entry{Text: fmt.Appendf(nil, "n=%d.%s", i, pad)})
		if i%100 == 0 && s.Stats().SpooledSize > spoolBytes {
			t.Fatalf("%+v", s.Stats())
		}
	}
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("sending took %v", took)
	}
	r.stop(t)
	if err := os.Remove(logFile); err != nil {
		t.Fatal(err)
	}
	r.start(t)
	web.Send(Entry{Text: []byte("n=9999999.")})
	r.waitLine(t, "n=9999999.")
	arrived(t, r) // in order, none under two numbers
}
