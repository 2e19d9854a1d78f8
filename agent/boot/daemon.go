package boot

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"hpcr/agent/sandbox"
)

// daemon keeps one child process alive until its context ends: a child that
// dies, or hangs (watch), is started again after a pause that doubles with each quick death.
type daemon struct {
	path  string
	group string // control group; "" = the agent's
	log   *slog.Logger
	ended func(err error) // told of each unexpected end; may be nil

	output func(line []byte) // takes the child's own words; does not keep them

	mu    sync.Mutex
	child *os.Process
}

const (
	firstPause = 50 * time.Millisecond
	maxPause   = 5 * time.Second
	stopGrace  = 5 * time.Second

	// A child that answers none of so many questions in a row hangs. A minute
	// is long: a busy machine must not lose a pull over it.
	askEvery  = 5 * time.Second
	hungAfter = 12
)

// start runs the loop in the background and returns a function that stops the
// child (SIGTERM, then SIGKILL after a grace period) and waits for its end.
func (d *daemon) start(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.loop(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}

func (d *daemon) loop(ctx context.Context) {
	pause := firstPause
	for ctx.Err() == nil {
		begin := time.Now()
		err := d.once(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			err = errors.New("it ended by itself")
		}
		if d.ended != nil {
			d.ended(err)
		}
		if time.Since(begin) > time.Minute {
			pause = firstPause
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		pause = min(2*pause, maxPause)
	}
}

// watch asks the child until ctx ends and kills one that hangs; the loop then
// starts another.
func (d *daemon) watch(ctx context.Context, every time.Duration, ask func(context.Context) error) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for silent := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		limited, cancel := context.WithTimeout(ctx, every)
		err := ask(limited)
		cancel()
		if silent++; err == nil {
			silent = 0
		}
		if silent < hungAfter {
			continue
		}
		silent = 0
		d.log.Warn("a child does not answer and is killed", "child", filepath.Base(d.path), "error", err)
		d.mu.Lock()
		// An error means that it has ended already.
		_ = d.child.Kill()
		d.mu.Unlock()
	}
}

func (d *daemon) once(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, d.path)
	cmd.Args = []string{d.path}
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/bin:/sbin", "GOMEMLIMIT=128MiB", "GOTRACEBACK=none"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if d.group != "" {
		group, err := sandbox.OpenGroup(d.group)
		if err != nil {
			return err
		}
		defer group.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(group.Fd())
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopGrace
	out, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	cmd.Stdout = io.Discard
	if err := cmd.Start(); err != nil {
		return err
	}
	d.mu.Lock()
	d.child = cmd.Process
	d.mu.Unlock()
	lines := bufio.NewScanner(out)
	for lines.Scan() { // a line beyond the scanner's limit ends the reading, not the child
		d.output(lines.Bytes())
	}
	if _, err := io.Copy(io.Discard, out); err != nil && !errors.Is(err, context.Canceled) {
		d.log.Debug("daemon output ended", "error", err)
	}
	return cmd.Wait()
}
