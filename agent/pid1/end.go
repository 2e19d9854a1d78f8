package pid1

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	sayLimit      = time.Second
	syncLimit     = 3 * time.Second
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
	flush(SyncPath, syncLimit)
	powerOff(func() error { return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF) }, Crash, powerOffLimit)
	os.Exit(1) // which panics the kernel
}

// powerOff crashes a machine that does not go off by itself.
func powerOff(reboot, crash func() error, limit time.Duration) {
	within(limit, func() {
		if err := reboot(); err != nil {
			say("# power-off failed: " + err.Error())
		}
	})
	if err := crash(); err != nil {
		say("# crash failed: " + err.Error())
	}
}

// Crash panics the kernel, which ends the machine where a power-off does not.
// kernel.sysrq is for keys and does not hold for this file.
func Crash() error { return os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0) }

// flush runs the sync applet in a child, since a block device may hang for
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
