package workload

import (
	"bytes"
	"context"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

func itoa(i int) string { return strconv.Itoa(i) }

// Killing the daemon leaves the containers running and managed.
func TestDaemonKilled(t *testing.T) {
	b := newBench(t)
	ref := b.hub.push(t, "app", busybox(t, nil))
	w := b.up(t, `
x-base: &base {image: '`+ref+`', network_mode: none, restart: always, stop_grace_period: 1s}
services:
  steady: {<<: *base, command: [sh, -c, "while :; do echo tick; sleep 0.1; done"]}
  later: {<<: *base, command: [sh, -c, "echo up; exec sleep 1000"]}
  meanwhile: {<<: *base, command: [sh, -c, "echo up; exec sleep 1000"]}
`)
	before := w.Services()
	b.kill(t)
	lines := strings.Count(b.out.get("steady"), "tick")
	waitFor(t, "output while the daemon is away", func() bool { return strings.Count(b.out.get("steady"), "tick") > lines+2 })
	// One container dies while nobody looks.
	if err := syscall.Kill(int(before[2].Pid), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for _, s := range before[:2] {
		if !alive(s.Pid) {
			t.Fatalf("%s died with the daemon", s.Name)
		}
	}
	b.start(t)
	waitFor(t, "the container that died unseen", func() bool { s := w.Services()[2]; return s.Phase == Running && s.Restarts == 1 })
	// And one later: the wait must have been taken up again.
	if err := syscall.Kill(int(before[1].Pid), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the container that died after", func() bool {
		s := w.Services()[1]
		return s.Phase == Running && s.Restarts == 1 && s.ExitCode == 137
	})
	after := w.Services()
	if after[0].Pid != before[0].Pid || after[0].Restarts != 0 {
		t.Errorf("the steady one was touched: %+v", after[0])
	}
	waitFor(t, "the daemon and one shim alone", func() bool { return len(processes(t, b.dir+"/s")) == 2 })
}

func TestStopWhileTheDaemonIsDead(t *testing.T) {
	b := newBench(t)
	ref := b.hub.push(t, "app", busybox(t, nil))
	w, err := Run(t.Context(), b.options(t, project(t, `
services:
  a: {image: '`+ref+`', network_mode: none, restart: always, stop_grace_period: 1s}
`, nil)))
	if err != nil {
		t.Fatal(err)
	}
	pid := w.Services()[0].Pid
	b.kill(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	begin := time.Now()
	err = w.Stop(ctx)
	if err == nil || time.Since(begin) > 30*time.Second {
		t.Errorf("stop said %v after %s", err, time.Since(begin))
	}
	waitFor(t, "the container's end", func() bool { return !alive(pid) })
	for _, p := range processes(t, b.dir+"/s") { // the shim has nobody to ask it to leave
		n, err := strconv.Atoi(strings.SplitN(p, ":", 2)[0])
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(n, syscall.SIGKILL); err != nil {
			t.Error(err)
		}
	}
	waitFor(t, "the shim's end", func() bool { return len(processes(t, b.dir+"/s")) == 0 })
}

func TestStopInOrder(t *testing.T) {
	b := newBench(t)
	ref := b.hub.push(t, "app", busybox(t, func(c *v1.ConfigFile) { c.Config.StopSignal = "SIGUSR1" }))
	trap := func(signal, word string) string {
		return `[sh, -c, "trap 'echo ` + word + ` >> /log/order; exit 0' ` + signal + `; echo up; while :; do sleep 0.05; done"]`
	}
	dir := b.dir + "/mnt"
	w := b.up(t, `
x-base: &base {image: '`+ref+`', network_mode: none, restart: always, volumes: ['`+dir+`:/log']}
services:
  first: {<<: *base, command: `+trap("USR1", "first")+`}
  second: {<<: *base, command: `+trap("INT", "second")+`, stop_signal: SIGINT, depends_on: [first]}
  stubborn: {<<: *base, command: [sh, -c, "trap '' USR1 TERM; echo up; while :; do sleep 0.05; done"], stop_grace_period: 300ms}
`)
	for _, s := range []string{"first", "second", "stubborn"} {
		waitFor(t, s, func() bool { return strings.Contains(b.out.get(s), "up") })
	}
	begin := time.Now()
	b.down(t, w)
	if took := time.Since(begin); took > 6*time.Second {
		t.Errorf("took %s", took)
	}
	order, err := os.ReadFile(dir + "/order")
	if err != nil || string(order) != "second\nfirst\n" {
		t.Errorf("ended as %q %v", order, err)
	}
	for _, s := range w.Services() {
		if s.Phase != Stopped {
			t.Errorf("%+v", s)
		}
	}
	waitFor(t, "the shim to leave the daemon alone", func() bool { return len(processes(t, b.dir+"/s")) == 1 })
}

func TestOutput(t *testing.T) {
	b := newBench(t)
	ref := b.hub.push(t, "app", busybox(t, nil))
	w := b.up(t, `
services:
  long: {image: '`+ref+`', network_mode: none, command: [sh, -c, "head -c 20000 /dev/zero; echo; echo -n unfinished"]}
  flood: {image: '`+ref+`', network_mode: none, command: [sh, -c, "yes | head -n 200000; echo end >&2"]}
  tty: {image: '`+ref+`', network_mode: none, tty: true, command: [sh, -c, "[ -t 1 ] && echo a terminal"]}
  input: {image: '`+ref+`', network_mode: none, stdin_open: true, stop_grace_period: 100ms, command: [sh, -c, "echo waiting; cat; echo the input ended"]}
  quiet: {image: '`+ref+`', network_mode: none, logging: {driver: none}, command: [echo, nothing]}
  mute: {image: '`+ref+`', network_mode: none, logging: {driver: none}, stdin_open: true, stop_grace_period: 100ms, command: [sh, -c, "echo nothing; cat"]}
  closes: {image: '`+ref+`', network_mode: none, stop_grace_period: 100ms, command: [sh, -c, "echo last; exec >&-; sleep 100; echo dead >&2"]}
`)
	waitFor(t, "ends", func() bool {
		n := 0
		for _, s := range w.Services() {
			if s.Phase == Exited {
				n++
			}
		}
		return n == 4
	})
	if got := b.out.get("long"); len(got) != 20000+1+len("unfinished\n") || !strings.HasSuffix(got, "\nunfinished\n") {
		t.Errorf("%d bytes, ending in %q", len(got), got[max(0, len(got)-20):])
	}
	if b.out.max != MaxLine {
		t.Errorf("the longest line had %d bytes", b.out.max)
	}
	if got := strings.Count(b.out.get("flood"), "y\n"); got != 200000 || b.out.get("flood!") != "end\n" {
		t.Errorf("%d lines, %q", got, b.out.get("flood!"))
	}
	if got := b.out.get("tty"); got != "a terminal\r\n" {
		t.Errorf("terminal: %q", got)
	}
	if got := b.out.get("input"); got != "waiting\n" {
		t.Errorf("open input: %q", got)
	}
	if got := b.out.get("quiet") + b.out.get("mute"); got != "" {
		t.Errorf("discarded output: %q", got)
	}
	waitFor(t, "the notice of a closed stream", func() bool { return len(b.out.closed()) > 0 })
	if got := b.out.closed(); len(got) != 1 || got[0] != "closes stdout c7 "+strings.Replace(ref, ":1@", "@", 1)+" <nil>" {
		t.Errorf("streams that ended before their containers: %q", got)
	}
}

func TestLines(t *testing.T) {
	for name, tt := range map[string]struct {
		chunks []string
		want   []string
	}{
		"whole lines":                {[]string{"a\nb\n"}, []string{"a\n", "b\n"}},
		"in pieces":                  {[]string{"a", "b\nc", "", "d"}, []string{"ab\n", "cd\n"}},
		"empty lines":                {[]string{"\n\n"}, []string{"\n", "\n"}},
		"exactly the limit":          {[]string{strings.Repeat("x", MaxLine), "\n"}, []string{strings.Repeat("x", MaxLine) + "\n"}},
		"one over":                   {[]string{strings.Repeat("x", MaxLine+1) + "\n"}, []string{strings.Repeat("x", MaxLine), "x\n"}},
		"a character across the cut": {[]string{strings.Repeat("x", MaxLine-1) + "ü", "z\n"}, []string{strings.Repeat("x", MaxLine-1), "üz\n"}},
		"no character at the cut":    {[]string{strings.Repeat("x", MaxLine-1) + "\xffz\n"}, []string{strings.Repeat("x", MaxLine-1) + "\xff", "z\n"}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			l := newLines(writerFunc(func(p []byte) (int, error) { got = append(got, string(p)); return 0, io.ErrClosedPipe }))
			for _, c := range tt.chunks {
				l.write([]byte(c))
			}
			l.Close()
			if strings.Join(got, "|") != strings.Join(tt.want, "|") {
				t.Errorf("got %.80q", got)
			}
		})
	}
}

// FuzzLines: whatever the pieces, no write exceeds the limit, each is one line
// or a part of one, and no byte but a last newline is added or lost.
func FuzzLines(f *testing.F) {
	f.Add([]byte("a\nb"), 1)
	f.Add(bytes.Repeat([]byte{0}, MaxLine+2), 100)
	f.Fuzz(func(t *testing.T, data []byte, step int) {
		step = max(1, step&0xffff)
		var out bytes.Buffer
		l := newLines(writerFunc(func(p []byte) (int, error) {
			if i := bytes.IndexByte(p, '\n'); len(p) > MaxLine+1 || i < 0 && len(p) < MaxLine-3 || i >= 0 && i != len(p)-1 {
				t.Fatalf("a write of %d bytes with a newline at %d", len(p), i)
			}
			return out.Write(p)
		}))
		for rest := data; len(rest) > 0; {
			n := min(step, len(rest))
			l.write(rest[:n])
			rest = rest[n:]
		}
		l.Close()
		if len(data) > 0 && data[len(data)-1] != '\n' {
			data = append(data, '\n')
		}
		if !bytes.Equal(out.Bytes(), data) {
			t.Fatal("bytes were lost or added")
		}
	})
}

// The daemon may come up after the agent, or not at all.
func TestDaemonLate(t *testing.T) {
	b := newBench(t)
	b.kill(t)
	if err := os.RemoveAll(b.sock); err != nil {
		t.Fatal(err)
	}
	p := project(t, "services: {a: {image: 'x@sha256:"+strings.Repeat("0", 64)+"'}}", nil)
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := New(short, b.options(t, p)); err == nil {
		t.Fatal("connected to nothing")
	}
	late := make(chan struct{})
	go func() {
		defer close(late)
		time.Sleep(300 * time.Millisecond)
		b.start(t)
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	w, err := New(ctx, b.options(t, p))
	<-late
	if err != nil {
		t.Fatal(err)
	}
	b.down(t, w)
}
