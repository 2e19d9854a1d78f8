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
	// ClosePath is the applet that unmounts and closes the volumes of a dying
	// guest: storage.ClosePath, whose package PID 1 does not link.
	ClosePath = "/bin/disk-close"
	// VerdictPath exists once the agent has printed its verdict, good or bad, or
	// will give none because the guest was asked to stop.
	VerdictPath = "/run/hpcr/verdict"
	// Clobber in a process's environment makes Go's collector overwrite what it
	// frees: libraries leave secrets behind that no Wipe reaches.
	Clobber = "GODEBUG=clobberfree=1"
	// UserspacePath exists once the part of the boot is over that HPCR's
	// bootloader does, whose failures print no HPL10000E.
	UserspacePath = "/run/hpcr/userspace"

	// stopLimit is what an orderly stop may take: the k8s operator of HPCR
	// gives a domain 100 s before it reports a failure.
	stopLimit = 90 * time.Second
)

// Main is the life of PID 1. It does not return.
func Main() {
	defer off()
	live(setUp, guard)
}

// live sets the guest up and keeps it. Whatever happens in there, it returns,
// and a verdict is out.
func live(setUp, guard func() error) {
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
	if err := guard(); err != nil && exists(VerdictPath) {
		say("# " + err.Error())
	} else if err != nil {
		verdict(err.Error())
	}
}

func setUp() error {
	if err := mountAll(); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("dumpable: %w", err)
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

// guard starts the agent and watches over it to its end. An error is the
// cause of an end that was not in order, in words for the console.
func guard() error {
	signals := make(chan os.Signal, 64)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGCHLD)
	p, heart, err := newPulse()
	if err != nil {
		return fmt.Errorf("init cannot watch the agent: %w", err)
	}
	agent, err := start(AgentPath, heart)
	if err := errors.Join(err, unix.Close(int(heart))); err != nil {
		return fmt.Errorf("init cannot start the agent: %w", err)
	}
	wakeUp := time.NewTicker(BeatEvery)
	defer wakeUp.Stop()
	cause := supervise(agent, signals, wakeUp.C, p)
	switch {
	case cause != "" && exists(VerdictPath):
		return errors.New("the agent ended: " + cause)
	case cause != "":
		return errors.New("the agent ended before its verdict: " + cause)
	case !exists(VerdictPath):
		return errors.New("the agent ended before its verdict: exit status 0")
	}
	return nil
}

// start forks without os/exec, whose waiting the reaper would steal. The file
// extra becomes the child's file 3.
func start(path string, extra ...uintptr) (int, error) {
	return syscall.ForkExec(path, []string{path}, &syscall.ProcAttr{
		Dir:   "/",
		Env:   []string{"PATH=/bin:/sbin", "HOME=/", "GOGC=400", Clobber}, // until the agent has booted, time is dearer than memory
		Files: append([]uintptr{0, 1, 2}, extra...),
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
}

// supervise reaps until the agent has ended and says why, or "" if it ended in
// order.
func supervise(agent int, signals <-chan os.Signal, wakeUp <-chan time.Time, p *pulse) string {
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
		case <-wakeUp:
			if p.lost() {
				return stopped(agent, "it does not respond")
			}
		case <-deadline:
			return stopped(agent, "it did not stop within its time limit")
		}
	}
}

// stopped kills an agent of which nothing is expected any more: it must not
// speak after the verdict. The power-off would end it too.
func stopped(agent int, why string) string {
	if err := unix.Kill(agent, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return why + ", nor can it be killed: " + err.Error()
	}
	return why
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
