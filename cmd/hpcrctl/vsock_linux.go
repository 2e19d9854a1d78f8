package main

import (
	"context"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// vsockConn is an AF_VSOCK stream; package net knows no such addresses.
type vsockConn struct{ *os.File }

type vsockAddr struct{}

func (vsockAddr) Network() string { return "vsock" }
func (vsockAddr) String() string  { return "vsock" }

func (vsockConn) LocalAddr() net.Addr  { return vsockAddr{} }
func (vsockConn) RemoteAddr() net.Addr { return vsockAddr{} }

// dialVsock connects to a guest. The kernel bounds the attempt by its own
// time-out of two seconds.
func dialVsock(ctx context.Context, cid, port uint32) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("vsock socket", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrVM{CID: cid, Port: port}); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("vsock connect", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // so that deadlines work
		unix.Close(fd)
		return nil, os.NewSyscallError("vsock", err)
	}
	return vsockConn{os.NewFile(uintptr(fd), "vsock")}, nil
}
