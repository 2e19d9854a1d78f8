package qemu

import "syscall"

// attributes keep Ctrl-C for us to handle, and end QEMU when we die.
func attributes(keep bool) *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Setpgid: true}
	if !keep {
		a.Pdeathsig = syscall.SIGKILL
	}
	return a
}
