package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
)

// A source is one who says what a link's addresses are.
type source int

const (
	static source = iota
	byDHCP4
	byRouter
	byDHCP6
	sources
)

// settings is what a link is given by one source.
type settings struct {
	addresses   []netip.Prefix
	routes      []Route
	nameservers []netip.Addr
	search      []string
	timeservers []netip.Addr
	mtu         int
}

// routerMetric keeps a router's default route behind a configured one.
const routerMetric = 1000

func (l *link) metricOf(s source) int {
	if s == byRouter {
		return l.metric + routerMetric
	}
	return l.metric
}

// configure gives l what from says, takes what from said before, and tells the
// firewall and resolv.conf. The MTU is the last that a network named.
func (n *Net) configure(l *link, from source, s settings) error {
	dev, err := netlink.LinkByName(l.name)
	if err != nil {
		return fmt.Errorf("find the card: %w", err)
	}
	if s.mtu > 0 && l.cfg.MTU == 0 && s.mtu != dev.Attrs().MTU {
		if err := netlink.LinkSetMTU(dev, s.mtu); err != nil {
			return fmt.Errorf("set the MTU: %w", err)
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	old := l.parts[from]
	for _, r := range old.routes {
		if !slices.Contains(s.routes, r) {
			err := netlink.RouteDel(&netlink.Route{LinkIndex: dev.Attrs().Index, Dst: ipNet(r.To), Gw: r.Via.AsSlice(), Priority: l.metricOf(from)})
			if err != nil && !errors.Is(err, syscall.ESRCH) { // it went with its address
				return fmt.Errorf("remove a route: %w", err)
			}
		}
	}
	l.parts[from] = s
	before := l.addresses
	l.addresses, l.nameservers, l.search = nil, nil, nil
	for _, p := range l.parts {
		l.addresses = appendNew(l.addresses, p.addresses)
		l.nameservers = appendNew(l.nameservers, p.nameservers)
		l.search = appendNew(l.search, p.search)
	}
	for _, a := range before {
		if !slices.Contains(l.addresses, a) {
			err := netlink.AddrDel(dev, &netlink.Addr{IPNet: ipNet(a)})
			if err != nil && !errors.Is(err, syscall.EADDRNOTAVAIL) { // a link that was down has lost those of IPv6
				return fmt.Errorf("remove an address: %w", err)
			}
		}
	}
	for _, a := range s.addresses {
		if err := netlink.AddrReplace(dev, &netlink.Addr{IPNet: ipNet(a)}); err != nil {
			return fmt.Errorf("add an address: %w", err)
		}
	}
	for _, r := range s.routes {
		route := &netlink.Route{LinkIndex: dev.Attrs().Index, Dst: ipNet(r.To), Gw: r.Via.AsSlice(), Priority: l.metricOf(from)}
		if !r.Via.IsLinkLocalUnicast() && !slices.ContainsFunc(l.addresses, func(p netip.Prefix) bool { return p.Contains(r.Via) }) {
			// A /32 with its router outside is what some clouds hand out.
			if !slices.ContainsFunc(l.addresses, func(p netip.Prefix) bool { return p.Addr().Is4() == r.Via.Is4() && p.IsSingleIP() }) {
				return fmt.Errorf("route via %s: not in a network of this link", r.Via)
			}
			route.Flags = int(netlink.FLAG_ONLINK)
		}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("add a route: %w", err)
		}
	}
	if n.running && !slices.Equal(before, l.addresses) {
		n.notify(Change{Link: l.cfg.Name, State: "addresses", Addresses: slices.Clone(l.addresses)})
	}
	return errors.Join(n.localChanged(), n.writeResolv())
}

func appendNew[T comparable](list, more []T) []T {
	for _, x := range more {
		if !slices.Contains(list, x) {
			list = append(list, x)
		}
	}
	return list
}

// localChanged tells the firewall which addresses are the guest's own.
func (n *Net) localChanged() error {
	return n.applyLocked(func(s *ruleState) {
		s.local = nil
		for _, l := range n.links {
			for _, a := range l.addresses {
				if a.Addr().Is4() { // containers have no other: nothing to translate
					s.local = append(s.local, a.Addr())
				}
			}
		}
	})
}

// uniqueWait bounds Duplicate Address Detection, which takes one to two
// seconds (RFC 4862 section 5.4).
const uniqueWait = 6 * time.Second

// Flags of linux/if_addr.h.
const (
	flagDuplicate = 0x08 // IFA_F_DADFAILED
	flagTentative = 0x40 // IFA_F_TENTATIVE
)

// awaitUnique waits until every IPv6 address of a link, its link-local one
// among them, may be used.
func awaitUnique(ctx context.Context, name string) error {
	for deadline := time.Now().Add(uniqueWait); ; {
		dev, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find the card: %w", err)
		}
		addrs, err := netlink.AddrList(dev, netlink.FAMILY_V6)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return fmt.Errorf("list its addresses: %w", err)
		}
		wait := len(addrs) == 0 || err != nil
		for _, a := range addrs {
			if a.Flags&flagDuplicate != 0 {
				return errors.New("duplicate address")
			}
			wait = wait || a.Flags&flagTentative != 0
		}
		if !wait {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("no IPv6 address may be used yet: %w", os.ErrDeadlineExceeded)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}
