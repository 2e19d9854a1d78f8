package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"hpcr/initramfs/qemu"
)

// runResult is the JSON of hpcrctl run.
type runResult struct {
	Verdict string   `json:"verdict"` // ready, failed, off, timeout
	Codes   []string `json:"codes"`
	Message string   `json:"message"`
	Phases  []phase  `json:"phases"`
	ReadyMs int64    `json:"readyMs"`
	Arch    string   `json:"arch"`
	Flavour string   `json:"flavour"`
	Health  struct {
		HTTP  string `json:"http"`
		Vsock string `json:"vsock"`
	} `json:"health"`
	Publish        map[string]string `json:"publish"`
	Console        string            `json:"console"`
	StoppedInOrder bool              `json:"stoppedInOrder"`
}

type phase struct {
	Name    string `json:"name"`
	StartMs int64  `json:"startMs"`
	Ms      int64  `json:"ms"`
	OK      bool   `json:"ok"`
}

func (r *runResult) sentence() string {
	switch r.Verdict {
	case "ready":
		return fmt.Sprintf("hpcrctl: the guest was ready after %.1f s", float64(r.ReadyMs)/1000)
	case "failed":
		return "hpcrctl: the guest failed: " + r.Message
	}
	return "hpcrctl: " + r.Message
}

// statusTimeout is run's exit status at the time limit, as timeout(1)'s.
const statusTimeout = 124

// stopGrace is what an orderly stop may take before the plug is pulled: the
// guest's own limit and a little more.
const stopGrace = 100 * time.Second

// follower watches one guest from start to end.
type follower struct {
	o      *runOptions
	vm     *qemu.VM
	result *runResult
	log    io.Writer

	mu       sync.Mutex
	console  strings.Builder // of the last 1 MiB
	verdict  chan struct{}   // closed at the verdict, good or bad
	decided  sync.Once
	started  time.Time
	sawHello bool
}

// follow returns run's exit status.
func (f *follower) follow(ctx context.Context) (int, error) {
	f.verdict, f.started = make(chan struct{}), time.Now()
	out := f.log
	if f.o.console != "" {
		file, err := os.Create(f.o.console)
		if err != nil {
			return 0, usage("%w", err)
		}
		defer file.Close()
		out = file
	}
	copied := make(chan error, 1)
	copying, stopCopying := context.WithCancel(context.WithoutCancel(ctx))
	defer stopCopying()
	go func() { copied <- f.vm.CopyConsole(copying, io.MultiWriter(out, f)) }()
	listened := make(chan struct{})
	go f.listen(listened)

	var limit <-chan time.Time
	if f.o.timeout > 0 {
		limit = time.After(f.o.timeout)
	}
	status, err := f.wait(ctx, limit)
	if err != nil || f.o.keep && status == 0 && f.ready() {
		return status, err
	}
	select {
	case err = <-copied:
	case <-time.After(10 * time.Second):
	}
	<-f.vm.Done()
	<-listened
	f.conclude()
	switch {
	case status != 0:
	case f.o.exec == "":
		status = f.status()
	case !f.ready(): // the command was never run
		status = 1
	}
	return status, err
}

// wait follows the guest up to its end, or, if it is to be kept, to ready.
func (f *follower) wait(ctx context.Context, limit <-chan time.Time) (int, error) {
	interrupted := ctx.Done()
	verdict := f.verdict
	for {
		select {
		case <-f.vm.Done():
			return 0, nil
		case <-limit:
			return f.timeout(), nil
		case <-interrupted:
			interrupted = nil
			go f.stop()
		case <-verdict:
			verdict = nil
			ready := f.ready()
			switch {
			case ready && f.o.keep:
				return 0, nil
			case ready && f.o.exec != "":
				return f.execute(ctx, limit)
			case f.o.until == "ready" || f.o.exec != "":
				go f.stop()
			}
		}
	}
}

// execute runs the --exec command, then stops the guest in order. The time
// limit holds for the command too.
func (f *follower) execute(ctx context.Context, limit <-chan time.Time) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type end struct {
		status int
		err    error
	}
	ended := make(chan end, 1)
	go func() {
		status, err := f.o.execute(ctx, f.result, f.log)
		ended <- end{status, err}
	}()
	select {
	case e := <-ended:
		f.stop()
		return e.status, e.err
	case <-limit:
		cancel()
		<-ended
		return f.timeout(), nil
	}
}

// timeout pulls the plug and returns run's exit status.
func (f *follower) timeout() int {
	f.vm.Kill()
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.result
	what := "gave no verdict"
	if r.Verdict != "" {
		what = "was " + r.Verdict + ", but did not end"
	}
	r.Verdict, r.Message = "timeout", fmt.Sprintf("the guest %s within the time limit of %s", what, f.o.timeout)
	return statusTimeout
}

// stop asks the guest to stop in order, and pulls the plug if it does not.
func (f *follower) stop() {
	if err := f.vm.Powerdown(context.Background()); err != nil {
		select {
		case <-f.vm.Done(): // it is off already
		default:
			fmt.Fprintln(f.log, "hpcrctl: the guest cannot be asked to stop:", err)
		}
	}
	select {
	case <-f.vm.Done():
	case <-time.After(stopGrace):
		fmt.Fprintln(f.log, "hpcrctl: the guest did not stop in time: the plug was pulled")
		f.vm.Kill()
		<-f.vm.Done()
	}
}

func (f *follower) ready() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.result.Verdict == "ready"
}

// status is run's exit status for a guest that has ended.
func (f *follower) status() int {
	r := f.result
	bad := slices.ContainsFunc(r.Codes, func(c string) bool { return strings.HasSuffix(c, "E") })
	switch {
	case f.o.until == "ready" && r.Verdict == "ready":
		return 0
	case f.o.until == "exit" && r.StoppedInOrder && !bad:
		return 0
	}
	return 1
}

// guestEvent is what a dev image says on its event port.
type guestEvent struct {
	T       string   `json:"t"`
	Name    string   `json:"name"`
	StartMs int64    `json:"startMs"`
	Ms      int64    `json:"ms"`
	OK      bool     `json:"ok"`
	Verdict string   `json:"verdict"`
	Codes   []string `json:"codes"`
	Message string   `json:"message"`
	ReadyMs int64    `json:"readyMs"`
	Ordered bool     `json:"ordered"`
}

// maxPhases bounds what a guest can make us keep.
const maxPhases = 256

func (f *follower) listen(done chan struct{}) {
	defer close(done)
	for raw := range f.vm.Events() {
		var e guestEvent
		if json.Unmarshal(raw, &e) != nil {
			continue
		}
		f.mu.Lock()
		r := f.result
		switch e.T {
		case "hello":
			f.sawHello = true
			f.greet()
		case "phase":
			if len(r.Phases) < maxPhases {
				r.Phases = append(r.Phases, phase{e.Name, e.StartMs, e.Ms, e.OK})
			}
		case "verdict":
			if e.Verdict == "ready" || e.Verdict == "failed" {
				r.Verdict, r.Codes, r.Message, r.ReadyMs = e.Verdict, e.Codes, e.Message, e.ReadyMs
				f.decided.Do(func() { close(f.verdict) })
			}
		case "off":
			r.StoppedInOrder = e.Ordered
		}
		f.mu.Unlock()
	}
}

// greet lets the guest go on, with the faults that a test asked for.
func (f *follower) greet() {
	type kill struct {
		Phase string `json:"phase"`
		Child string `json:"child"`
	}
	kills := []kill{}
	for _, k := range f.o.faultKills {
		p, c, _ := strings.Cut(k, ":")
		kills = append(kills, kill{p, c})
	}
	if err := f.vm.Send(map[string]any{"cmd": "go", "kill": kills}); err != nil {
		fmt.Fprintln(f.log, "hpcrctl: the guest's event port:", err)
	}
}

// What operators' tools look for on the console, failure first.
var (
	failureLine = regexp.MustCompile(`(?m)HPL\d+E.*$`)
	failureCode = regexp.MustCompile(`HPL\d{5}E`)
	successLine = regexp.MustCompile(`(HPL10001I)|(VSI has started successfully)`)
	phaseLine   = regexp.MustCompile(`(?m)^hpcr-boot\[\d+\]: ([a-z-]+) (done|failed) in ([0-9.]+) s`)
	stoppedLine = regexp.MustCompile(`(?m)^# stopped\r?$`)
)

const maxConsole = 1 << 20

// Write keeps the console's text and, for images without an event port, looks
// for the verdict in it.
func (f *follower) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.console.Len() < maxConsole {
		f.console.Write(p)
	}
	if !f.sawHello && f.result.Verdict == "" {
		if f.fromConsole(); f.result.Verdict != "" {
			f.decided.Do(func() { close(f.verdict) })
		}
	}
	return len(p), nil
}

// fromConsole takes verdict and phases from the console's text.
func (f *follower) fromConsole() {
	r, text := f.result, strings.ReplaceAll(f.console.String(), "\r", "")
	switch {
	case failureLine.MatchString(text):
		r.Verdict, r.Message, r.Codes = "failed", failureLine.FindString(text), nil
		for _, c := range failureCode.FindAllString(text, 16) {
			if !slices.Contains(r.Codes, c) {
				r.Codes = append(r.Codes, c)
			}
		}
	case successLine.MatchString(text):
		r.Verdict, r.Message, r.ReadyMs = "ready", "HPL10001I: Services succeeded", time.Since(f.started).Milliseconds()
		r.Codes = []string{"HPL10001I"}
	default:
		return
	}
	if len(r.Phases) == 0 {
		for _, m := range phaseLine.FindAllStringSubmatch(text, maxPhases) {
			if s, err := strconv.ParseFloat(m[3], 64); err == nil {
				r.Phases = append(r.Phases, phase{Name: m[1], Ms: int64(1000 * s), OK: m[2] == "done"})
			}
		}
	}
}

// reread takes the verdict from the whole console: the first look at a failure
// may have come in the middle of its lines.
func (f *follower) reread() {
	if r := f.result; r.Verdict == "" || r.Verdict == "failed" && !f.sawHello {
		f.fromConsole()
	}
}

// panicLine is the kernel's, which is the same on each architecture.
var panicLine = regexp.MustCompile(`(?m)Kernel panic - not syncing`)

// end takes what the machine's end says of a guest that has said nothing, or
// that went on after its verdict.
func (r *runResult) end(how qemu.End, console string) {
	var what string
	switch {
	case how == qemu.EndPanic, how == qemu.EndReset && panicLine.MatchString(console):
		what = "the guest's kernel panicked; the console says why"
	case how == qemu.EndReset:
		what = "the guest reset itself, which no image of ours does"
	case how == qemu.EndUnknown && r.Verdict == "":
		what = "the virtual machine ended by itself or was killed"
	}
	switch {
	case r.Verdict == "timeout": // we pulled the plug
	case r.Verdict == "" && what == "":
		r.Verdict, r.Message = "off", "the guest powered off without a verdict"
	case r.Verdict == "":
		r.Verdict, r.Message = "failed", what
	case what != "":
		r.Message += "; then " + what
		r.StoppedInOrder = false
	}
}

// conclude settles what is still open once the guest is off: a guest whose
// agent died said nothing on its port, but init did on the console.
func (f *follower) conclude() {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.result
	f.reread()
	r.end(f.vm.End(), f.console.String())
	if !f.sawHello && stoppedLine.MatchString(f.console.String()) {
		r.StoppedInOrder = true
	}
}
