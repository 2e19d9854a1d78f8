package workload

import (
	"runtime"
	"slices"
	"syscall"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// walled are system calls that no container may make, whatever its
// capabilities: their reach is the guest's kernel, not a namespace. Most need
// a capability that no container has; the filter keeps the code behind them
// out of reach as well.
var walled = []string{
	"init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "reboot", "syslog",
	"bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register",
	"open_by_handle_at",         // leaves a bind mount for the rest of its volume
	"swapon", "swapoff", "acct", // files that the kernel itself reads and writes
	"quotactl", "quotactl_fd", // of a whole volume
	"add_key", "keyctl", "request_key", // keyrings go by user, and root is the guest's too
	"iopl", "ioperm", "lookup_dcookie",
	"settimeofday", "stime", "clock_settime", "clock_settime64",
}

// newMounts are the mount calls that pass by the rules of AppArmor: a
// read-only mount could be made writable. Programs that hear that the kernel
// has no such call fall back to mount(2).
var newMounts = []string{"fsopen", "fspick", "fsconfig", "fsmount", "open_tree", "open_tree_attr", "move_mount", "mount_setattr"}

// filter is the container's seccomp profile: containerd's default, which has
// neither AF_VSOCK nor io_uring, less what is walled; for the native
// architecture only, since 32-bit socket calls hide their arguments from
// filters. An unconfined or privileged container keeps the walls.
func filter(s *specs.Spec, unconfined bool) *specs.LinuxSeccomp {
	p := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow}
	if !unconfined {
		p = seccomp.DefaultProfile(s)
		for i, rule := range p.Syscalls {
			p.Syscalls[i].Names = slices.DeleteFunc(slices.Clone(rule.Names), func(n string) bool {
				return slices.Contains(walled, n) || slices.Contains(newMounts, n)
			})
		}
		p.Syscalls = slices.DeleteFunc(p.Syscalls, func(r specs.LinuxSyscall) bool { return len(r.Names) == 0 })
	}
	p.Architectures = nativeArch()
	refuse := func(errno uint, args []specs.LinuxSeccompArg, names ...string) {
		p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: names, Action: specs.ActErrno, ErrnoRet: &errno, Args: args})
	}
	refuse(uint(syscall.ENOSYS), nil, newMounts...)
	if unconfined {
		refuse(uint(syscall.EPERM), nil, walled...)
	}
	// Not on s390x: libseccomp would refuse every socket that is made through
	// socketcall(2), and with it each one of a Go program. AppArmor looks there.
	if unconfined && runtime.GOARCH != "s390x" {
		refuse(uint(syscall.EAFNOSUPPORT), []specs.LinuxSeccompArg{{Index: 0, Value: afVsock, Op: specs.OpEqualTo}}, "socket", "socketpair")
	}
	return p
}

func nativeArch() []specs.Arch {
	switch runtime.GOARCH {
	case "amd64":
		return []specs.Arch{specs.ArchX86_64}
	case "s390x":
		return []specs.Arch{specs.ArchS390X}
	case "arm64":
		return []specs.Arch{specs.ArchAARCH64}
	}
	return nil
}
