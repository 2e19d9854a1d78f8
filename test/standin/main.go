// Command standin takes the place of a guest's program in tests of the others.
// The name it is called by chooses which, hpcr.test=WORD on the kernel's
// command line what it does there.
//
// It says when it does it on the kernel's log, whose lines carry the guest's
// own clock on the console.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hpcr/agent/pid1"
)

func main() {
	var err error
	switch filepath.Base(os.Args[0]) {
	case "outer":
		err = outer()
	case "agent":
		err = agent(word())
	case "disk-close":
		mark("closed")
		for word() == "dead-disk" {
			time.Sleep(100 * time.Millisecond)
			mark("closed")
		}
	case "load":
		for n := 1; n != 0; n = n*5 | 1 { // takes all the processor that it gets
		}
	}
	if err != nil {
		mark("error: " + err.Error())
		os.Exit(9)
	}
}

// word is what the command line asks for.
func word() string {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err.Error()
	}
	for _, w := range strings.Fields(string(line)) {
		if v, ok := strings.CutPrefix(w, "hpcr.test="); ok {
			return v
		}
	}
	return ""
}

// mark writes to the kernel's log, with a level that every console shows.
func mark(text string) {
	if err := os.WriteFile("/dev/kmsg", []byte("<0>standin: "+text+"\n"), 0); err != nil {
		fmt.Println("standin:", text, err)
	}
}

func forever() {
	for { // not select: the runtime would call it a deadlock and die
		time.Sleep(time.Hour)
	}
}

// outer runs before /init, as PID 1. It makes the machine look like one with
// Secure Execution, or ends in ways that only a broken init would.
func outer() error {
	for _, m := range [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := unix.Mount(m[0], m[1], m[0], 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m[1], err)
		}
	}
	switch word() {
	case "panic":
		mark("event")
		os.Exit(7)
	case "reboot":
		mark("event")
		return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	case "stuck": // what init does when the machine does not go off
		if err := pid1.Arm(); err != nil {
			return err
		}
		panics, err := os.ReadFile("/proc/sys/kernel/hung_task_panic")
		if err != nil {
			return err
		}
		mark("event " + string(panics))
		os.Exit(1)
	}
	if err := unix.Mount("tmpfs", "/sys/firmware", "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("cover /sys/firmware: %w", err)
	}
	if err := os.Mkdir("/sys/firmware/uv", 0o755); err != nil {
		return err
	}
	if err := os.WriteFile("/sys/firmware/uv/prot_virt_guest", []byte("1\n"), 0o444); err != nil {
		return err
	}
	return unix.Exec("/init", []string{"/init"}, nil)
}

// agent is one that ends, or does not.
func agent(how string) error {
	heart, err := pid1.NewHeart()
	if err != nil {
		return err
	}
	beat := func(n int) error {
		for range n {
			if err := heart.Beat(); err != nil {
				return err
			}
			time.Sleep(pid1.BeatEvery)
		}
		return nil
	}
	if err := beat(2); err != nil {
		return err
	}
	switch how {
	case "late": // past the part that HPCR's bootloader does
		if err := os.WriteFile(pid1.UserspacePath, nil, 0o600); err != nil {
			return err
		}
	case "decided", "busy":
		if err := os.WriteFile(pid1.VerdictPath, nil, 0o600); err != nil {
			return err
		}
	}
	mark("event")
	switch how {
	case "status", "dead-disk":
		os.Exit(3)
	case "leaves":
		os.Exit(0)
	case "contracts", "bench":
		go func() {
			for beat(1) == nil {
			}
		}()
		if how == "bench" {
			return bench()
		}
		return contracts()
	case "stopped":
		return unix.Kill(os.Getpid(), unix.SIGSTOP)
	case "busy":
		return busy(beat)
	}
	forever()
	return nil
}

// bench measures in this guest what reading a contract costs.
func bench() error {
	cmd := exec.Command("/bin/bench", "-only", "contract", "-applet", "/bin/contract")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}

// busy beats among processes that want the processor, for as long as a beat
// that is lost would be noticed, and then some.
func busy(beat func(int) error) error {
	for range 20 {
		load := exec.Command("/bin/standin")
		load.Args[0] = "load"
		if err := load.Start(); err != nil {
			return err
		}
	}
	if err := beat(24); err != nil {
		return err
	}
	mark("end")
	os.Exit(0)
	return nil
}
