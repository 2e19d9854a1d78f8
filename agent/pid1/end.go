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
	powerOffLimit = 10 * time.Second
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
	within(powerOffLimit, func() {
		if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
			say("# power-off failed: " + err.Error())
		}
	})
	// What is left is the kernel's panic, which ends the machine too: a crash
	// on demand, or the end of PID 1.
	if err := os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0); err != nil {
		say("# no crash: " + err.Error())
	}
	os.Exit(1)
}

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
