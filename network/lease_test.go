package network

import (
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
)

// fakeLease is one of a server that no longer is.
func fakeLease(t *testing.T) *nclient4.Lease {
	t.Helper()
	m := ack("192.0.2.55", raw(54, 192, 0, 2, 99))
	return &nclient4.Lease{Offer: m, ACK: m, CreationTime: time.Now()}
}
