package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/dhcpv6/nclient6"
	"github.com/insomniacslk/dhcp/iana"
)

// dhcp6 is the client of DHCPv6 (RFC 8415) for one address. Routes are the
// routers' business.
type dhcp6 struct {
	n *Net
	l *link
}

func (dhcp6) source() source { return byDHCP6 }

func (d dhcp6) acquire(ctx context.Context, old *held) (*held, error) {
	return insist(ctx, func(ctx context.Context, wait time.Duration) (*held, error) {
		return d.ask(ctx, wait, func(ctx context.Context, c *nclient6.Client, id dhcpv6.DUID) (*dhcpv6.Message, error) {
			mods := []dhcpv6.Modifier{dhcpv6.WithClientID(id), asked6}
			if old != nil {
				mods = append(mods, dhcpv6.WithIANA(leasedAddresses(old.v6)...))
			}
			advert, err := c.Solicit(ctx, mods...)
			if err != nil {
				return nil, err
			}
			// What was asked for holds of the offer too.
			if _, _, err := lease6Settings(advert, id); err != nil {
				return nil, err
			}
			return c.Request(ctx, advert, asked6)
		})
	})
}

func (d dhcp6) renew(ctx context.Context, h *held) (*held, error) {
	return d.ask(ctx, 5*time.Second, func(ctx context.Context, c *nclient6.Client, id dhcpv6.DUID) (*dhcpv6.Message, error) {
		m, err := dhcpv6.NewMessage()
		if err != nil {
			return nil, err
		}
		m.MessageType = dhcpv6.MessageTypeRenew
		m.AddOption(dhcpv6.OptClientID(id))
		m.AddOption(dhcpv6.OptServerID(h.v6.Options.ServerID()))
		m.AddOption(dhcpv6.OptElapsedTime(0))
		m.AddOption(h.v6.Options.OneIANA())
		asked6(m)
		return c.SendAndRead(ctx, nclient6.AllDHCPRelayAgentsAndServers, m, nclient6.IsMessageType(dhcpv6.MessageTypeReply))
	})
}

func asked6(m dhcpv6.DHCPv6) {
	m.UpdateOption(dhcpv6.OptRequestedOption(dhcpv6.OptionDNSRecursiveNameServer, dhcpv6.OptionDomainSearchList, dhcpv6.OptionNTPServer))
}

func leasedAddresses(m *dhcpv6.Message) (out []dhcpv6.OptIAAddress) {
	for _, a := range m.Options.OneIANA().Options.Addresses() {
		out = append(out, *a)
	}
	return out
}

// ask opens a socket for one exchange, bound to the link-local address.
func (d dhcp6) ask(ctx context.Context, wait time.Duration, exchange func(context.Context, *nclient6.Client, dhcpv6.DUID) (*dhcpv6.Message, error)) (*held, error) {
	ctx, stop := context.WithTimeout(ctx, 3*wait)
	defer stop()
	client, err := nclient6.New(d.l.name, nclient6.WithTimeout(wait), nclient6.WithRetry(1))
	if err != nil {
		return nil, fmt.Errorf("open the DHCPv6 client: %w", err)
	}
	// The same in every boot with the same card, so that a server knows the
	// guest again; a clock has no part in it.
	id := &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: client.InterfaceAddr()}
	m, err := exchange(ctx, client, id)
	if cerr := client.Close(); err == nil && cerr != nil {
		err = cerr
	}
	if err != nil {
		return nil, fmt.Errorf("ask for an IPv6 lease: %w", err)
	}
	if m.MessageType != dhcpv6.MessageTypeReply {
		return nil, errors.New("the DHCPv6 answer is no reply")
	}
	s, life, err := lease6Settings(m, id)
	if err != nil {
		return nil, fmt.Errorf("the DHCPv6 answer is unusable: %w", err)
	}
	if err := d.n.configure(d.l, byDHCP6, s); err != nil {
		return nil, fmt.Errorf("apply the IPv6 lease: %w", err)
	}
	return &held{v6: m, since: time.Now(), time: life}, nil
}

// lease6Settings takes from an answer to id one address, resolvers, search
// domains and time servers, and drops the rest. An answer without a usable
// address is an error; any other option that is out of bounds is as if it were
// absent.
func lease6Settings(m *dhcpv6.Message, id dhcpv6.DUID) (settings, time.Duration, error) {
	var s settings
	if c := m.Options.ClientID(); c == nil || !c.Equal(id) {
		return s, 0, errors.New("it is another client's")
	}
	if m.Options.ServerID() == nil {
		return s, 0, errors.New("it names no server")
	}
	if st := m.Options.Status(); st != nil && st.StatusCode != iana.StatusSuccess {
		return s, 0, errors.New("the server refuses")
	}
	ia := m.Options.OneIANA()
	if ia == nil {
		return s, 0, errors.New("no address")
	}
	if st := ia.Options.Status(); st != nil && st.StatusCode != iana.StatusSuccess {
		return s, 0, errors.New("the server has no address")
	}
	var life time.Duration
	for _, a := range ia.Options.Addresses() {
		ip, ok := netip.AddrFromSlice(a.IPv6Addr)
		if ok && usableIPv6(ip) && a.ValidLifetime > 0 {
			s.addresses = []netip.Prefix{hostPrefix(ip)}
			life = min(max(a.ValidLifetime, minLease), maxLease)
			break
		}
	}
	if s.addresses == nil {
		return s, 0, errors.New("no usable address")
	}
	own := s.addresses[0].Addr()
	for _, ip := range m.Options.DNS() {
		if d, ok := netip.AddrFromSlice(ip); ok && usableIPv6(d) && d != own && !slices.Contains(s.nameservers, d) && len(s.nameservers) < maxNameservers {
			s.nameservers = append(s.nameservers, d)
		}
	}
	if list := m.Options.DomainSearchList(); list != nil {
		s.search = usableDomains(list.Labels)
	}
	for _, o := range m.Options.Get(dhcpv6.OptionNTPServer) {
		for _, sub := range o.(*dhcpv6.OptNTPServer).Suboptions {
			a, ok := sub.(*dhcpv6.NTPSuboptionSrvAddr)
			if !ok {
				continue
			}
			if t, ok := netip.AddrFromSlice(*a); ok && usableIPv6(t) && t != own && !slices.Contains(s.timeservers, t) && len(s.timeservers) < maxTimeservers {
				s.timeservers = append(s.timeservers, t)
			}
		}
	}
	return s, life, nil
}

// usableIPv6: an address that a host can have and that means the same on every
// link.
func usableIPv6(a netip.Addr) bool {
	return a.Is6() && !a.Is4In6() && a.Zone() == "" && a.IsGlobalUnicast() && a.As16()[0] >= 0x20
}
