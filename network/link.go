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

// link is a card with its configuration and what became of it. Net.mu guards
// the lower half.
type link struct {
	card
	cfg        LinkConfig
	configured bool // by network-config
	index      int  // place in the document, for the JSON path
	metric     int  // of its default route: the first link wins

	addresses   []netip.Prefix
	nameservers []netip.Addr
	search      []string
}

// path is where a user looks for this link, without the name it chose; empty
// where there is no network-config to point at.
func (l *link) path() string {
	if !l.configured {
		return ""
	}
	return fmt.Sprintf("/network/ethernets/#%d", l.index+1)
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
	for i, l := range cfg.Links {
		j := slices.IndexFunc(cards, func(c card) bool { return c.target == l.Name })
		if j < 0 {
			return nil, hpl.New("HPL14001E", fmt.Sprintf("/network/ethernets/#%d", i+1),
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

// bringUp renames and raises one card and gives it its addresses, within ctx.
// The keeper of its lease lives as long as keep.
func (n *Net) bringUp(ctx, keep context.Context, l *link) error {
	fail := func(err error, detail string) error { return hpl.Wrap(err, "HPL14001E", l.path(), detail) }
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
	if err := disableIPv6(l.name); err != nil {
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
	if l.cfg.DHCP {
		waitForCarrier(ctx, l.name)
		held, err := n.acquire(ctx, l, nil)
		if err != nil {
			return hpl.Wrap(err, "HPL14002E", l.path(),
				"no usable DHCP answer in time; check the DHCP server of the network, or give addresses in network-config")
		}
		n.keepLease(keep, l, held)
		return nil
	}
	s := settings{addresses: l.cfg.Addresses, routes: l.cfg.Routes, nameservers: l.cfg.Nameservers, search: l.cfg.Search}
	if l.cfg.Gateway.IsValid() {
		s.routes = append([]Route{{To: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Via: l.cfg.Gateway}}, s.routes...)
	}
	if err := n.configure(l, s); err != nil {
		return fail(err, "the kernel refused these addresses or routes; a gateway must lie in the network of an address of the same interface")
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

// settings is what a link is given, by its configuration or by DHCP.
type settings struct {
	addresses   []netip.Prefix
	routes      []Route
	nameservers []netip.Addr
	search      []string
	mtu         int
}

// configure gives l what s says, takes what it had before, and tells the
// firewall and resolv.conf.
func (n *Net) configure(l *link, s settings) error {
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
	for _, old := range l.addresses {
		if !slices.Contains(s.addresses, old) {
			if err := netlink.AddrDel(dev, &netlink.Addr{IPNet: ipNet(old)}); err != nil {
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
		route := &netlink.Route{LinkIndex: dev.Attrs().Index, Dst: ipNet(r.To), Gw: r.Via.AsSlice(), Priority: l.metric}
		if !slices.ContainsFunc(s.addresses, func(p netip.Prefix) bool { return p.Contains(r.Via) }) {
			// A /32 with its router outside is what some clouds hand out.
			if !slices.ContainsFunc(s.addresses, func(p netip.Prefix) bool { return p.Bits() == 32 }) {
				return fmt.Errorf("route via %s: not in a network of this link", r.Via)
			}
			route.Flags = int(netlink.FLAG_ONLINK)
		}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("add a route: %w", err)
		}
	}
	l.addresses, l.nameservers, l.search = slices.Clone(s.addresses), slices.Clone(s.nameservers), slices.Clone(s.search)
	return errors.Join(n.localChanged(), n.writeResolv())
}

// localChanged tells the firewall which addresses are the guest's own.
func (n *Net) localChanged() error {
	return n.applyLocked(func(s *ruleState) {
		s.local = nil
		for _, l := range n.links {
			for _, a := range l.addresses {
				s.local = append(s.local, a.Addr())
			}
		}
	})
}

// down takes the card out of service; a card that is gone is down.
func (l *link) down() error {
	dev, err := netlink.LinkByName(l.name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find the card: %w", err)
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
