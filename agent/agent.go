// Package agent is the guest's real work: it runs the boot (package boot),
// gives the one verdict, and watches over the guest until it is asked to stop.
//
// Its end is the guest's end: init powers off when the agent exits.
package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"hpcr/agent/boot"
	"hpcr/agent/event"
	"hpcr/agent/health"
	"hpcr/agent/hpl"
	"hpcr/agent/pid1"
	"hpcr/agent/secret"
)

// drainLimit is how long the log may take to leave a guest that has failed.
const drainLimit = 10 * time.Second

// errStop is the cause of a boot that was asked to stop.
var errStop = errors.New("asked to stop")

// Main is the agent applet. It returns the process's exit status: 0 once a
// verdict was given and everything was unwound.
func Main() int {
	started := time.Now()
	if err := secret.RequireLock(); err != nil {
		fmt.Println("# HPL11000E: Internal error. -> memory for secrets cannot be locked: give the guest more memory")
		return 1
	}
	heart, err := pid1.NewHeart()
	if err != nil {
		fmt.Println("# HPL11000E: Internal error. -> the agent was not started by this image's init")
		return 1
	}
	image, err := boot.LoadImage(Flavour)
	if err != nil {
		fmt.Println("# HPL11000E: Internal error. -> the image is not complete: build it again")
		return 1
	}
	ctx, stop := context.WithCancelCause(context.Background())
	asked := func() { stop(errStop) }
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	go func() {
		<-signals
		asked()
	}()

	a := &agent{
		started: started,
		heart:   heart,
		off:     powerOff,
		console: boot.NewConsole(os.Stdout, os.Getpid(), Flavour == "release"),
		hub:     &event.Hub{},
		health:  health.New(Flavour),
	}
	a.during(func() { a.channel = openChannel(image, asked) })
	a.guest = boot.NewGuest(boot.Config{
		Image: image, Console: a.console, Hub: a.hub, Health: a.health,
		Interlock: interlock, Dev: Flavour == "dev",
	})
	if err := watchPowerButton(ctx, asked); err != nil {
		a.hub.Logger().Warn("the host's power button is not heard", "error", err)
	}
	return a.run(ctx)
}

type agent struct {
	started time.Time
	heart   interface{ Beat() error } // *pid1.Heart
	off     func()                    // powerOff
	console *boot.Console
	hub     *event.Hub
	health  *health.State
	channel channel
	guest   *boot.Guest
}

// run boots, waits and unwinds.
func (a *agent) run(ctx context.Context) int {
	runner := boot.Runner{Phases: a.guest.Phases(), Started: a.phaseStarted, Ended: a.phaseEnded, Undone: a.phaseUndone}
	var err error
	a.during(func() { err = runner.Run(ctx) })
	switch {
	case err == nil:
		a.during(a.ready)
		a.turn(ctx.Done())
	case errors.Is(err, errStop):
		a.mark() // there will be no verdict
	default:
		a.failed(hpl.From(err))
	}
	return a.unwind(&runner)
}

func (a *agent) ready() {
	a.mark()
	a.health.SetReady()
	after := time.Since(a.started)
	a.console.Ready()
	a.emit(event.Verdict, event.Notice, hpl.Message("HPL10001I", "", ""))
	a.channel.verdict(true, []hpl.Code{"HPL10001I"}, hpl.Message("HPL10001I", "", ""), after)
}

func (a *agent) failed(e *hpl.Error) {
	a.mark()
	bootloader := a.guest.InBootloader()
	a.console.Failed(e, bootloader)
	a.health.SetFailed(e.Code)
	codes := []hpl.Code{e.Code}
	if !(bootloader && e.Code.Bootloader()) {
		codes = append(codes, "HPL10000E")
	}
	a.emit(event.Verdict, event.Error, e.Error())
	a.channel.verdict(false, codes, e.Line(), time.Since(a.started))
	a.during(func() { a.guest.Drain(drainLimit) })
}

// mark tells init that a verdict is out, so that it gives none of its own.
func (a *agent) mark() {
	if err := os.WriteFile(pid1.VerdictPath, nil, 0o600); err != nil {
		a.hub.Logger().Warn("init does not know of the verdict", "error", err)
	}
}

func (a *agent) unwind(r *boot.Runner) int {
	a.health.SetPhase("shutdown")
	a.emit(event.Stopping, event.Notice, "the guest stops")
	a.channel.stopping()
	a.console.Bootloader("stopping in order")
	var err error
	a.during(func() { err = r.Unwind(context.Background()) })
	a.channel.off(err == nil)
	if err != nil {
		// The log is closed by now and the text may hold names.
		a.console.Bootloader("stopped, but not everything could be closed")
		return 0
	}
	a.console.Bootloader("stopped")
	return 0
}

func (a *agent) phaseStarted(name string) {
	a.health.SetPhase(name)
	a.emit(event.PhaseStarted, event.Info, "phase "+name+" begins")
	a.channel.phaseStarted(name)
}

func (a *agent) phaseEnded(r boot.Report) {
	a.console.Phase(r)
	a.channel.phaseEnded(r)
	if r.Err != nil && !errors.Is(r.Err, errStop) {
		a.emit(event.PhaseFailed, event.Error, fmt.Sprintf("phase %s failed after %s: %s", r.Name, r.Took, oneLine(r.Err)))
		return
	}
	a.emit(event.PhaseEnded, event.Info, fmt.Sprintf("phase %s ended after %s", r.Name, r.Took))
}

func (a *agent) phaseUndone(r boot.Report) {
	if r.Err != nil {
		a.hub.Logger().Error("phase could not be undone", "phase", r.Name, "error", r.Err)
	}
}

func (a *agent) emit(id event.ID, s event.Severity, text string) {
	a.hub.Emit(event.Event{ID: id, Severity: s, Text: text})
}

func oneLine(err error) string {
	return strings.Join(strings.Fields(err.Error()), " ")
}
