package network

import (
	"errors"
	"io"

	"golang.org/x/sys/unix"
)

var errNotYet = errors.New("there is nothing to read yet")

// readNow is a read(2) for syscall.RawConn.Read that never waits: errNotYet
// instead, and io.EOF at the end.
func readNow(fd uintptr, b []byte) (int, error) {
	for {
		n, err := unix.Read(int(fd), b)
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return 0, errNotYet
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}
