package workload

import (
	"runtime"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// filter is the container's seccomp profile: containerd's default, which has
// neither AF_VSOCK nor io_uring, for the native architecture only; 32-bit
// socket calls hide their arguments from filters. An unconfined or privileged
// container keeps one rule, because the way to the host is not its own.
func filter(s *specs.Spec, unconfined bool) *specs.LinuxSeccomp {
	if !unconfined {
		p := seccomp.DefaultProfile(s)
		p.Architectures = nativeArch()
		return p
	}
	eafnosupport := uint(97)
	return &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Architectures: nativeArch(),
		Syscalls: []specs.LinuxSyscall{{
			Names:    []string{"socket", "socketpair"},
			Action:   specs.ActErrno,
			ErrnoRet: &eafnosupport,
			Args:     []specs.LinuxSeccompArg{{Index: 0, Value: afVsock, Op: specs.OpEqualTo}},
		}},
	}
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
