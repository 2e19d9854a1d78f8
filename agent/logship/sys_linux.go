package logship

import (
	"errors"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// Flags of open(2): a link is refused, a FIFO does not hold the reader.
const (
	noFollow = unix.O_NOFOLLOW
	noWait   = unix.O_NONBLOCK
)

// unacked is how many octets the other side's kernel has not acknowledged yet.
func unacked(c *net.TCPConn) (n uint32, err error) {
	err = control(c, func(fd int) (err error) {
		n, err = unix.IoctlGetUint32(fd, unix.SIOCOUTQ) // a C int, not Go's
		return err
	})
	return n, err
}

// setAckLimit ends the connection when nothing is acknowledged, or taken, for so long.
func setAckLimit(c *net.TCPConn, d time.Duration) error {
	return control(c, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
	})
}

func control(c *net.TCPConn, do func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) { inner = do(int(fd)) })
	return errors.Join(err, inner)
}
