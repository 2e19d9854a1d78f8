package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"hpcr/test/peers"
)

// stage holds what the steps hand on to each other.
type stage struct {
	ctx        context.Context
	root, arch string

	registry *peers.Registry
	logHost  *peers.Rsyslog
	values   map[string]string // for the example's templates

	console string
	kept    *os.File // the console of the guest that runs
	page    string   // host:port
	health  string   // URL
}

// hpcrctl is the tool, as a user in the repository's folder calls it.
const hpcrctl = "build/hpcrctl"

func path(name string) string { return folder + "/" + name }

// abs is a path of ours for this process, whose folder may be another.
func (s *stage) abs(name string) string { return filepath.Join(s.root, path(name)) }

// fresh clears what an earlier demo left, its guest included.
func (s *stage) fresh() error {
	if _, err := os.Stat(filepath.Join(s.root, hpcrctl)); err != nil {
		return fmt.Errorf("the tool is not built, run 'make build': %w", err)
	}
	if _, err := os.Stat(s.abs("vm/guest.json")); err == nil {
		if err := s.kill(); err != nil {
			return fmt.Errorf("stop the guest of an earlier demo: %w", err)
		}
	}
	if err := os.RemoveAll(filepath.Join(s.root, folder)); err != nil {
		return fmt.Errorf("clear the folder: %w", err)
	}
	return os.MkdirAll(s.abs("logs"), 0o755)
}

// clear ends what still runs, at the end or after a failure.
func (s *stage) clear() error {
	var errs []error
	if _, err := os.Stat(s.abs("vm/guest.json")); err == nil {
		errs = append(errs, s.kill())
	}
	if s.registry != nil {
		errs = append(errs, s.registry.Close())
	}
	if s.logHost != nil {
		errs = append(errs, s.logHost.Stop())
	}
	return errors.Join(errs...)
}

// kill ends the guest without asking it. It works after an interrupt too.
func (s *stage) kill() error {
	cmd := exec.Command(filepath.Join(s.root, hpcrctl), "stop", "--state", path("vm"), "--kill")
	cmd.Dir = s.root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("hpcrctl stop --kill: %w: %s", err, out)
	}
	return nil
}

func (s *stage) title(n int, text string) { fmt.Printf("\n%d. %s\n", n, text) }

func (s *stage) say(format string, args ...any) { fmt.Printf("   "+format+"\n", args...) }

// command shows a command, runs it in the repository's folder and returns its
// stdout. What it writes to stderr is shown when it fails.
func (s *stage) command(name string, args ...string) ([]byte, error) {
	s.say("$ %s %s", name, strings.Join(args, " "))
	return s.quiet(name, args...)
}

func (s *stage) quiet(name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(s.ctx, name, args...)
	if strings.Contains(name, "/") {
		cmd.Path = filepath.Join(s.root, name)
	}
	cmd.Dir = s.root
	// An interrupt lets the tool stop its guest.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 30 * time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("%s: %w\n%s", name, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}

// echo shows a console's lines as they come, until the returned function is
// called; that shows the rest and waits.
func echo(file string) (end func() error) {
	var (
		wg      sync.WaitGroup
		done    = make(chan struct{})
		failure error
		rest    []byte
		offset  int64
	)
	show := func() {
		f, err := os.Open(file)
		if errors.Is(err, os.ErrNotExist) {
			return // no guest has opened it yet
		}
		if err != nil {
			failure = err
			return
		}
		defer func() { _ = f.Close() }() // it was only read
		more, err := io.ReadAll(io.NewSectionReader(f, offset, 1<<20))
		if err != nil {
			failure = err
			return
		}
		offset += int64(len(more))
		lines := bytes.Split(append(rest, more...), []byte("\n"))
		rest = lines[len(lines)-1]
		for _, l := range lines[:len(lines)-1] {
			fmt.Printf("console| %s\n", bytes.TrimRight(l, "\r"))
		}
	}
	wg.Go(func() {
		for {
			show()
			select {
			case <-done:
				show()
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
	return func() error {
		close(done)
		wg.Wait()
		return failure
	}
}
