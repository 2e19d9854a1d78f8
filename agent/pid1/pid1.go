package pid1

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// AgentPath is the agent's hard link in the initrd.
	AgentPath = "/bin/agent"
	// SyncPath is the applet that flushes file systems for a dying guest.
	SyncPath = "/bin/sync"
	// VerdictPath exists once the agent has printed its verdict, good or bad.
	VerdictPath = "/run/hpcr/verdict"
	// UserspacePath exists once the part of the boot is over that HPCR's
	// bootloader does, whose failures print no HPL10000E.
	UserspacePath = "/run/hpcr/userspace"

	// stopLimit is what an orderly stop may take: the k8s operator of HPCR
	// gives a domain 100 s before it reports a failure.
	stopLimit = 90 * time.Second
	syncLimit = 3 * time.Second
)

// Main is the life of PID 1. It does not return.
func Main() {
	defer off()
	defer func() {
		if r := recover(); r != nil {
			// The value may hold anything: it stays off the console.
			verdict("init failed; report this with the image's version")
		}
	}()
	if err := setUp(); err != nil {
		verdict("init cannot set up the guest: " + err.Error())
		return
	}
	signals := make(chan os.Signal, 64)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGCHLD)
	agent, err := start(AgentPath)
	if err != nil {
		verdict("init cannot start the agent: " + err.Error())
		return
	}
	if cause := supervise(agent, signals); cause != "" && !exists(VerdictPath) {
		verdict("the agent ended before its verdict: " + cause)
	} else if cause != "" {
		fmt.Println("# the agent ended: " + cause)
	}
}

func setUp() error {
	if err := mountAll(); err != nil {
		return err
	}
	if err := openConsole(); err != nil {
		return fmt.Errorf("console: %w", err)
	}
	if err := moveRoot(); err != nil {
		return err
	}
	// Without this the kernel itself reboots on Ctrl-Alt-Del, which is how the
	// host's shutdown request arrives on s390x; with it we get SIGINT.
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF); err != nil {
		return fmt.Errorf("disable ctrl-alt-del: %w", err)
	}
	return os.MkdirAll("/run/hpcr", 0o700)
}

// start forks without os/exec, whose waiting the reaper would steal.
func start(path string) (int, error) {
	return syscall.ForkExec(path, []string{path}, &syscall.ProcAttr{
		Dir:   "/",
		Env:   []string{"PATH=/bin:/sbin", "HOME=/", "GOGC=400"}, // until the agent has booted, time is dearer than memory
		Files: []uintptr{0, 1, 2},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
}

// supervise reaps until the agent has ended and says why, or "" if it ended in
// order.
func supervise(agent int, signals <-chan os.Signal) string {
	var deadline <-chan time.Time
	for {
		select {
		case s := <-signals:
			if s == unix.SIGCHLD {
				if status, ended := reap(agent); ended {
					return cause(status)
				}
				continue
			}
			if deadline == nil {
				deadline = time.After(stopLimit)
			}
			if err := unix.Kill(agent, unix.SIGTERM); err != nil && !errors.Is(err, unix.ESRCH) {
				return "it cannot be signalled: " + err.Error()
			}
		case <-deadline:
			return "it did not stop within its time limit"
		}
	}
}

// reap collects every child that has ended. Signals coalesce, so it loops.
func reap(agent int) (status unix.WaitStatus, ended bool) {
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		switch {
		case err == unix.EINTR:
		case err != nil || pid <= 0:
			return status, ended
		case pid == agent:
			status, ended = ws, true
		}
	}
}

func cause(ws unix.WaitStatus) string {
	switch {
	case ws.Signaled():
		return "killed by " + unix.SignalName(ws.Signal())
	case ws.ExitStatus() != 0:
		return fmt.Sprintf("exit status %d", ws.ExitStatus())
	}
	return ""
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// verdict is init's own: the agent could not give one.
func verdict(detail string) {
	fmt.Println("# HPL11000E: Internal error. -> " + detail)
	if exists(UserspacePath) {
		fmt.Println("# HPL10000E: One or more services failed")
	}
}

// off flushes what it can in a child, since a block device may hang for ever,
// and powers off.
func off() {
	if pid, err := start(SyncPath); err == nil {
		for end := time.Now().Add(syncLimit); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			if got, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); got == pid || err != nil && err != unix.EINTR {
				break
			}
		}
	}
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Println("# power-off failed: " + err.Error())
	}
	for { // PID 1 must not end: that would be a kernel panic
		time.Sleep(time.Hour)
	}
}
