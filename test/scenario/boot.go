package scenario

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"hpcr/test/peers"
)

// Boot is one guest started by hpcrctl run.
type Boot struct {
	UserData      string   // a file; or
	Cidata        string   // a whole device; or neither
	MetaData      string   // text; "" takes one with a host name of the scenario's own
	NetworkConfig string   // text
	Disks         []string // SERIAL=FILE[:SIZE]
	Publish       []int    // guest ports
	Image         string   // "" = the lab's
	Limit         time.Duration
	Args          []string     // further arguments of hpcrctl run
	While         func(*Guest) // what to do once the guest is ready
}

// Guest is a guest that is ready.
type Guest struct {
	Health string // address for hpcrctl health

	ports map[int]string
}

// Address is where the host reaches a published port of the guest.
func (g *Guest) Address(port int) string { return g.ports[port] }

// Result is what hpcrctl run said, and what the guest said on its console.
type Result struct {
	Verdict string   `json:"verdict"`
	Codes   []string `json:"codes"`
	Message string   `json:"message"`
	Phases  []struct {
		Name    string `json:"name"`
		StartMs int    `json:"startMs"`
		Ms      int    `json:"ms"`
		OK      bool   `json:"ok"`
	} `json:"phases"`
	ReadyMs        int    `json:"readyMs"`
	Arch           string `json:"arch"`
	Flavour        string `json:"flavour"`
	StoppedInOrder bool   `json:"stoppedInOrder"`

	Console string        `json:"-"`
	Exit    int           `json:"-"`
	Took    time.Duration `json:"-"`
}

// defaultLimit is the time limit of a whole run on a loaded machine.
const defaultLimit = 3 * time.Minute

// Hostname is the guest's host name unless a scenario gives another: the log
// host's messages of one guest are told from others' by it.
func (l *Lab) Hostname() string {
	name := l.Arch + "-" + filepath.Base(l.Dir)
	return strings.Trim(name[:min(len(name), 60)], "-")
}

// Boot runs a guest to its end and reads what came of it. Whatever the
// scenario is about, no host may have seen a secret or the contract's text.
func (l *Lab) Boot(t *testing.T, b Boot) *Result {
	t.Helper()
	consoles, err := filepath.Glob(filepath.Join(l.Dir, "console-*.log"))
	must(t, err)
	console := filepath.Join(l.Dir, fmt.Sprintf("console-%d.log", len(consoles)+1))
	up, down := filepath.Join(l.Dir, "up"), filepath.Join(l.Dir, "down")
	args, ports := l.arguments(t, b, console)
	if b.While != nil {
		script := fmt.Sprintf("#!/bin/sh\nenv | grep '^HPCR_' > '%[1]s.new'; mv '%[1]s.new' '%[1]s'\nwhile [ ! -e '%[2]s' ]; do sleep 0.1; done\n", up, down)
		path := l.File(t, "exec", []byte(script))
		must(t, os.Chmod(path, 0o700))
		must(t, errors.Join(remove(up), remove(down)))
		args = append(args, "--exec", path)
	} else {
		args = append(args, "--until", "ready")
	}
	limit := b.Limit
	if limit == 0 {
		limit = defaultLimit
	}
	args = append(args, "--timeout", limit.String())

	// The tool ends its guest at the limit; if it does not, it is ended.
	ctx, cancel := context.WithTimeout(context.Background(), limit+time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, l.Ctl, args...)
	cmd.Dir = l.Dir
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 30 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	start := time.Now()
	must(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	if b.While != nil {
		err = l.while(b.While, ports, up, down, ended)
	} else {
		err = <-ended
	}
	r := &Result{Took: time.Since(start)}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		r.Exit = exit.ExitCode()
	case err != nil:
		t.Fatalf("hpcrctl run: %v\n%s", err, stderr.Bytes())
	}
	text, err := os.ReadFile(console)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	r.Console = string(text)
	l.File(t, "result.json", stdout.Bytes())
	if err := json.Unmarshal(stdout.Bytes(), r); err != nil {
		t.Fatalf("hpcrctl run ended with %d and no JSON: %v\nstdout: %s\nstderr: %s\nconsole:\n%s", r.Exit, err, stdout.Bytes(), stderr.Bytes(), tail(r.Console))
	}
	l.Clean(t, "console", r.Console)
	l.Clean(t, "result", stdout.String())
	l.Clean(t, "tool's stderr", stderr.String())
	return r
}

func (l *Lab) arguments(t *testing.T, b Boot, console string) ([]string, map[int]string) {
	t.Helper()
	image := b.Image
	if image == "" {
		image = l.Image(t)
	}
	args := []string{"run", "--image", image, "--console", console, "--json"}
	switch {
	case b.Cidata != "":
		args = append(args, "--cidata", b.Cidata)
	case b.UserData != "":
		meta := b.MetaData
		if meta == "" {
			meta = "local-hostname: " + l.Hostname() + "\n"
		}
		args = append(args, "--user-data", b.UserData, "--meta-data", l.File(t, "meta-data", []byte(meta)))
	}
	if b.NetworkConfig != "" {
		args = append(args, "--network-config", l.File(t, "network-config", []byte(b.NetworkConfig)))
	}
	for _, d := range b.Disks {
		args = append(args, "--disk", d)
	}
	ports := map[int]string{}
	for _, p := range b.Publish {
		free, err := peers.ClosedPort()
		must(t, err)
		ports[p] = net.JoinHostPort(peers.Loopback, fmt.Sprint(free))
		args = append(args, "--publish", fmt.Sprintf("%s:%d", ports[p], p))
	}
	return append(args, b.Args...), ports
}

// while waits until the guest is ready, runs do, lets the tool stop the guest
// and returns the tool's end.
func (l *Lab) while(do func(*Guest), ports map[int]string, up, down string, ended <-chan error) error {
	for {
		select {
		case err := <-ended:
			return err
		case <-time.After(50 * time.Millisecond):
		}
		text, err := os.ReadFile(up)
		if err != nil {
			continue // not ready yet, or never: then the tool ends
		}
		g := &Guest{ports: ports}
		for line := range strings.Lines(string(text)) {
			if v, ok := strings.CutPrefix(line, "HPCR_HEALTH="); ok {
				g.Health = strings.TrimSpace(v)
			}
		}
		release := func() error { return os.WriteFile(down, nil, 0o600) }
		// A failing check ends its goroutine: the guest must stop even so.
		done := false
		defer func() {
			if !done {
				_ = release()
				<-ended
			}
		}()
		do(g)
		done = true
		if err := release(); err != nil {
			return err
		}
		return <-ended
	}
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func tail(text string) string {
	lines := strings.Split(text, "\n")
	return strings.Join(lines[max(0, len(lines)-40):], "\n")
}
