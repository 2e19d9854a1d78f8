package contract

import (
	"net/netip"
	"regexp"
	"strconv"

	"hpcr/agent/hpl"
)

// The two files beside the contract that have an effect: meta-data's host
// name, and network-config. Both are the host's words.

// maxHostname is Linux's bound, below RFC 1123's 253.
const maxHostname = 64

func (r *run) metaData() {
	n, yerr := parseYAML("meta-data", r.files.MetaData)
	place := root("meta-data", "meta-data", n)
	if yerr != nil {
		r.failYAML(badContract, place, yerr)
		return
	}
	if n == nil {
		return
	}
	if n.kind != mapNode {
		r.fail(badContract, place, "meta-data is not a mapping", "write local-hostname: NAME, or leave the file empty")
		return
	}
	h := place.get("local-hostname")
	if !h.present() || h.n.tag == "!!null" {
		return
	}
	if _, err := netip.ParseAddr(h.n.text); h.n.kind != scalarNode || !validName(h.n.text) || len(h.n.text) > maxHostname || err == nil {
		r.fail(badContract, h, "this is not a host name of RFC 1123", "use at most 64 letters, digits, dashes and dots; no dash at either end of a part")
		return
	}
	r.plan.Hostname = h.n.text
}

const networkCode hpl.Code = "HPL14001E"

var linkName = regexp.MustCompile(`^enc[0-9]+$`)

const (
	maxLinks  = 64
	maxPerKey = 64
)

// netReader reads the keys that network-config and env.x-hpcr.network share.
type netReader struct {
	*run
	code hpl.Code
	ipv6 bool // IBM's file knows IPv4 only
}

func (r *run) network() {
	if r.files.NetworkConfig == nil {
		return
	}
	n, yerr := parseYAML("network-config", r.files.NetworkConfig)
	place := root("network-config", "network-config", n)
	if yerr != nil {
		r.failYAML(networkCode, place, yerr)
		return
	}
	if n == nil { // an empty file says nothing: DHCP
		return
	}
	nr := netReader{r, networkCode, false}
	if !nr.kind(place, mapNode) {
		return
	}
	nr.only(place, "network")
	net := place.get("network")
	if !nr.kind(net, mapNode) {
		return
	}
	nr.only(net, "version", "ethernets")
	if v := net.get("version"); v.present() && (v.n.kind != scalarNode || v.n.text != "2") {
		r.fail(networkCode, v, "this version is not known", "write version: 2")
	}
	e := net.get("ethernets")
	if !nr.kind(e, mapNode) {
		return
	}
	if len(e.n.keys) == 0 || len(e.n.keys) > maxLinks {
		r.fail(networkCode, e, "there must be 1 to 64 interfaces", "name each as enc1, enc2 and so on")
		return
	}
	cfg := &Network{}
	for i, k := range e.n.keys {
		if !linkName.MatchString(k.text) || len(k.text) > 15 {
			r.fail(networkCode, e.key(i), "this is not the name of an interface", "write enc and the device number: enc1 for 0.0.0001")
		}
		cfg.Links = append(cfg.Links, nr.link(k.text, e.entry(i)))
	}
	r.plan.Network = cfg
}

func (r netReader) kind(a at, k nodeKind) bool {
	if a.n != nil && a.n.kind == k {
		return true
	}
	what := map[nodeKind]string{scalarNode: "a single value", mapNode: "a mapping", listNode: "a list"}[k]
	r.fail(r.code, a, "here must be "+what, "see the example in the manual")
	return false
}

func (r netReader) only(a at, known ...string) {
	for i, k := range a.n.keys {
		if !contains(known, k.text) {
			r.fail(r.code, a.key(i), "this key does not belong here", "remove it or correct its name; "+listing(known))
		}
	}
}

func (r netReader) link(name string, a at) Link {
	l := Link{Name: name}
	if !r.kind(a, mapNode) {
		return l
	}
	r.only(a, "dhcp4", "mtu", "addresses", "gateway4", "routes", "nameservers")
	d := a.get("dhcp4")
	if !d.present() || setBool(&l.DHCP, d.n) != nil {
		r.fail(r.code, d, "dhcp4 must say true or false", "write dhcp4: true, or dhcp4: false with addresses")
		return l
	}
	if m := a.get("mtu"); m.present() {
		if err := setInt(&l.MTU, m.n, 68, 65535); err != nil {
			r.failCause(err, r.code, m, "this is not an MTU", "give a whole number from 68 to 65535")
		}
	}
	if l.DHCP {
		for _, k := range []string{"addresses", "gateway4", "routes", "nameservers"} {
			if v := a.get(k); v.present() {
				r.fail(r.code, v, "dhcp4 is true, so this may not stand beside it", "remove it, or set dhcp4 to false")
			}
		}
		return l
	}
	if v := a.get("addresses"); !v.present() || len(v.vals()) == 0 {
		r.fail(r.code, v, "dhcp4 is false, so addresses are needed", "add addresses, like [192.0.2.10/24]")
	} else {
		l.Addresses = each(r, v, r.word("address with its prefix length"), r.prefix)
	}
	if v := a.get("gateway4"); v.present() {
		l.Gateway, _ = one(r, v, "an IPv4 address", ipv4)
	}
	r.routes(&l, a.get("routes"))
	r.nameservers(&l, a.get("nameservers"))
	return l
}

func (r netReader) routes(l *Link, a at) {
	if !a.present() || !r.kind(a, listNode) || !r.bounded(a) {
		return
	}
	for i := range a.n.vals {
		e := a.item(i)
		if !r.kind(e, mapNode) {
			continue
		}
		r.only(e, "to", "via")
		via, ok2 := one(r, e.get("via"), r.word("address"), r.gateway)
		to, ok1 := one(r, e.get("to"), `"default" or `+r.word("network")+" of the family of via", func(s string) (netip.Prefix, bool) {
			if s == "default" && via.Is6() {
				return netip.PrefixFrom(netip.IPv6Unspecified(), 0), true
			}
			if s == "default" {
				return netip.PrefixFrom(netip.IPv4Unspecified(), 0), true
			}
			p, err := netip.ParsePrefix(s)
			if ip, ok := r.address(s); ok {
				p, err = netip.PrefixFrom(ip, ip.BitLen()), nil
			}
			return p.Masked(), err == nil && !p.Addr().Is4In6() && (!ok2 || p.Addr().Is4() == via.Is4()) && (r.ipv6 || p.Addr().Is4())
		})
		if ok1 && ok2 {
			l.Routes = append(l.Routes, Route{To: to, Via: via})
		}
	}
}

func (r netReader) nameservers(l *Link, a at) {
	if !a.present() || !r.kind(a, mapNode) {
		return
	}
	r.only(a, "addresses", "search")
	if v := a.get("addresses"); !v.present() || len(v.vals()) == 0 {
		r.fail(r.code, v, "nameservers need addresses", "add addresses, like [192.0.2.53]")
	} else {
		l.Nameservers = each(r, v, r.word("address"), r.address)
	}
	if v := a.get("search"); v.present() {
		l.Search = each(r, v, "a domain name", func(s string) (string, bool) { return s, validName(s) })
	}
}

func ipv4(s string) (netip.Addr, bool) {
	ip, err := netip.ParseAddr(s)
	return ip, err == nil && ip.Is4()
}

// word is what an address is called where only IPv4 is known, and elsewhere.
func (r netReader) word(what string) string {
	if r.ipv6 {
		return "an IPv4 or IPv6 " + what
	}
	return "an IPv4 " + what
}

// address: of IPv6 those that mean the same on every link.
func (r netReader) address(s string) (netip.Addr, bool) {
	if ip, ok := ipv4(s); ok || !r.ipv6 {
		return ip, ok
	}
	ip, err := netip.ParseAddr(s)
	return ip, err == nil && ip.Zone() == "" && !ip.Is4In6() && ip.IsGlobalUnicast()
}

// gateway: IPv6 routers are known by their link-local addresses too.
func (r netReader) gateway(s string) (netip.Addr, bool) {
	if ip, err := netip.ParseAddr(s); r.ipv6 && err == nil && ip.Is6() && ip.Zone() == "" && ip.IsLinkLocalUnicast() {
		return ip, true
	}
	return r.address(s)
}

func (r netReader) prefix(s string) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Bits() == 0 {
		return p, false
	}
	_, ok := r.address(p.Addr().String())
	return p, ok
}

func (r netReader) bounded(a at) bool {
	if len(a.n.vals) <= maxPerKey {
		return true
	}
	r.fail(r.code, a, "there are more than "+strconv.Itoa(maxPerKey)+" entries", "keep the ones that the guest needs")
	return false
}

// one reads a scalar by a rule.
func one[T any](r netReader, a at, what string, parse func(string) (T, bool)) (T, bool) {
	if a.n != nil && a.n.kind == scalarNode {
		if v, ok := parse(a.n.text); ok {
			return v, true
		}
	}
	r.fail(r.code, a, "this is not "+what, "correct it")
	var none T
	return none, false
}

// each reads a list of scalars by a rule.
func each[T any](r netReader, a at, what string, parse func(string) (T, bool)) []T {
	if !r.kind(a, listNode) || !r.bounded(a) {
		return nil
	}
	var out []T
	for i := range a.n.vals {
		if v, ok := one(r, a.item(i), what, parse); ok {
			out = append(out, v)
		}
	}
	return out
}
