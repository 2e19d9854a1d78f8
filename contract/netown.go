package contract

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
)

// env.x-hpcr.network is what IBM's network-config cannot say: IPv6 and VLANs.
// It is the deployer's word, where network-config is the host's; so there is
// one or the other, never both.

var vlanName = regexp.MustCompile(`^vlan[0-9]{1,4}$`)

// minMTU6 is what every link must carry for IPv6 (RFC 8200 section 5).
const minMTU6 = 1280

// ownNetwork reads env.x-hpcr.network. The keys are netplan's.
func (r *run) ownNetwork(a at) {
	if !a.present() {
		return
	}
	nr := netReader{r, schema, true}
	if !nr.kind(a, mapNode) {
		return
	}
	if r.plan.Network != nil {
		r.fail(schema, a, "the cidata disk has a network-config too, and it would be the host's word against the contract's", "remove network-config from the cidata disk, or x-hpcr.network from env")
	}
	nr.only(a, "ethernets", "vlans")
	cards, vlans := a.get("ethernets"), a.get("vlans")
	if !nr.kind(cards, mapNode) || vlans.present() && !nr.kind(vlans, mapNode) {
		return
	}
	if n := len(cards.n.keys) + len(vlans.keys()); len(cards.n.keys) == 0 || n > maxLinks {
		r.fail(schema, cards, "there must be 1 to 64 interfaces", "name each as enc1, enc2 and so on")
		return
	}
	cfg := &Network{FromContract: true}
	for i, k := range cards.n.keys {
		if !linkName.MatchString(k.text) || len(k.text) > 15 {
			r.fail(schema, cards.key(i), "this is not the name of an interface", "write enc and the device number: enc1 for 0.0.0001")
		}
		l := nr.ownLink(k.text, cards.entry(i))
		carries := slices.ContainsFunc(vlans.keys(), func(v *node) bool { return vlans.get(v.text).get("link").text() == k.text })
		if !carries {
			nr.addressed(l, cards.entry(i))
		}
		cfg.Links = append(cfg.Links, l)
	}
	tags := map[string]bool{}
	for i, k := range vlans.keys() {
		v := vlans.entry(i)
		if !vlanName.MatchString(k.text) {
			r.fail(schema, vlans.key(i), "this is not the name of a VLAN", "write vlan and a number: vlan100")
		}
		l := nr.ownLink(k.text, v, "id", "link")
		nr.addressed(l, v)
		if id := v.get("id"); !id.present() || setInt(&l.VLAN, id.n, 1, 4094) != nil {
			r.fail(schema, id, "this is not the number of a VLAN", "give a whole number from 1 to 4094")
		}
		l.Parent = v.get("link").text()
		if !slices.ContainsFunc(cards.n.keys, func(c *node) bool { return c.text == l.Parent }) {
			r.fail(schema, v.get("link"), "the VLAN has no such card below it", "name one of ethernets; a card that only carries VLANs is written as enc1: {}")
		}
		tag := fmt.Sprint(l.Parent, " ", l.VLAN)
		if tags[tag] {
			r.fail(schema, v.get("id"), "the card has this VLAN already", "remove one of the two")
		}
		tags[tag] = true
		cfg.Links = append(cfg.Links, l)
	}
	r.plan.Network = cfg
}

// ownLink reads what cards and VLANs have in common, and more keys that the
// caller reads.
func (r netReader) ownLink(name string, a at, more ...string) Link {
	l := Link{Name: name}
	if !r.kind(a, mapNode) {
		return l
	}
	r.only(a, append(more, "dhcp4", "dhcp6", "accept-ra", "mtu", "addresses", "routes", "nameservers")...)
	for _, k := range []struct {
		key string
		to  *bool
	}{{"dhcp4", &l.DHCP}, {"dhcp6", &l.DHCP6}, {"accept-ra", &l.AcceptRA}} {
		if v := a.get(k.key); v.present() && setBool(k.to, v.n) != nil {
			r.fail(r.code, v, k.key+" must say true or false", "write "+k.key+": true")
		}
	}
	if m := a.get("mtu"); m.present() {
		if err := setInt(&l.MTU, m.n, 68, 65535); err != nil {
			r.failCause(err, r.code, m, "this is not an MTU", "give a whole number from 68 to 65535")
		}
	}
	if v := a.get("addresses"); v.present() {
		l.Addresses = each(r, v, r.word("address with its prefix length"), r.prefix)
	}
	r.routes(&l, a.get("routes"))
	r.nameservers(&l, a.get("nameservers"))
	if l.DHCP && slices.ContainsFunc(l.Addresses, func(p netip.Prefix) bool { return p.Addr().Is4() }) {
		r.fail(r.code, a.get("addresses"), "dhcp4 is true, so no IPv4 address may stand beside it", "remove it, or dhcp4")
	}
	for i, rt := range l.Routes {
		if rt.Via.Is4() && !slices.ContainsFunc(l.Addresses, func(p netip.Prefix) bool { return p.Contains(rt.Via) }) {
			r.fail(r.code, a.get("routes").item(i), "the router of this route is in no network of the interface", "give an address of the router's network, or correct via")
		}
	}
	if l.UsesIPv6() && l.MTU != 0 && l.MTU < minMTU6 {
		r.fail(r.code, a.get("mtu"), "IPv6 needs an MTU of 1280 at least", "give a larger number, or none")
	}
	return l
}

// addressed refuses an interface that could never speak.
func (r netReader) addressed(l Link, a at) {
	if !l.DHCP && !l.DHCP6 && !l.AcceptRA && len(l.Addresses) == 0 {
		r.fail(r.code, a, "the interface has no address", "add addresses, dhcp4: true, dhcp6: true or accept-ra: true")
	}
}

// UsesIPv6 says whether the interface speaks IPv6 at all.
func (l *Link) UsesIPv6() bool {
	return l.DHCP6 || l.AcceptRA || slices.ContainsFunc(l.Addresses, func(p netip.Prefix) bool { return p.Addr().Is6() })
}

// check repeats what the agent relies on.
func (n *Network) check() error {
	if n == nil {
		return nil
	}
	if len(n.Links) < 1 || len(n.Links) > maxLinks {
		return errors.New("links")
	}
	for i, l := range n.Links {
		card := linkName.MatchString(l.Name) && len(l.Name) <= 15 && l.VLAN == 0 && l.Parent == ""
		vlan := vlanName.MatchString(l.Name) && l.VLAN > 0 && l.VLAN < 4095 &&
			slices.ContainsFunc(n.Links[:i], func(p Link) bool { return p.Name == l.Parent && p.VLAN == 0 })
		if !card && !(vlan && n.FromContract) || l.MTU < 0 || l.MTU > 65535 || l.UsesIPv6() && !n.FromContract {
			return errors.New("link")
		}
		if slices.ContainsFunc(n.Links[:i], func(p Link) bool { return p.Name == l.Name }) {
			return errors.New("link twice")
		}
		for _, a := range l.Addresses {
			if !a.IsValid() || a.Addr().Zone() != "" {
				return errors.New("address")
			}
		}
		for _, rt := range l.Routes {
			if !rt.To.IsValid() || !rt.Via.IsValid() || rt.Via.Zone() != "" || rt.To.Addr().Is4() != rt.Via.Is4() {
				return errors.New("route")
			}
		}
		for _, s := range l.Nameservers {
			if !s.IsValid() || s.Zone() != "" {
				return errors.New("name server")
			}
		}
		for _, s := range l.Search {
			if !validName(s) {
				return errors.New("search domain")
			}
		}
	}
	return nil
}
