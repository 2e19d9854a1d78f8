package sandbox

import (
	"fmt"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"hpcr/agent/secret"
)

// ConfineRoot takes every capability but those given from all threads of the
// process and from whatever it executes, for good. Secrets that cannot be
// locked into memory end the process from here on.
func ConfineRoot(keep ...int) error {
	if err := secret.RequireLock(); err != nil {
		return err
	}
	if _, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); errno != 0 {
		return fmt.Errorf("no new privileges: %w", errno)
	}
	var sets [2]unix.CapUserData
	for c := range unix.CAP_LAST_CAP + 1 {
		if slices.Contains(keep, c) {
			sets[c/32].Permitted |= 1 << (c % 32)
			continue
		}
		// EINVAL: a capability that this kernel does not know.
		if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uintptr(c), 0); errno != 0 && errno != unix.EINVAL {
			return fmt.Errorf("drop capability %d: %w", c, errno)
		}
	}
	for i := range sets {
		sets[i].Effective = sets[i].Permitted
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&sets[0])), 0)
	if errno != 0 {
		return fmt.Errorf("drop capabilities: %w", errno)
	}
	return nil
}
