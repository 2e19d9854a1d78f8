package network

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
)

// pools from which a bridge's /24 is taken, in this order: where one is in use
// outside, another is likely free.
var pools = []netip.Prefix{
	netip.MustParsePrefix("172.20.0.0/16"),
	netip.MustParsePrefix("10.88.0.0/16"),
	netip.MustParsePrefix("192.168.192.0/18"),
}

// freeSubnet is the first /24 of the pools that overlaps nothing in use.
func freeSubnet(taken []netip.Prefix) (netip.Prefix, error) {
	for _, pool := range pools {
		for s := netip.PrefixFrom(pool.Addr(), 24); pool.Contains(s.Addr()); s = netip.PrefixFrom(broadcastOf(s).Next(), 24) {
			if !slices.ContainsFunc(taken, s.Overlaps) {
				return s, nil
			}
		}
	}
	return netip.Prefix{}, errors.New("no free subnet for the containers: the guest's own networks and routes cover all candidates")
}

func checkSubnet(s netip.Prefix, taken []netip.Prefix) error {
	if !s.Addr().Is4() || !usableUnicast(s.Addr()) || s.Bits() < 8 || s.Bits() > 29 {
		return errors.New("a container network's subnet must be IPv4, from /8 to /29")
	}
	if slices.ContainsFunc(taken, s.Overlaps) {
		return errors.New("a container network's subnet overlaps a network that the guest uses")
	}
	return nil
}

// takenPrefixes are the guest's addresses and routes, default routes apart.
func takenPrefixes() ([]netip.Prefix, error) {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var taken []netip.Prefix
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		if a, ok := netip.AddrFromSlice(r.Dst.IP.To4()); ok {
			if ones, _ := r.Dst.Mask.Size(); ones > 0 {
				taken = append(taken, netip.PrefixFrom(a, ones))
			}
		}
		if a, ok := netip.AddrFromSlice(r.Gw.To4()); ok {
			taken = append(taken, hostPrefix(a))
		}
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, addr := range addrs {
		if a, ok := netip.AddrFromSlice(addr.IP.To4()); ok {
			ones, _ := addr.Mask.Size()
			taken = append(taken, netip.PrefixFrom(a, ones))
		}
	}
	return taken, nil
}
