package network

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/insomniacslk/dhcp/dhcpv6"
)

// Bounds on what a DHCP server may tell us.
const (
	maxNameservers = 3
	maxTimeservers = 4
	maxSearch      = 6
	minMTU         = 1280
	maxMTU         = 9216
	minLease       = time.Minute
	maxLease       = 24 * time.Hour
	noLeaseTime    = time.Hour // where the server names none
)

// held is a lease and when it was given, by the monotonic clock. One of v4 and
// v6 is set.
type held struct {
	v4    *nclient4.Lease
	v6    *dhcpv6.Message
	since time.Time
	time  time.Duration
}

// A leaser is one link's client of one version of DHCP. What it obtains it has
// applied.
type leaser interface {
	source() source
	acquire(ctx context.Context, old *held) (*held, error) // asks until ctx ends; with old for the same address again
	renew(ctx context.Context, h *held) (*held, error)
}

type dhcp4 struct {
	n *Net
	l *link
}

var asked = dhcpv4.WithRequestedOptions(
	dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer,
	dhcpv4.OptionDomainName, dhcpv4.OptionDNSDomainSearchList, dhcpv4.OptionInterfaceMTU,
	dhcpv4.OptionIPAddressLeaseTime, dhcpv4.OptionNTPServers)

func (dhcp4) source() source { return byDHCP4 }

func (d dhcp4) acquire(ctx context.Context, old *held) (*held, error) {
	return insist(ctx, func(ctx context.Context, wait time.Duration) (*held, error) {
		return d.ask(ctx, wait, func(ctx context.Context, c *nclient4.Client) (*nclient4.Lease, error) {
			mods := []dhcpv4.Modifier{asked}
			if old != nil { // a wish: the request is for what is offered
				mods = append(mods, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(old.v4.ACK.YourIPAddr)))
			}
			offer, err := c.DiscoverOffer(ctx, mods...)
			if err != nil {
				return nil, err
			}
			return c.RequestFromOffer(ctx, offer, asked)
		})
	})
}

func (d dhcp4) renew(ctx context.Context, h *held) (*held, error) {
	return d.ask(ctx, 5*time.Second, func(ctx context.Context, c *nclient4.Client) (*nclient4.Lease, error) {
		return c.Renew(ctx, h.v4, asked)
	})
}

// insist tries with growing patience until it has a lease or ctx ends.
func insist(ctx context.Context, try func(ctx context.Context, wait time.Duration) (*held, error)) (*held, error) {
	var last error
	for wait := time.Second; ; wait = min(wait*2, 16*time.Second) {
		h, err := try(ctx, wait)
		if err == nil {
			return h, nil
		}
		if !errors.Is(err, context.Canceled) {
			last = err
		}
		pause := wait/8 + time.Duration(rand.Int64N(int64(wait/4)))
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), last)
		case <-time.After(pause):
		}
	}
}

// ask opens a packet socket for one exchange: a client that is not waiting for
// an answer takes none.
func (d dhcp4) ask(ctx context.Context, wait time.Duration, exchange func(context.Context, *nclient4.Client) (*nclient4.Lease, error)) (*held, error) {
	// The context bounds the exchange as a whole: each stray packet restarts
	// the client's own timer.
	ctx, stop := context.WithTimeout(ctx, 2*wait)
	defer stop()
	client, err := nclient4.New(d.l.name, nclient4.WithTimeout(wait), nclient4.WithRetry(1))
	if err != nil {
		return nil, fmt.Errorf("open the DHCP client: %w", err)
	}
	lease, err := exchange(ctx, client)
	if cerr := client.Close(); err == nil && cerr != nil {
		err = cerr
	}
	if err != nil {
		return nil, fmt.Errorf("ask for a lease: %w", err)
	}
	s, life, err := leaseSettings(lease.ACK)
	if err != nil {
		return nil, fmt.Errorf("the DHCP answer is unusable: %w", err)
	}
	if err := d.n.configure(d.l, byDHCP4, s); err != nil {
		return nil, fmt.Errorf("apply the lease: %w", err)
	}
	return &held{v4: lease, since: time.Now(), time: life}, nil
}

// keepLease renews at half of the lease's time, or when the link comes back
// from a break; asks anew at seven eighths; and gives the address up when the
// lease is over (RFC 2131 §4.4.5, RFC 8415 §18.2). Without a lease it goes on
// asking.
func (n *Net) keepLease(ctx context.Context, l *link, d leaser, h *held) {
	wake := n.waker(l)
	n.wg.Go(func() {
		for ctx.Err() == nil {
			if h == nil {
				if h, _ = d.acquire(ctx, nil); h != nil { // only the end of ctx leads to an error
					n.log.Info("lease obtained", "link", l.cfg.Name)
				}
				continue
			}
			woken := sleepUntil(ctx, wake, h.since.Add(h.time/2))
			next, err := d.renew(ctx, h)
			if err == nil {
				h = next
				continue
			}
			if ctx.Err() != nil {
				return
			}
			n.log.Warn("lease not renewed", "link", l.cfg.Name, "error", err)
			if !woken && !errors.As(err, new(*nclient4.ErrNak)) { // else it may be another network: ask it now
				sleepUntil(ctx, wake, h.since.Add(h.time*7/8))
			}
			bounded, stop := context.WithDeadline(ctx, h.since.Add(h.time))
			next, err = d.acquire(bounded, h)
			stop()
			if err == nil {
				h = next
				continue
			}
			if ctx.Err() == nil {
				n.log.Error("lease is over", "link", l.cfg.Name, "error", err)
				if err := n.configure(l, d.source(), settings{}); err != nil {
					n.log.Error("address not removed", "link", l.cfg.Name, "error", err)
				}
			}
			h = nil
		}
	})
}

// sleepUntil ends early when ctx does, or when the link comes back (woken).
func sleepUntil(ctx context.Context, wake <-chan struct{}, t time.Time) (woken bool) {
	timer := time.NewTimer(time.Until(t))
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-wake:
		return true
	case <-timer.C:
	}
	return false
}

var domainLabel = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?$`)

// leaseSettings takes from an answer what we accept and drops the rest: no
// host name, no static routes, no boot servers, no proxy. An answer
// without a usable address is an error; any other option that is out of
// bounds is as if it were absent.
func leaseSettings(ack *dhcpv4.DHCPv4) (settings, time.Duration, error) {
	var s settings
	addr, ok := netip.AddrFromSlice(ack.YourIPAddr.To4())
	if !ok || !usableUnicast(addr) {
		return s, 0, errors.New("no usable address")
	}
	mask := ack.Options.Get(dhcpv4.OptionSubnetMask)
	if len(mask) != 4 {
		return s, 0, errors.New("no subnet mask")
	}
	ones, bits := ack.SubnetMask().Size()
	if bits != 32 || ones < 8 {
		return s, 0, errors.New("no sane subnet mask")
	}
	prefix := netip.PrefixFrom(addr, ones)
	if ones < 31 && (addr == prefix.Masked().Addr() || addr == broadcastOf(prefix)) {
		return s, 0, errors.New("the address is that of the network or of everybody")
	}
	s.addresses = []netip.Prefix{prefix}
	for _, ip := range ack.Router() {
		if r, ok := netip.AddrFromSlice(ip.To4()); ok && usableUnicast(r) && r != addr && (prefix.Contains(r) || ones == 32) {
			s.routes = []Route{{To: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Via: r}}
			break
		}
	}
	for _, ip := range ack.DNS() {
		// A resolver on our own address would be a question to ourselves.
		if d, ok := netip.AddrFromSlice(ip.To4()); ok && usableUnicast(d) && d != addr && !slices.Contains(s.nameservers, d) && len(s.nameservers) < maxNameservers {
			s.nameservers = append(s.nameservers, d)
		}
	}
	for _, ip := range ack.NTPServers() {
		if t, ok := netip.AddrFromSlice(ip.To4()); ok && usableUnicast(t) && t != addr && !slices.Contains(s.timeservers, t) && len(s.timeservers) < maxTimeservers {
			s.timeservers = append(s.timeservers, t)
		}
	}
	if mtu := ack.Options.Get(dhcpv4.OptionInterfaceMTU); len(mtu) == 2 {
		if v := int(mtu[0])<<8 | int(mtu[1]); v >= minMTU && v <= maxMTU {
			s.mtu = v
		}
	}
	if list := ack.DomainSearch(); list != nil {
		s.search = usableDomains(list.Labels)
	}
	if len(s.search) == 0 {
		s.search = usableDomains(strings.Fields(string(ack.Options.Get(dhcpv4.OptionDomainName))))
	}
	life := min(max(ack.IPAddressLeaseTime(noLeaseTime), minLease), maxLease)
	return s, life, nil
}

// usableUnicast: an address that a host on the network can have.
func usableUnicast(a netip.Addr) bool {
	if !a.Is4() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() {
		return false
	}
	first := a.As4()[0]
	return first != 0 && first < 224
}

func broadcastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	return netip.AddrFrom4(b)
}

func usableDomains(list []string) []string {
	var out []string
	for _, d := range list {
		d = strings.TrimSuffix(d, ".")
		if d == "" || len(d) > 253 || len(out) == maxSearch || slices.Contains(out, d) {
			continue
		}
		if !slices.ContainsFunc(strings.Split(d, "."), func(label string) bool { return !domainLabel.MatchString(label) }) {
			out = append(out, d)
		}
	}
	return out
}
