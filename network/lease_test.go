package network

import (
	"context"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
)

func renewal(h *held) func(context.Context, *nclient4.Client) (*nclient4.Lease, error) {
	return func(ctx context.Context, c *nclient4.Client) (*nclient4.Lease, error) {
		return c.Renew(ctx, h.lease, asked)
	}
}

// fakeLease is one of a server that no longer is.
func fakeLease(t *testing.T) *nclient4.Lease {
	t.Helper()
	m := ack("192.0.2.55", raw(54, 192, 0, 2, 99))
	return &nclient4.Lease{Offer: m, ACK: m, CreationTime: time.Now()}
}
