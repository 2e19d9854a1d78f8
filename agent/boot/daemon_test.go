package boot

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestDaemonIsStartedAgainAndStopped(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "child")
	// The first two lives end at once, the third stays.
	text := "#!/bin/sh\necho x >> " + dir + "/lives\n[ $(wc -l < " + dir + "/lives) -ge 3 ] && exec sleep 1000\nexit 3\n"
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	ends := make(chan error, 8)
	d := daemon{path: script, log: slog.New(slog.DiscardHandler), output: func([]byte) {}, ended: func(err error) { ends <- err }}
	stop := d.start(t.Context())
	for range 2 {
		select {
		case err := <-ends:
			if err == nil || !strings.Contains(err.Error(), "exit status 3") {
				t.Errorf("got %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("the child was not started again")
		}
	}
	deadline := time.Now().Add(20 * time.Second)
	for lives := ""; len(lives) < 6; time.Sleep(5 * time.Millisecond) {
		b, err := os.ReadFile(filepath.Join(dir, "lives"))
		if err != nil || time.Now().After(deadline) {
			t.Fatal("no third life", err)
		}
		lives = string(b)
	}
	begin := time.Now()
	stop()
	if took := time.Since(begin); took > stopGrace {
		t.Errorf("stopping took %v", took)
	}
	if len(ends) != 0 {
		t.Error("an asked-for end was reported as a death")
	}
}

// A child that answers is left alone, however often it misses one; one that
// never does is replaced.
func TestAHungDaemonIsKilledAndStartedAgain(t *testing.T) {
	const every = 5 * time.Millisecond
	for name, tc := range map[string]struct {
		answers func(n int) bool // the nth question
		killed  bool
	}{
		"answers":                {func(int) bool { return true }, false},
		"answers now and then":   {func(n int) bool { return n%hungAfter == 0 }, false},
		"never answers":          {func(int) bool { return false }, true},
		"answers until it hangs": {func(n int) bool { return n < 20 }, true},
	} {
		t.Run(name, func(t *testing.T) {
			ends := make(chan error, 8)
			d := &daemon{path: child(t), log: slog.New(slog.DiscardHandler), output: func([]byte) {}, ended: func(err error) { ends <- err }}
			stop := d.start(t.Context())
			defer stop()
			for d.running() == nil {
				time.Sleep(time.Millisecond)
			}
			ctx, cancel := context.WithCancel(t.Context())
			asked := 0
			d.watch(ctx, every, func(context.Context) error {
				if asked++; asked > 4*hungAfter || len(ends) > 0 {
					cancel()
				}
				if tc.answers(asked) {
					return nil
				}
				return errors.New("no answer")
			})
			select {
			case err := <-ends:
				if !tc.killed || !strings.Contains(err.Error(), "killed") {
					t.Errorf("the child ended: %v", err)
				}
			case <-time.After(map[bool]time.Duration{true: 20 * time.Second, false: 50 * time.Millisecond}[tc.killed]):
				if tc.killed {
					t.Error("the child was not killed")
				}
			}
		})
	}
}

func (d *daemon) running() *os.Process {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.child
}

// child is a program that runs until it is stopped.
func child(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "child")
	if err := os.WriteFile(path, []byte("#!/bin/sh\nexec sleep 1000\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}
