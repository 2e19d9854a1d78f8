package pid1

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// said runs do and returns what it wrote to the console.
func said(t *testing.T, do func()) string {
	t.Helper()
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	console := os.Stdout
	os.Stdout = out
	do()
	os.Stdout = console
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(in)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Whatever becomes of init's own work, a verdict is out and it goes on to the
// power-off; what a panic holds is not shown.
func TestInitHasTheLastWord(t *testing.T) {
	good := func() error { return nil }
	for name, tc := range map[string]struct {
		setUp, guard func() error
		want         string
	}{
		"an agent that ended in order": {good, good, ""},
		"a file system that cannot be mounted": {
			func() error { return errors.New("mount /proc: no such device") }, nil,
			"# HPL11000E: Internal error. -> init cannot set up the guest: mount /proc: no such device\n",
		},
		"an agent that died": {
			good, func() error { return errors.New("the agent ended before its verdict: killed by SIGKILL") },
			"# HPL11000E: Internal error. -> the agent ended before its verdict: killed by SIGKILL\n",
		},
		"a panic": {
			good, func() error { panic("canary of a container") },
			"# HPL11000E: Internal error. -> init failed; report this with the image's version\n",
		},
		"a panic of the runtime's": {
			func() error { os.Args[len(os.Args)] = "outside"; return nil }, nil,
			"# HPL11000E: Internal error. -> init failed; report this with the image's version\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			if got := said(t, func() { live(tc.setUp, tc.guard) }); got != tc.want {
				t.Errorf("the console says %q, want %q", got, tc.want)
			}
		})
	}
}

// A console that its host has stopped must not hold the power-off.
func TestAStoppedConsoleHoldsNothing(t *testing.T) {
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	console := os.Stdout
	os.Stdout = out
	t.Cleanup(func() {
		os.Stdout = console
		if err := errors.Join(in.Close(), out.Close()); err != nil {
			t.Error(err)
		}
	})
	if err := out.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Write(make([]byte, 1<<20)); err == nil {
		t.Fatal("the pipe takes everything: the test shows nothing")
	}
	if err := out.SetWriteDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	verdict("nobody reads this")
	if took := time.Since(start); took < sayLimit || took > 10*sayLimit {
		t.Errorf("the verdict took %s, want %s", took, sayLimit)
	}
}

// program makes a script that start can run without arguments.
func program(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSyncIsBounded(t *testing.T) {
	const limit = 300 * time.Millisecond
	for name, tc := range map[string]struct {
		path     string
		min, max time.Duration
	}{
		"a disk that answers":   {program(t, "exit 0"), 0, 20 * limit},
		"a disk that hangs":     {program(t, "exec sleep 30 >/dev/null 2>&1"), limit, 20 * limit},
		"no program to sync it": {"/nowhere", 0, limit},
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			flush(tc.path, limit)
			if took := time.Since(start); took < tc.min || took > tc.max {
				t.Errorf("took %s, want %s to %s", took, tc.min, tc.max)
			}
		})
	}
}

// Whatever becomes of a power-off that returns, a panic is prepared.
func TestPowerOffThatFailsPreparesAPanic(t *testing.T) {
	hang := make(chan struct{})
	defer close(hang)
	for name, tc := range map[string]struct {
		reboot func() error
		say    string
	}{
		"it hangs":   {func() error { <-hang; return nil }, ""},
		"it returns": {func() error { return nil }, ""},
		"it fails":   {func() error { return unix.EPERM }, "# power-off failed: operation not permitted\n"},
	} {
		t.Run(name, func(t *testing.T) {
			armed := false
			got := said(t, func() {
				powerOff(tc.reboot, func() error { armed = true; return nil }, 50*time.Millisecond)
			})
			if !armed || got != tc.say {
				t.Errorf("armed: %v, saying %q, want %q", armed, got, tc.say)
			}
		})
	}
}

// A hung agent is given up after so many wake-ups of init without a beat, and
// killed; one that beats, however rarely its host lets it, is not.
func TestPulse(t *testing.T) {
	const beat = 'b' // before init wakes up; a dot is none
	for name, tc := range map[string]struct {
		wakeUps string
		lost    bool // at the last one
	}{
		"a beat each time":                        {strings.Repeat("b", 100), false},
		"a slow start":                            {strings.Repeat(".", startLimit-1), false},
		"no start at all":                         {strings.Repeat(".", startLimit), true},
		"a hang":                                  {"b" + strings.Repeat(".", hangLimit), true},
		"almost a hang":                           {"b" + strings.Repeat(".", hangLimit-1), false},
		"rare beats of a loaded machine":          {strings.Repeat("b"+strings.Repeat(".", hangLimit-1), 20), false},
		"a pause of the machine is one wake-up":   {"bbb" + "." + "bbb", false},
		"a hang after rare beats, counted afresh": {"b......b" + strings.Repeat(".", hangLimit), true},
	} {
		t.Run(name, func(t *testing.T) {
			p, heart := pair(t)
			for i, w := range tc.wakeUps {
				if w == beat {
					if err := heart.Beat(); err != nil {
						t.Fatal(err)
					}
				}
				if want := tc.lost && i == len(tc.wakeUps)-1; p.lost() != want {
					t.Fatalf("lost is %v at wake-up %d of %q", !want, i, tc.wakeUps)
				}
			}
		})
	}
}

func pair(t *testing.T) (*pulse, *Heart) {
	t.Helper()
	p, fd, err := newPulse()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(unix.Close(p.fd), unix.Close(int(fd))); err != nil {
			t.Error(err)
		}
	})
	return p, &Heart{int(fd)}
}

// Init that does not listen is noticed by the agent, which never blocks on it.
func TestInitThatHangsIsNoticed(t *testing.T) {
	p, heart := pair(t)
	for i := range initLimit {
		if err := heart.Beat(); err != nil {
			t.Fatalf("beat %d: %v", i, err)
		}
	}
	if err := heart.Beat(); !errors.Is(err, ErrInitHangs) {
		t.Errorf("after %d beats that init has not heard: %v", initLimit, err)
	}
	if p.lost() {
		t.Error("init took the agent for lost")
	}
	if err := heart.Beat(); err != nil {
		t.Errorf("init listens again, but: %v", err)
	}
}

func TestAHungAgentIsKilled(t *testing.T) {
	p, heart := pair(t)
	agent, err := start(program(t, "exec sleep 60"), uintptr(heart.fd))
	if err != nil {
		t.Fatal(err)
	}
	wakeUp := make(chan time.Time)
	why := make(chan string, 1)
	go func() { why <- supervise(agent, nil, wakeUp, p) }()
	if err := heart.Beat(); err != nil {
		t.Fatal(err)
	}
	for range 1 + hangLimit {
		wakeUp <- time.Time{}
	}
	if got := <-why; got != "it does not respond" {
		t.Errorf("cause %q", got)
	}
	var ws unix.WaitStatus
	if _, err := unix.Wait4(agent, &ws, 0, nil); err != nil || ws.Signal() != unix.SIGKILL {
		t.Errorf("the agent ended by %v, %v", ws.Signal(), err)
	}
}

// Signals of many ends coalesce, and their channel may be full: neither the
// agent's status nor an orphan is lost.
func TestAFloodOfOrphansIsReaped(t *testing.T) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGCHLD)
	defer signal.Stop(signals)
	p, heart := pair(t)
	quick := program(t, "exit 1")
	var orphans []int
	for range 300 {
		pid, err := start(quick)
		if err != nil {
			t.Fatal(err)
		}
		orphans = append(orphans, pid)
	}
	// The agent ends once it finds none of them, not even as a zombie.
	agent, err := start(program(t, fmt.Sprintf("for p in %s; do while kill -0 $p; do sleep 0.05; done; done 2>/dev/null; exit 3",
		strings.Trim(fmt.Sprint(orphans), "[]"))), uintptr(heart.fd))
	if err != nil {
		t.Fatal(err)
	}
	if got := supervise(agent, signals, nil, p); got != "exit status 3" {
		t.Errorf("cause %q", got)
	}
	for _, pid := range orphans {
		if _, err := unix.Wait4(pid, nil, 0, nil); err != unix.ECHILD {
			t.Errorf("orphan %d was not reaped: %v", pid, err)
		}
	}
}

func TestCauseIsInOurWords(t *testing.T) {
	for name, tc := range map[string]struct {
		script, want string
	}{
		"in order":    {"exit 0", ""},
		"with status": {"exit 3", "exit status 3"},
		"by a signal": {"kill -SEGV $$", "killed by SIGSEGV"},
	} {
		t.Run(name, func(t *testing.T) {
			agent, err := start(program(t, tc.script))
			if err != nil {
				t.Fatal(err)
			}
			var ws unix.WaitStatus
			if _, err := unix.Wait4(agent, &ws, 0, nil); err != nil {
				t.Fatal(err)
			}
			if got := cause(ws); got != tc.want {
				t.Errorf("cause %q, want %q", got, tc.want)
			}
		})
	}
}
