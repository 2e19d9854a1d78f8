package logship

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// TestUnacked: what the other side's kernel has no room for is not acknowledged,
// and is counted in octets, on machines of either byte order.
func TestUnacked(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	peer, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	tcp := c.(*net.TCPConn)
	if err := tune(tcp); err != nil {
		t.Fatal(err)
	}
	if n, err := unacked(tcp); n != 0 || err != nil {
		t.Errorf("before anything was written: %d, %v", n, err)
	}
	much := make([]byte, 64<<20)
	if err := c.SetWriteDeadline(time.Now().Add(2 * time.Second)); err != nil {
		t.Fatal(err)
	}
	written, err := c.Write(much)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%d octets went to somebody who takes nothing: %v", written, err)
	}
	n, err := unacked(tcp)
	if err != nil || n == 0 || int(n) > min(written, 4*sendBuffer) {
		t.Errorf("%d of %d octets, %v", n, written, err)
	}
	if _, err := io.CopyN(io.Discard, peer, int64(written)); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(5 * time.Second); n != 0 && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if n, err = unacked(tcp); err != nil {
			t.Fatal(err)
		}
	}
	if n != 0 {
		t.Errorf("%d octets after all was read", n)
	}
}
