package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/mdlayher/ndp"
	"golang.org/x/net/ipv6"
)

// Router advertisements are heard here and not in the kernel, whose own client
// keeps every router that anybody on the wire pretends to be. Here one router
// counts until its time is over, and what it says is bounded.
const (
	maxPrefixes     = 4
	maxRouterLife   = 9000 * time.Second    // RFC 4861 section 6.2.1
	maxPrefixLife   = 24 * time.Hour        // routers repeat themselves every 30 minutes at most
	keptPrefixLife  = 2 * time.Hour         // RFC 4862 section 5.5.3 e: nobody can end an address at once
	advertPause     = 50 * time.Millisecond // after each advertisement: 20 a second are looked at
	changePause     = time.Second           // after each that changes something
	firstSolicit    = time.Second
	maxSolicit      = time.Minute
	maxAdvertisment = 1500
)

// routerView is what one link knows of its router, by the monotonic clock.
type routerView struct {
	slaac bool
	own   [8]byte // interface identifier

	router      netip.Addr
	until       time.Time // of the router
	prefixes    []lasting[netip.Prefix]
	nameservers []lasting[netip.Addr]
	search      []lasting[string]
	mtu         int
}

// lasting is something that a router said, and how long it holds.
type lasting[T comparable] struct {
	value T
	until time.Time
}

// hear takes in an advertisement; ok is false if it is none of ours.
func (v *routerView) hear(ra *ndp.RouterAdvertisement, from netip.Addr, now time.Time) (ok bool) {
	from = from.WithZone("")
	if !from.IsLinkLocalUnicast() || !from.Is6() {
		return false
	}
	if v.router.IsValid() && v.router != from && now.Before(v.until) {
		return false
	}
	life := min(ra.RouterLifetime, maxRouterLife)
	if life <= 0 { // it is no default router, or no longer
		if v.router == from {
			v.router = netip.Addr{}
		}
		return false
	}
	v.router, v.until = from, now.Add(life)
	for _, o := range ra.Options {
		switch o := o.(type) {
		case *ndp.PrefixInformation:
			v.prefix(o, now)
		case *ndp.RecursiveDNSServer:
			for _, a := range o.Servers {
				if usableIPv6(a) {
					v.nameservers = remember(v.nameservers, a, o.Lifetime, maxNameservers, now)
				}
			}
		case *ndp.DNSSearchList:
			for _, d := range usableDomains(o.DomainNames) {
				v.search = remember(v.search, d, o.Lifetime, maxSearch, now)
			}
		case *ndp.MTU:
			if o.MTU >= minMTU && o.MTU <= maxMTU {
				v.mtu = int(o.MTU)
			}
		}
	}
	return true
}

// prefix takes an address of a prefix whose router allows it.
func (v *routerView) prefix(o *ndp.PrefixInformation, now time.Time) {
	if !v.slaac || !o.AutonomousAddressConfiguration || o.PrefixLength != 64 || !usableIPv6(o.Prefix) || o.PreferredLifetime > o.ValidLifetime {
		return
	}
	b := o.Prefix.As16()
	copy(b[8:], v.own[:])
	bits := 128
	if o.OnLink {
		bits = 64
	}
	p := netip.PrefixFrom(netip.AddrFrom16(b), bits)
	life := o.ValidLifetime
	i := slices.IndexFunc(v.prefixes, func(l lasting[netip.Prefix]) bool { return l.value == p })
	if i >= 0 {
		if left := v.prefixes[i].until.Sub(now); life < keptPrefixLife && life < left {
			life = min(left, keptPrefixLife)
		}
	} else if o.PreferredLifetime <= 0 {
		return // on its way out
	}
	v.prefixes = remember(v.prefixes, p, min(life, maxPrefixLife), maxPrefixes, now)
}

// remember sets how long a value holds; a new one is let in while there is room.
func remember[T comparable](list []lasting[T], value T, life time.Duration, room int, now time.Time) []lasting[T] {
	life = min(life, maxPrefixLife)
	list = slices.DeleteFunc(list, func(l lasting[T]) bool { return l.value == value && life <= 0 })
	for i := range list {
		if list[i].value == value {
			list[i].until = now.Add(life)
			return list
		}
	}
	if life <= 0 || len(list) >= room {
		return list
	}
	return append(list, lasting[T]{value, now.Add(life)})
}

// settings drops what is over, and says when the next thing is.
func (v *routerView) settings(now time.Time) (s settings, next time.Time) {
	next = now.Add(maxPrefixLife)
	if v.router.IsValid() && !now.Before(v.until) {
		v.router = netip.Addr{}
	}
	if v.router.IsValid() {
		s.routes = []Route{{To: netip.PrefixFrom(netip.IPv6Unspecified(), 0), Via: v.router}}
		next = v.until
	}
	s.mtu = v.mtu
	v.prefixes, s.addresses, next = current(v.prefixes, now, next)
	v.nameservers, s.nameservers, next = current(v.nameservers, now, next)
	v.search, s.search, next = current(v.search, now, next)
	return s, next
}

func current[T comparable](list []lasting[T], now, next time.Time) (left []lasting[T], values []T, soonest time.Time) {
	for _, l := range list {
		if now.Before(l.until) {
			left, values = append(left, l), append(values, l.value)
			if l.until.Before(next) {
				next = l.until
			}
		}
	}
	return left, values, next
}

// hearRouters waits within ctx until a router has said what the link needs,
// and goes on listening as long as keep.
func (n *Net) hearRouters(ctx, keep context.Context, l *link) error {
	ifi, err := net.InterfaceByName(l.name)
	if err != nil {
		return fmt.Errorf("find the card: %w", err)
	}
	conn, _, err := ndp.Listen(ifi, ndp.LinkLocal)
	if err != nil {
		return fmt.Errorf("listen for routers: %w", err)
	}
	var filter ipv6.ICMPFilter
	filter.SetAll(true)
	filter.Accept(ipv6.ICMPTypeRouterAdvertisement)
	err = errors.Join(conn.SetICMPFilter(&filter), conn.SetControlMessage(ipv6.FlagHopLimit|ipv6.FlagInterface, true), conn.JoinGroup(netip.IPv6LinkLocalAllNodes()))
	if err != nil {
		return errors.Join(fmt.Errorf("listen for routers: %w", err), conn.Close())
	}
	v := &routerView{slaac: l.cfg.AcceptRA, own: interfaceID(ifi.HardwareAddr)}
	first := make(chan error, 1)
	n.wg.Go(func() {
		// A read that waits ends with its socket.
		stop := context.AfterFunc(keep, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
		defer stop()
		defer conn.Close()
		n.listenToRouters(keep, l, ifi, conn, v, first)
	})
	select {
	case err := <-first:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// interfaceID is RFC 4291's modified EUI-64: the card's address is the host's
// choice and no secret, and a server's address should be foreseeable.
func interfaceID(mac net.HardwareAddr) (id [8]byte) {
	if len(mac) == 6 {
		copy(id[:3], mac)
		id[3], id[4] = 0xff, 0xfe
		copy(id[5:], mac[3:])
		id[0] ^= 2
	}
	return id
}

// listenToRouters solicits while there is no router, and applies what changes.
func (n *Net) listenToRouters(ctx context.Context, l *link, ifi *net.Interface, conn *ndp.Conn, v *routerView, first chan<- error) {
	var have settings
	var lastErr error
	wait, solicitAt := firstSolicit, time.Now()
	buf := make([]byte, maxAdvertisment)
	for {
		now := time.Now()
		s, next := v.settings(now)
		if !have.equal(s) {
			err := n.configure(l, byRouter, s)
			if err == nil {
				have = s
			} else if ctx.Err() == nil {
				n.log.Warn("what the router says cannot be applied", "link", l.cfg.Name, "error", err)
			}
			if err == nil && first != nil && len(s.routes) > 0 && (!v.slaac || len(s.addresses) > 0) {
				first <- nil
				first = nil
			}
			if !pause(ctx, changePause) {
				return
			}
			if err != nil {
				continue
			}
		}
		if v.router.IsValid() {
			wait, solicitAt = firstSolicit, v.until
		} else if !now.Before(solicitAt) {
			m := &ndp.RouterSolicitation{Options: []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: ifi.HardwareAddr}}}
			// A link without a carrier loses it: the next one may arrive.
			if err := conn.WriteTo(m, nil, netip.IPv6LinkLocalAllRouters()); err != nil && (lastErr == nil || lastErr.Error() != err.Error()) {
				n.log.Info("router not asked", "link", l.cfg.Name, "error", err)
				lastErr = err
			}
			solicitAt = now.Add(wait)
			wait = min(wait*2, maxSolicit)
		}
		if solicitAt.Before(next) {
			next = solicitAt
		}
		if err := conn.SetReadDeadline(next); err != nil || ctx.Err() != nil {
			return
		}
		size, cm, from, err := conn.ReadRaw(buf)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, os.ErrDeadlineExceeded):
			continue
		case err != nil: // the link is down or gone
			if !pause(ctx, changePause) {
				return
			}
			continue
		}
		if ra := advertisement(buf[:size]); ra != nil && cm != nil && cm.HopLimit == ndp.HopLimit && cm.IfIndex == ifi.Index {
			v.hear(ra, from, time.Now())
		}
		if !pause(ctx, advertPause) {
			return
		}
	}
}

// advertisement parses one ICMPv6 message; nil = none that is sound.
func advertisement(b []byte) *ndp.RouterAdvertisement {
	m, err := ndp.ParseMessage(b)
	if err != nil {
		return nil
	}
	ra, _ := m.(*ndp.RouterAdvertisement)
	return ra
}

func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

func (s settings) equal(o settings) bool {
	return slices.Equal(s.addresses, o.addresses) && slices.Equal(s.routes, o.routes) && slices.Equal(s.nameservers, o.nameservers) &&
		slices.Equal(s.search, o.search) && s.mtu == o.mtu
}
