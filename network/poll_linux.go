package network

import "golang.org/x/sys/unix"

// readable is for syscall.RawConn.Read: it returns once a read would not wait.
func readable(fd uintptr) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN | unix.POLLRDHUP}}
	for {
		n, err := unix.Poll(p, 0)
		if err == unix.EINTR {
			continue
		}
		return n > 0 || err != nil
	}
}
