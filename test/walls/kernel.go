package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

func setting(name, value string) func() error {
	return inProc(func(proc string) error { return write(filepath.Join(proc, "sys", name), value) })
}

func init() {
	helpers["crash"] = crash
	add(map[string]func() error{
		"core pattern":        setting("kernel/core_pattern", "|/bin/false escaped"),
		"modprobe path":       setting("kernel/modprobe", "/tmp/escaped"),
		"address layout":      setting("kernel/randomize_va_space", "0"),
		"ptrace scope":        setting("kernel/yama/ptrace_scope", "0"),
		"user namespaces":     setting("user/max_user_namespaces", "1"),
		"settings as mounted": func() error { return write("/proc/sys/kernel/core_pattern", "core") },

		"a core file": coreFile,

		"sysrq": inProc(func(proc string) error { return write(filepath.Join(proc, "sysrq-trigger"), "h") }),

		"kernel memory": inProc(func(proc string) error { return read(filepath.Join(proc, "kcore")) }),

		"load a module":   loadModule,
		"remove a module": call(unix.SYS_DELETE_MODULE, text("overlay"), 0),

		"kexec":             call(unix.SYS_KEXEC_LOAD, 0, 0, 0, 0),
		"kexec from a file": call(unix.SYS_KEXEC_FILE_LOAD, 0, 0, 0, 0, 0),

		"restart":      call(unix.SYS_REBOOT, unix.LINUX_REBOOT_MAGIC1, unix.LINUX_REBOOT_MAGIC2, unix.LINUX_REBOOT_CMD_RESTART),
		"set the time": func() error { return unix.Settimeofday(&unix.Timeval{Sec: 1}) },
		"adjust the clock": func() error {
			_, err := unix.Adjtimex(&unix.Timex{Modes: unix.ADJ_FREQUENCY})
			return err
		},

		"bpf":          call(unix.SYS_BPF, 5),
		"perf":         call(unix.SYS_PERF_EVENT_OPEN),
		"userfaultfd":  call(unix.SYS_USERFAULTFD),
		"io_uring":     call(unix.SYS_IO_URING_SETUP, 1),
		"keyring":      call(unix.SYS_KEYCTL, 0, 0xfffffffc, 1), // the user's
		"file handles": call(unix.SYS_OPEN_BY_HANDLE_AT),
		"swap":         call(unix.SYS_SWAPON, text("/tmp/swap"), 0),
		"quota":        call(unix.SYS_QUOTACTL, 0),
		"accounting":   call(unix.SYS_ACCT, text("/tmp/acct")),
		"kernel log":   call(unix.SYS_SYSLOG, 10),
		"I/O ports":    ioPorts,
	})
}

func text(s string) uintptr { return uintptr(unsafe.Pointer(unsafe.StringData(s + "\x00"))) }

func loadModule() error {
	fd, err := unix.MemfdCreate("module", 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.FinitModule(fd, "", unix.MODULE_INIT_IGNORE_VERMAGIC)
}

// coreFile lets a process crash that has raised its limit and owns its folder.
func coreFile() error {
	dir, err := os.MkdirTemp("/tmp", "core-")
	if err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe", "crash")
	cmd.Dir = dir
	cmd.Env = []string{"GOTRACEBACK=crash"}
	var exit *exec.ExitError
	if err := cmd.Run(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != unix.SIGABRT {
		return fmt.Errorf("it did not crash: %w", err)
	}
	left, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if len(left) == 0 {
		return unix.ENOENT
	}
	return nil
}

func crash() {
	limit := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		fmt.Println(err)
	}
	panic("as GOTRACEBACK=crash wants it: by SIGABRT")
}
