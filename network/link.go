package network

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"hpcr/agent/hpl"
)

// card is a network card as the kernel shows it.
type card struct {
	name   string // the kernel's, "eth0"
	target string // ours, "enc1"
}

// link is an uplink with its configuration and what became of it. Net.mu
// guards the lower half.
type link struct {
	card
	cfg    LinkConfig
	metric int // of its default route: the first link wins

	parts       [sources]settings // by who said so
	addresses   []netip.Prefix    // of all parts, likewise the next two
	nameservers []netip.Addr
	search      []string
	wakers      []chan<- struct{}
}

// ipv6 says whether the link speaks IPv6 at all.
func (c *LinkConfig) ipv6() bool {
	return c.DHCP6 || c.AcceptRA || slices.ContainsFunc(c.Addresses, func(p netip.Prefix) bool { return p.Addr().Is6() })
}

var (
	ccwAddress = regexp.MustCompile(`^[0-9a-f]{1,2}\.[0-9a-f]\.[0-9a-f]{4}$`)
	pciAddress = regexp.MustCompile(`^[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$`)
)

// discoverCards lists the cards that have a device behind them; bridges, veths
// and the loopback have none.
func discoverCards() ([]card, error) { return cardsIn("/sys/class/net") }

// cardsIn names ccw cards by their device number, as systemd and HPCR do
// (0.0.0001 → enc1, leading zeros and dots cut), and the others enc1, enc2, …
// in PCI order behind them.
func cardsIn(dir string) ([]card, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list network cards: %w", err)
	}
	type found struct{ name, ccw, address string }
	var all []found
	for _, e := range entries {
		device, err := filepath.EvalSymlinks(filepath.Join(dir, e.Name(), "device"))
		if errors.Is(err, fs.ErrNotExist) {
			continue // no hardware
		}
		if err != nil {
			return nil, fmt.Errorf("find the device of a network card: %w", err)
		}
		f := found{name: e.Name(), address: device}
		for part := range strings.SplitSeq(device, "/") { // the last one is the nearest to the card
			switch {
			case pciAddress.MatchString(part):
				f.address = part
			case ccwAddress.MatchString(part):
				f.ccw = part
			}
		}
		all = append(all, f)
	}
	slices.SortFunc(all, func(a, b found) int {
		return cmp.Or(cmp.Compare(a.ccw, b.ccw), cmp.Compare(a.address, b.address), cmp.Compare(a.name, b.name))
	})
	var cards []card
	used := map[string]bool{}
	for _, f := range all {
		if f.ccw == "" {
			continue
		}
		number := strings.TrimLeft(f.ccw, ".0")
		if number == "" {
			number = "0"
		}
		cards = append(cards, card{f.name, "enc" + number})
		used["enc"+number] = true
	}
	next := 1
	for _, f := range all {
		if f.ccw != "" {
			continue
		}
		for used[fmt.Sprintf("enc%d", next)] {
			next++
		}
		cards = append(cards, card{f.name, fmt.Sprintf("enc%d", next)})
		next++
	}
	return cards, nil
}

// settle is how long the set of cards must stay the same where no
// configuration says how many there are: drivers find them one by one.
const settle = 60 * time.Millisecond

// waitForCards waits until every configured card, or any card at all, is
// there. With a configuration the answer is in its order.
func waitForCards(ctx context.Context, cfg Config, discover func() ([]card, error), limit time.Duration) ([]card, error) {
	deadline := time.Now().Add(limit)
	var before []card
	var since time.Time
	for {
		cards, err := discover()
		if err != nil {
			return nil, hpl.Wrap(err, "HPL14001E", "", "the guest cannot list its network cards")
		}
		chosen, missing := choose(cfg, cards)
		if !slices.Equal(before, cards) {
			before, since = cards, time.Now()
		}
		if missing == nil && (cfg.Links != nil || time.Since(since) >= settle) {
			return chosen, nil
		}
		if missing != nil && time.Now().After(deadline) {
			return nil, missing
		}
		select {
		case <-ctx.Done():
			return chosen, missing
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func choose(cfg Config, cards []card) ([]card, error) {
	if cfg.Links == nil {
		if len(cards) == 0 {
			return nil, hpl.New("HPL14001E", "", "the guest has no network card; give its domain a virtio network interface")
		}
		return cards, nil
	}
	var chosen []card
	for _, l := range cfg.Links {
		if l.VLAN != 0 {
			chosen = append(chosen, card{name: l.Name})
			continue
		}
		j := slices.IndexFunc(cards, func(c card) bool { return c.target == l.Name })
		if j < 0 {
			return nil, hpl.New("HPL14001E", l.Path,
				"the guest has no network card of this name; on s390x encN is the card with ccw device number N in the domain XML, elsewhere the N-th card in PCI order")
		}
		chosen = append(chosen, cards[j])
	}
	return chosen, nil
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	return nil
}

// raise names one link, tells the firewall what it may hear, and brings it up.
func (n *Net) raise(l *link) error {
	fail := func(err error, detail string) error { return hpl.Wrap(err, "HPL14001E", l.cfg.Path, detail) }
	if l.cfg.VLAN != 0 {
		if err := n.addVLAN(l); err != nil {
			return fail(err, "the VLAN could not be made on its card")
		}
	}
	dev, err := netlink.LinkByName(l.name)
	if err != nil {
		return fail(err, "the network card is gone")
	}
	if l.target != "" && l.target != l.name {
		// Without the wished name all else still works: not an error.
		if err := netlink.LinkSetName(dev, l.target); err != nil {
			n.log.Warn("network card keeps its kernel name", "error", err)
		} else {
			l.name = l.target
		}
	}
	if l.cfg.ipv6() {
		rules := ipv6Rules{name: l.name, routers: l.cfg.AcceptRA || l.cfg.DHCP6, dhcp: l.cfg.DHCP6}
		if err := n.apply(func(s *ruleState) { s.ipv6 = append(s.ipv6, rules) }); err != nil {
			return fail(err, "the kernel refused the firewall for IPv6")
		}
		if err := enableIPv6(l.name); err != nil {
			return fail(err, "IPv6 could not be switched on; the kernel may have it off")
		}
	} else if err := disableIPv6(l.name); err != nil {
		return fail(err, "IPv6 could not be switched off on the network card")
	}
	if l.cfg.MTU > 0 {
		if err := netlink.LinkSetMTU(dev, l.cfg.MTU); err != nil {
			return fail(err, "the network card refuses this MTU; take a smaller one")
		}
	}
	if err := netlink.LinkSetUp(dev); err != nil {
		return fail(err, "the network card could not be brought up")
	}
	return nil
}

// addVLAN makes a VLAN's interface on its card, whatever name that has.
func (n *Net) addVLAN(l *link) error {
	i := slices.IndexFunc(n.links, func(p *link) bool { return p.cfg.Name == l.cfg.Parent && p.cfg.VLAN == 0 })
	if i < 0 {
		return errors.New("its card is not configured")
	}
	parent, err := netlink.LinkByName(n.links[i].name)
	if err != nil {
		return fmt.Errorf("find its card: %w", err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = l.name, parent.Attrs().Index
	if err := netlink.LinkAdd(&netlink.Vlan{LinkAttrs: attrs, VlanId: l.cfg.VLAN, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}); err != nil {
		return fmt.Errorf("make the VLAN: %w", err)
	}
	return nil
}

// bringUp gives a raised link its addresses, within ctx. What keeps them lives
// as long as keep.
func (n *Net) bringUp(ctx, keep context.Context, l *link) error {
	fail := func(err error, detail string) error { return hpl.Wrap(err, "HPL14001E", l.cfg.Path, detail) }
	s := settings{addresses: l.cfg.Addresses, routes: l.cfg.Routes, nameservers: l.cfg.Nameservers, search: l.cfg.Search}
	if l.cfg.Gateway.IsValid() {
		s.routes = append([]Route{{To: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Via: l.cfg.Gateway}}, s.routes...)
	}
	if err := n.configure(l, static, s); err != nil {
		return fail(err, "the kernel refused these addresses or routes; a gateway must lie in the network of an address of the same interface")
	}
	if l.cfg.DHCP || l.cfg.ipv6() {
		waitForCarrier(ctx, l.name)
	}
	if l.cfg.DHCP {
		held, err := dhcp4{n, l}.acquire(ctx, nil)
		if err != nil {
			return hpl.Wrap(err, "HPL14002E", l.cfg.Path,
				"no usable DHCP answer in time; check the DHCP server of the network, or give addresses in network-config")
		}
		n.keepLease(keep, l, dhcp4{n, l}, held)
	}
	if !l.cfg.ipv6() {
		return nil
	}
	if err := awaitUnique(ctx, l.name); err != nil {
		return fail(err, "another station has an IPv6 address of this interface, or the link is not connected; give an address of its own")
	}
	if l.cfg.AcceptRA || l.cfg.DHCP6 {
		if err := n.hearRouters(ctx, keep, l); err != nil && ctx.Err() == nil {
			return fail(err, "the guest cannot listen for routers")
		} else if err != nil {
			return hpl.Wrap(err, "HPL14002E", l.cfg.Path,
				"no usable router advertisement in time; check the router of the network, or give IPv6 addresses and routes in the contract")
		}
	}
	if l.cfg.DHCP6 {
		held, err := dhcp6{n, l}.acquire(ctx, nil)
		if err != nil {
			return hpl.Wrap(err, "HPL14002E", l.cfg.Path,
				"no usable DHCPv6 answer in time; check the DHCPv6 server of the network, or give IPv6 addresses in the contract")
		}
		n.keepLease(keep, l, dhcp6{n, l}, held)
	}
	if err := awaitUnique(ctx, l.name); err != nil {
		return fail(err, "another station has an IPv6 address that this interface was given")
	}
	return nil
}

// waitForCarrier saves the first DHCP question from being lost. A card that
// never has a carrier fails by DHCP's own limit.
func waitForCarrier(ctx context.Context, name string) {
	for deadline := time.Now().Add(3 * time.Second); time.Now().Before(deadline) && ctx.Err() == nil; time.Sleep(10 * time.Millisecond) {
		if dev, err := netlink.LinkByName(name); err != nil || dev.Attrs().RawFlags&rawLowerUp != 0 {
			return
		}
	}
}

const rawLowerUp = 1 << 16 // IFF_LOWER_UP of linux/if.h

// down takes the card out of service; a card that is gone is down.
func (l *link) down() error {
	dev, err := netlink.LinkByName(l.name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find the card: %w", err)
	}
	if l.cfg.VLAN != 0 {
		l.addresses = nil
		return netlink.LinkDel(dev)
	}
	var errs []error
	for _, a := range l.addresses {
		errs = append(errs, netlink.AddrDel(dev, &netlink.Addr{IPNet: ipNet(a)}))
	}
	l.addresses = nil
	return errors.Join(append(errs, netlink.LinkSetDown(dev))...)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
