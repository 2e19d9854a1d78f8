//go:build !linux

package qemu

import (
	"context"
	"errors"
	"net"
)

// vsock needs shared memory and eventfds, which only Linux has.
type vsock struct{}

func listenVsock(string) (*vsock, error) { return nil, errors.New("vsock needs a Linux host") }

func (*vsock) close() {}

func (*vsock) dial(context.Context, uint32) (net.Conn, error) {
	return nil, errors.New("vsock needs a Linux host")
}
