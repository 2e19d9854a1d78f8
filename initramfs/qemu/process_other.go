//go:build !linux

package qemu

import "syscall"

// attributes keep Ctrl-C for us to handle.
func attributes(bool) *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
