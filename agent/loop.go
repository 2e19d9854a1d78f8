package agent

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"hpcr/agent/pid1"
)

// turn is the agent's main loop until done: each turn shows PID 1 and the
// health endpoint that the agent runs. Whatever may take long is done beside
// it and within a limit of its own; the verdict of a failed boot is printed
// without it, so that a console that takes nothing cannot hold the power-off.
func (a *agent) turn(done <-chan struct{}) {
	tick := time.NewTicker(pid1.BeatEvery)
	defer tick.Stop()
	for {
		a.health.Beat()
		if err := a.heart.Beat(); errors.Is(err, pid1.ErrInitHangs) {
			a.off()
		} else if err != nil {
			// PID 1 will take us for hung, which is the right end for a guest
			// whose two watchers have lost each other.
			a.hub.Logger().Error("PID 1 does not hear the agent", "error", err)
		}
		select {
		case <-done:
			return
		case <-tick.C:
		}
	}
}

// during runs work beside the main loop.
func (a *agent) during(work func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		work()
	}()
	a.turn(done)
}

// powerOff ends the guest in place of a PID 1 that hangs: nobody would reap,
// or hear the host's wish to stop.
func powerOff() {
	fmt.Println("# " + pid1.ErrInitHangs.Error() + ": power off")
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Println("# power-off failed: " + err.Error())
	}
}
