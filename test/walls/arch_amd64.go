package main

import "golang.org/x/sys/unix"

func ioPorts() error { return call(unix.SYS_IOPL, 3)() }

// socketcall is no system call of 64-bit programs here.
func socketcall(domain, kind int) error {
	fd, err := unix.Socket(domain, kind, 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func clone() (uintptr, error) { return rawClone(uintptr(unix.SIGCHLD), 0) }
