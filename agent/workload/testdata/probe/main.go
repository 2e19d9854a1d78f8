// Command probe runs inside a container and tries what a container should not
// be able to do; it prints one line a try.
package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

func main() {
	try := func(what string, err error) {
		verdict := "DONE"
		if err != nil {
			verdict = "refused: " + err.Error()
		}
		fmt.Printf("%s: %s\n", what, verdict)
	}
	socket := func(domain, typ int) error {
		fd, err := unix.Socket(domain, typ, 0)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
	write := func(path string) error {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err == nil {
			f.Close()
		}
		return err
	}
	read := func(path string) error {
		data, err := os.ReadFile(path)
		if err == nil && len(data) == 0 {
			err = syscall.ENODATA
		}
		return err
	}
	try("vsock", socket(unix.AF_VSOCK, unix.SOCK_STREAM))
	try("kernel crypto socket", socket(unix.AF_ALG, unix.SOCK_SEQPACKET))
	try("mknod of the console", unix.Mknod("/tmp/console", unix.S_IFCHR|0o600, int(unix.Mkdev(5, 1))))
	try("mknod of a disk", unix.Mknod("/tmp/disk", unix.S_IFBLK|0o600, int(unix.Mkdev(254, 0))))
	try("mount", unix.Mount("none", "/tmp", "tmpfs", 0, ""))
	try("new user namespace", unix.Unshare(unix.CLONE_NEWUSER))
	try("new mount namespace", unix.Unshare(unix.CLONE_NEWNS))
	try("setns to its parent", unix.Setns(0, 0))
	try("load a module", unix.FinitModule(0, "", 0))
	try("bpf", syscallErr(unix.SYS_BPF, 5, 0, 0))
	try("perf", syscallErr(unix.SYS_PERF_EVENT_OPEN, 0, 0, 0))
	try("io_uring", syscallErr(unix.SYS_IO_URING_SETUP, 1, 0, 0))
	try("keyring", syscallErr(unix.SYS_KEYCTL, 0, 0, 0))
	try("userfaultfd", syscallErr(unix.SYS_USERFAULTFD, 0, 0, 0))
	try("open by handle", syscallErr(unix.SYS_OPEN_BY_HANDLE_AT, 0, 0, 0))
	try("set the clock", syscallErr(unix.SYS_CLOCK_SETTIME, 0, 0, 0))
	try("reboot", syscallErr(unix.SYS_REBOOT, 0xfee1dead, 0, 0))
	try("kexec", syscallErr(unix.SYS_KEXEC_LOAD, 0, 0, 0))
	try("swapon", syscallErr(unix.SYS_SWAPON, 0, 0, 0))
	try("kernel log", syscallErr(unix.SYS_SYSLOG, 3, 0, 0))
	try("write sysctl", write("/proc/sys/kernel/core_pattern"))
	try("write sysrq", write("/proc/sysrq-trigger"))
	try("write sysfs", write("/sys/kernel/mm/transparent_hugepage/enabled"))
	try("write cgroup", write("/sys/fs/cgroup/cgroup.procs"))
	try("read kcore", read("/proc/kcore"))
	try("read keys", read("/proc/keys"))
	try("read kallsyms", read("/proc/kallsyms"))
	try("read firmware", func() error {
		names, err := os.ReadDir("/sys/firmware")
		if err == nil && len(names) == 0 {
			err = syscall.ENODATA
		}
		return err
	}())
	for _, dev := range []string{"uv", "vsock", "kmsg", "mem", "console", "vda", "vport0p1", "hvc0"} {
		try("device "+dev, func() error { _, err := os.Stat("/dev/" + dev); return err }())
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		status = []byte(err.Error())
	}
	for line := range strings.Lines(string(status)) {
		for _, field := range []string{"CapEff:", "CapBnd:", "NoNewPrivs:", "Seccomp:"} {
			if strings.HasPrefix(line, field) {
				fmt.Print(line)
			}
		}
	}
	cgroup, err := os.ReadFile("/proc/self/cgroup")
	fmt.Printf("cgroup %s %v\n", strings.TrimSpace(string(cgroup)), err)
	fmt.Println("end of the probe")
}

func syscallErr(n, a, b, c uintptr) error {
	if _, _, e := unix.Syscall(n, a, b, c); e != 0 {
		return e
	}
	return nil
}
