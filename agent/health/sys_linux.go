package health

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// vsockListener accepts connections of the host on one vsock port. The files
// are non-blocking, hence in the runtime's poller: Close and deadlines work.
type vsockListener struct {
	file *os.File
	port uint32
	once sync.Once
	err  error
}

func listenVsock(port uint32) (net.Listener, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ESOCKTNOSUPPORT) {
		return nil, fmt.Errorf("%w: %w", ErrNoVsock, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open the vsock: %w", err)
	}
	f := os.NewFile(uintptr(fd), "vsock")
	if err := bindVsock(fd, port); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &vsockListener{file: f, port: port}, nil
}

func bindVsock(fd int, port uint32) error {
	err := unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: port})
	if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("%w: %w", ErrNoVsock, err)
	}
	if err != nil {
		return fmt.Errorf("bind the vsock port: %w", err)
	}
	if err := unix.Listen(fd, maxConnections); err != nil {
		return fmt.Errorf("listen on the vsock port: %w", err)
	}
	return nil
}

func (l *vsockListener) Accept() (net.Conn, error) {
	raw, err := l.file.SyscallConn()
	if err != nil {
		return nil, net.ErrClosed
	}
	for {
		var fd int
		var peer unix.Sockaddr
		var acceptErr error
		if err := raw.Read(func(s uintptr) bool {
			fd, peer, acceptErr = unix.Accept4(int(s), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			return !errors.Is(acceptErr, unix.EAGAIN)
		}); err != nil {
			return nil, net.ErrClosed
		}
		if errors.Is(acceptErr, unix.EINTR) || errors.Is(acceptErr, unix.ECONNABORTED) {
			continue
		}
		if acceptErr != nil {
			return nil, fmt.Errorf("accept on vsock: %w", acceptErr)
		}
		f := os.NewFile(uintptr(fd), "vsock")
		if !fromHost(peer) {
			_ = f.Close() // a stranger: nothing to tell it, nothing to lose
			continue
		}
		return &vsockConn{f, vsockAddr{unix.VMADDR_CID_ANY, l.port}, addrOf(peer)}, nil
	}
}

// fromHost: CID 2 is the host; 1 would be a process of this guest, a container
// included, anything else another guest.
func fromHost(peer unix.Sockaddr) bool {
	vm, ok := peer.(*unix.SockaddrVM)
	return ok && vm.CID == unix.VMADDR_CID_HOST
}

func (l *vsockListener) Close() error {
	l.once.Do(func() { l.err = l.file.Close() })
	return l.err
}

func (l *vsockListener) Addr() net.Addr { return vsockAddr{unix.VMADDR_CID_ANY, l.port} }

type vsockConn struct {
	*os.File
	local, remote net.Addr
}

func (c *vsockConn) LocalAddr() net.Addr  { return c.local }
func (c *vsockConn) RemoteAddr() net.Addr { return c.remote }

type vsockAddr struct{ cid, port uint32 }

func addrOf(s unix.Sockaddr) vsockAddr {
	if vm, ok := s.(*unix.SockaddrVM); ok {
		return vsockAddr{vm.CID, vm.Port}
	}
	return vsockAddr{}
}

func (vsockAddr) Network() string { return "vsock" }
func (a vsockAddr) String() string {
	return strconv.FormatUint(uint64(a.cid), 10) + ":" + strconv.FormatUint(uint64(a.port), 10)
}
