package pid1

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	sayLimit      = time.Second
	closeLimit    = 4 * time.Second // beyond the applet's own patience; the end as a whole has 5 s (docs/operations.md)
	powerOffLimit = 5 * time.Second
)

// verdict is init's own: the agent could not give one.
func verdict(detail string) {
	lines := "# HPL11000E: Internal error. -> " + detail
	if exists(UserspacePath) {
		lines += "\n# HPL10000E: One or more services failed"
	}
	say(lines)
}

// say writes to the console, which the host may have stopped: the guest must
// end all the same.
func say(text string) {
	console := os.Stdout
	within(sayLimit, func() {
		// There is no other place to tell of a console that fails.
		_, _ = fmt.Fprintln(console, text)
	})
}

// within leaves what takes longer behind.
func within(limit time.Duration, do func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		do()
	}()
	select {
	case <-done:
	case <-time.After(limit):
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// off flushes what it can and powers off.
func off() {
	flush(ClosePath, closeLimit)
	powerOff(func() error { return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF) }, Arm, powerOffLimit)
	os.Exit(1) // which panics the kernel
}

// powerOff returns only if the machine does not go off: then arm, for an end
// that is a panic.
func powerOff(reboot, arm func() error, limit time.Duration) {
	within(limit, func() {
		if err := reboot(); err != nil {
			say("# power-off failed: " + err.Error())
		}
	})
	if err := arm(); err != nil {
		say("# the kernel does not look for hung tasks: " + err.Error())
	}
}

// Arm lets the kernel panic over a task that is stuck in it. The end of PID 1
// is a panic only once all of its threads have ended, and the one that a
// power-off is stuck in never does. (SysRq, the shorter way, is not in the
// image's kernel command line.)
func Arm() error {
	for _, s := range [][2]string{{"panic", "1"}, {"timeout_secs", "5"}} {
		if err := os.WriteFile("/proc/sys/kernel/hung_task_"+s[0], []byte(s[1]), 0); err != nil {
			return err
		}
	}
	return nil
}

// flush runs the closing applet in a child, since a block device may hang for
// ever, and with it whoever waits for it.
func flush(path string, limit time.Duration) {
	pid, err := start(path)
	if err != nil {
		return // the journals must do
	}
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if got, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); got == pid || err != nil && err != unix.EINTR {
			return
		}
	}
}
