package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/mdlayher/ndp"

	"hpcr/agent/hpl"
)

func TestStaticIPv6(t *testing.T) {
	c := wire(t, "isp", "eth0", "2001:db8:1::1/64")
	n, err := up(t, Config{Links: []LinkConfig{{
		Name: "enc1", Addresses: []netip.Prefix{prefix("192.0.2.10/24"), prefix("2001:db8:1::10/64")},
		Routes:      []Route{{To: prefix("::/0"), Via: addr("2001:db8:1::1")}, {To: prefix("2001:db8:9::/48"), Via: addr("fe80::9")}},
		Nameservers: []netip.Addr{addr("2001:db8:1::53")},
	}}}, c)
	if err != nil {
		t.Fatal(err)
	}
	if out := ip(t, "-6 addr show dev enc1"); !strings.Contains(out, "2001:db8:1::10/64") || strings.Contains(out, "tentative") {
		t.Errorf("addresses:\n%s", out)
	}
	routes := ip(t, "-6 route")
	for _, want := range []string{"default via 2001:db8:1::1 dev enc1", "2001:db8:9::/48 via fe80::9 dev enc1"} {
		if !strings.Contains(routes, want) {
			t.Errorf("no %q in\n%s", want, routes)
		}
	}
	listen(t, "isp", "tcp", "[2001:db8:1::1]:80", "world")
	reaches(t, "", "tcp", "[2001:db8:1::1]:80", "world")
	// A listener of either family's is closed until its port is allowed.
	listen(t, "", "tcp", "[::]:9080", "health")
	blocked(t, "isp", "tcp", "[2001:db8:1::10]:9080")
	if out := run(t, "ip", "netns", "exec", "isp", "sh", "-c", "ping -6 -c1 -W1 2001:db8:1::10 || true"); strings.Contains(out, "1 received") {
		t.Error("the guest answers ping")
	}
	if err := n.Allow(9080); err != nil {
		t.Fatal(err)
	}
	reaches(t, "isp", "tcp", "[2001:db8:1::10]:9080", "health")
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if out := ip(t, "-6 addr show dev enc1"); strings.Contains(out, "2001:") {
		t.Errorf("after Close:\n%s", out)
	}
}

// TestRouterAndDHCPv6: one link takes an address from the router's prefix and
// one from a DHCPv6 server, and nothing else of what they say.
func TestRouterAndDHCPv6(t *testing.T) {
	c := wire(t, "isp", "eth0", "2001:db8:1::1/64")
	dnsmasq(t, "isp", "--port=0", "--enable-ra", "--dhcp-range=2001:db8:1::100,2001:db8:1::1ff,slaac,64,10m",
		"--dhcp-option=option6:dns-server,[2001:db8:1::53]", "--dhcp-option=option6:domain-search,lab.example", "--dhcp-option=option6:ntp-server,[2001:db8:1::123]")
	c.target = "enc61"
	n, err := up(t, Config{Links: []LinkConfig{{Name: "enc61", AcceptRA: true, DHCP6: true}}}, c)
	if err != nil {
		t.Fatal(err)
	}
	got := n.Addresses()
	if len(got) != 2 || got[0].Bits() != 64 || !prefix("2001:db8:1::100/120").Contains(got[1].Addr()) || got[1].Bits() != 128 {
		t.Errorf("addresses %v", got)
	}
	mac := strings.Fields(ip(t, "-br link show dev enc61"))[2]
	hw, err := net.ParseMAC(mac)
	if err != nil {
		t.Fatal(err)
	}
	if id := interfaceID(hw); len(got) > 0 && [8]byte(got[0].Addr().AsSlice()[8:]) != id {
		t.Errorf("SLAAC address %v is not of the card's %s", got[0], mac)
	}
	if routes := ip(t, "-6 route"); !strings.Contains(routes, "default via fe80::") || !strings.Contains(routes, "metric 1100") {
		t.Errorf("routes:\n%s", routes)
	}
	if diff := cmp.Diff([]netip.Addr{addr("2001:db8:1::53")}, n.Nameservers(), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"lab.example"}, n.Search()); diff != "" {
		t.Error(diff)
	}
	listen(t, "isp", "tcp", "[2001:db8:1::1]:80", "world")
	reaches(t, "", "tcp", "[2001:db8:1::1]:80", "world")

	d := dhcp6{n, n.links[0]}
	h, err := d.acquire(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	renewed, err := d.renew(t.Context(), h)
	if err != nil {
		t.Fatalf("renew: %v", err)
	}
	if renewed.time != 10*time.Minute {
		t.Errorf("lease time %v", renewed.time)
	}
	if diff := cmp.Diff(got, n.Addresses(), cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Error(diff)
	}
}

// TestKernelHearsNoRouter: an advertisement changes nothing on a link that does
// not ask for one, nor does IPv6 exist on a link that does not use it.
func TestKernelHearsNoRouter(t *testing.T) {
	for name, tt := range map[string]struct {
		link LinkConfig
		want int // addresses of IPv6
	}{
		"IPv4 only":   {LinkConfig{Name: "enc1", Addresses: []netip.Prefix{prefix("192.0.2.10/24")}}, 0},
		"static IPv6": {LinkConfig{Name: "enc1", Addresses: []netip.Prefix{prefix("2001:db8:1::10/64")}}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			c := wire(t, "isp", "eth0", "2001:db8:1::1/64")
			dnsmasq(t, "isp", "--port=0", "--enable-ra", "--ra-param=out,4,60", "--dhcp-range=2001:db8:1::,ra-only,64,10m")
			if _, err := up(t, Config{Links: []LinkConfig{tt.link}}, c); err != nil {
				t.Fatal(err)
			}
			time.Sleep(5 * time.Second) // one advertisement at least
			if got := strings.Count(ip(t, "-6 addr show dev enc1"), "inet6 "); got != tt.want {
				t.Errorf("%d addresses of IPv6, want %d:\n%s", got, tt.want, ip(t, "-6 addr show dev enc1"))
			}
			if routes := ip(t, "-6 route show default"); routes != "" {
				t.Errorf("default route: %s", routes)
			}
		})
	}
}

func TestIPv6Refusals(t *testing.T) {
	tests := map[string]struct {
		link LinkConfig
		peer string
		code hpl.Code
		want string
	}{
		"address of somebody else": {LinkConfig{Addresses: []netip.Prefix{prefix("2001:db8:1::1/64")}}, "2001:db8:1::1/64", "HPL14001E", "another station"},
		"no router":                {LinkConfig{AcceptRA: true}, "2001:db8:1::1/64", "HPL14002E", "no usable router advertisement"},
		"gateway of no network":    {LinkConfig{Addresses: []netip.Prefix{prefix("2001:db8:1::5/64")}, Routes: []Route{{prefix("::/0"), addr("2001:db8:2::1")}}}, "2001:db8:1::1/64", "HPL14001E", "the kernel refused these addresses or routes"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := wire(t, "isp", "eth0", tt.peer)
			n, err := start(testLog(t))
			if err != nil {
				t.Fatal(err)
			}
			c.target = "enc63"
			tt.link.Name, tt.link.Path = "enc63", "/env/x-hpcr/network/ethernets/#1"
			err = n.up(t.Context(), Config{Links: []LinkConfig{tt.link}}, []card{c}, 5*time.Second)
			if e := hpl.From(err); e.Code != tt.code || e.Path != tt.link.Path || !strings.Contains(e.Detail, tt.want) {
				t.Errorf("got %v", err)
			}
			if err := n.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestAdvertisementFlood: a hundred thousand routers and prefixes from the
// wire leave one router, and four addresses at most.
func TestAdvertisementFlood(t *testing.T) {
	c := wire(t, "isp", "eth0", "2001:db8:1::1/64")
	dnsmasq(t, "isp", "--port=0", "--enable-ra", "--dhcp-range=2001:db8:1::,ra-only,64,10m")
	c.target = "enc62"
	n, err := up(t, Config{Links: []LinkConfig{{Name: "enc62", AcceptRA: true}}}, c)
	if err != nil {
		t.Fatal(err)
	}
	router := ip(t, "-6 route show default")
	err = inNS(t, "isp", func() error {
		ifi, err := net.InterfaceByName("out")
		if err != nil {
			return err
		}
		fd, err := syscall.Socket(syscall.AF_PACKET, syscall.SOCK_RAW, 0)
		if err != nil {
			return err
		}
		defer syscall.Close(fd)
		to := &syscall.SockaddrLinklayer{Ifindex: ifi.Index, Protocol: 0xdd86}
		for i := range 100_000 {
			if err := syscall.Sendto(fd, forgedAdvertisement(t, i), 0, to); err != nil && err != syscall.ENOBUFS {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Second)
	if now := ip(t, "-6 route show default"); now != router || strings.Count(now, "default") != 1 {
		t.Errorf("routers before\n%safter\n%s", router, now)
	}
	if got := n.Addresses(); len(got) > maxPrefixes {
		t.Errorf("%d addresses: %v", len(got), got)
	}
	listen(t, "isp", "tcp", "[2001:db8:1::1]:80", "world")
	waitFor(t, "the way out", func() bool {
		got, err := ask(t, "", "tcp", "[2001:db8:1::1]:80")
		return err == nil && strings.HasPrefix(got, "world")
	})
}

// forgedAdvertisement is an Ethernet frame as thc-ipv6's flood_router makes
// them: each of another router with another prefix.
func forgedAdvertisement(t *testing.T, i int) []byte {
	from := netip.MustParseAddr(fmt.Sprintf("fe80::dead:%x:%x", i>>16, i&0xffff))
	to := netip.MustParseAddr("ff02::1")
	body, err := ndp.MarshalMessageChecksum(&ndp.RouterAdvertisement{RouterLifetime: time.Hour, Options: []ndp.Option{
		&ndp.PrefixInformation{PrefixLength: 64, OnLink: true, AutonomousAddressConfiguration: true, ValidLifetime: time.Hour, PreferredLifetime: time.Hour,
			Prefix: netip.MustParseAddr(fmt.Sprintf("2001:db8:%x:%x::", 0x1000+i>>16, i&0xffff))},
	}}, from, to)
	if err != nil {
		t.Fatal(err)
	}
	frame := append([]byte{0x33, 0x33, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9, 0x86, 0xdd}, 0x60, 0, 0, 0, byte(len(body)>>8), byte(len(body)), protoICMPv6, 255)
	frame = append(append(frame, from.AsSlice()...), to.AsSlice()...)
	return append(frame, body...)
}

// TestCablePulled: the loss and the return of a link are told, and the lease is
// asked for at once when it is back.
func TestCablePulled(t *testing.T) {
	c := wire(t, "isp", "eth0", "192.0.2.1/24")
	n, err := start(testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	changes := make(chan Change, 64)
	t.Run("first network", func(t *testing.T) {
		dnsmasq(t, "isp", "--port=0", "--dhcp-range=192.0.2.50,192.0.2.60,255.255.255.0,12h")
		cfg := Config{Links: []LinkConfig{{Name: "enc1", DHCP: true}}, Notify: func(c Change) { changes <- c }}
		if err := errors.Join(n.up(t.Context(), cfg, []card{c}, 10*time.Second), n.watchLinks()); err != nil {
			t.Fatal(err)
		}
	})
	next := func() string {
		select {
		case c := <-changes:
			return c.Link + " " + c.State
		case <-time.After(10 * time.Second):
			return "nothing"
		}
	}
	ip(t, "-n isp link set out down")
	if got := next(); got != "enc1 down" {
		t.Errorf("cable pulled: %s", got)
	}
	if len(n.Addresses()) != 1 {
		t.Error("the address is gone with the cable")
	}
	// Behind the cable is another network now.
	ip(t, "-n isp addr flush dev out")
	ip(t, "-n isp addr add 198.51.100.1/24 dev out")
	dnsmasq(t, "isp", "--port=0", "--dhcp-range=198.51.100.50,198.51.100.60,255.255.255.0,12h")
	ip(t, "-n isp link set out up")
	if got := next(); got != "enc1 up" {
		t.Errorf("cable back: %s", got)
	}
	waitFor(t, "an address of the other network", func() bool {
		a := n.Addresses()
		return len(a) == 1 && prefix("198.51.100.0/24").Contains(a[0].Addr())
	})
	if got := next(); got != "enc1 addresses" {
		t.Errorf("after the new lease: %s", got)
	}
	for range 50 { // a host that shakes the cable
		ip(t, "-n isp link set out down")
		ip(t, "-n isp link set out up")
	}
	time.Sleep(2 * time.Second)
	if len(changes) > 12 {
		t.Errorf("%d changes told within seconds", len(changes))
	}
}

func TestRouterView(t *testing.T) {
	now := time.Now()
	ra := func(life time.Duration, o ...ndp.Option) *ndp.RouterAdvertisement {
		return &ndp.RouterAdvertisement{RouterLifetime: life, Options: o}
	}
	info := func(p string, valid time.Duration) *ndp.PrefixInformation {
		return &ndp.PrefixInformation{PrefixLength: uint8(prefix(p).Bits()), OnLink: true, AutonomousAddressConfiguration: true, ValidLifetime: valid, PreferredLifetime: valid, Prefix: prefix(p).Addr()}
	}
	lazy := info("2001:db8:a::/64", time.Hour)
	lazy.AutonomousAddressConfiguration = false
	type word struct {
		from string
		ra   *ndp.RouterAdvertisement
	}
	via := func(s string) []Route { return []Route{{prefix("::/0"), addr(s)}} }
	a := func(s ...string) (out []netip.Prefix) {
		for _, p := range s {
			out = append(out, prefix(p))
		}
		return out
	}
	many := []ndp.Option{}
	for i := range 20 {
		many = append(many, info(fmt.Sprintf("2001:db8:%x::/64", i+1), time.Hour))
	}
	tests := map[string]struct {
		said  []word
		after time.Duration
		want  settings
	}{
		"a router and its prefix":              {[]word{{"fe80::1", ra(time.Hour, info("2001:db8::/64", time.Hour))}}, 0, settings{routes: via("fe80::1"), addresses: a("2001:db8::1/64")}},
		"a second router is not heard":         {[]word{{"fe80::1", ra(time.Hour)}, {"fe80::2", ra(time.Hour, info("2001:db8::/64", time.Hour))}}, 0, settings{routes: via("fe80::1")}},
		"the router's time is over":            {[]word{{"fe80::1", ra(time.Minute, info("2001:db8::/64", time.Hour))}}, 2 * time.Minute, settings{addresses: a("2001:db8::1/64")}},
		"the router leaves":                    {[]word{{"fe80::1", ra(time.Hour)}, {"fe80::1", ra(0)}}, 0, settings{}},
		"another router after it":              {[]word{{"fe80::1", ra(time.Hour)}, {"fe80::1", ra(0)}, {"fe80::2", ra(time.Hour)}}, 0, settings{routes: via("fe80::2")}},
		"a router with a global address":       {[]word{{"2001:db8::9", ra(time.Hour)}}, 0, settings{}},
		"twenty prefixes":                      {[]word{{"fe80::1", ra(time.Hour, many...)}}, 0, settings{routes: via("fe80::1"), addresses: a("2001:db8:1::1/64", "2001:db8:2::1/64", "2001:db8:3::1/64", "2001:db8:4::1/64")}},
		"prefixes that are none for us":        {[]word{{"fe80::1", ra(time.Hour, lazy, info("2001:db8::/48", time.Hour), info("fe80::/64", time.Hour), info("ff05::/64", time.Hour), info("2001:db8:b::/64", 0))}}, 0, settings{routes: via("fe80::1")}},
		"an address ends with its prefix":      {[]word{{"fe80::1", ra(3*time.Hour, info("2001:db8::/64", time.Hour))}}, 2 * time.Hour, settings{routes: via("fe80::1")}},
		"nobody ends an address at once":       {[]word{{"fe80::1", ra(time.Hour, info("2001:db8::/64", 12*time.Hour))}, {"fe80::1", ra(time.Hour, info("2001:db8::/64", time.Second))}}, time.Minute, settings{routes: via("fe80::1"), addresses: a("2001:db8::1/64")}},
		"but within two hours":                 {[]word{{"fe80::1", ra(9000*time.Second, info("2001:db8::/64", 12*time.Hour))}, {"fe80::1", ra(9000*time.Second, info("2001:db8::/64", time.Second))}}, 121 * time.Minute, settings{routes: via("fe80::1")}},
		"an MTU, resolvers and domains":        {[]word{{"fe80::1", ra(time.Hour, &ndp.MTU{MTU: 1400}, &ndp.RecursiveDNSServer{Lifetime: time.Hour, Servers: []netip.Addr{addr("2001:db8::53"), addr("::1"), addr("fe80::53")}}, &ndp.DNSSearchList{Lifetime: time.Hour, DomainNames: []string{"lab.example", "a b"}})}}, 0, settings{routes: via("fe80::1"), mtu: 1400, nameservers: []netip.Addr{addr("2001:db8::53")}, search: []string{"lab.example"}}},
		"an MTU that is too small, or a giant": {[]word{{"fe80::1", ra(time.Hour, &ndp.MTU{MTU: 100}, &ndp.MTU{MTU: 1 << 20})}}, 0, settings{routes: via("fe80::1")}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			v := &routerView{slaac: true, own: [8]byte{7: 1}}
			for _, w := range tt.said {
				v.hear(w.ra, addr(w.from), now)
			}
			got, _ := v.settings(now.Add(tt.after))
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(settings{}), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

var client6 = &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}}

func reply6(mods ...dhcpv6.Modifier) *dhcpv6.Message {
	m := &dhcpv6.Message{MessageType: dhcpv6.MessageTypeReply}
	for _, mod := range append([]dhcpv6.Modifier{dhcpv6.WithClientID(client6), dhcpv6.WithServerID(&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: net.HardwareAddr{2, 0, 0, 0, 0, 9}})}, mods...) {
		mod(m)
	}
	return m
}

func leased6(s string, valid time.Duration) dhcpv6.OptIAAddress {
	return dhcpv6.OptIAAddress{IPv6Addr: net.ParseIP(s), PreferredLifetime: valid, ValidLifetime: valid}
}

func TestLease6Settings(t *testing.T) {
	good := []netip.Prefix{prefix("2001:db8::50/128")}
	address := dhcpv6.WithIANA(leased6("2001:db8::50", time.Hour))
	tests := map[string]struct {
		m    *dhcpv6.Message
		want settings
		life time.Duration
		err  string
	}{
		"plain":                      {reply6(address, dhcpv6.WithDNS(net.ParseIP("2001:db8::53")), dhcpv6.WithDomainSearchList("lab.example")), settings{addresses: good, nameservers: []netip.Addr{addr("2001:db8::53")}, search: []string{"lab.example"}}, time.Hour, ""},
		"one of two addresses":       {reply6(dhcpv6.WithIANA(leased6("fe80::1", time.Hour), leased6("2001:db8::50", time.Hour))), settings{addresses: good}, time.Hour, ""},
		"a lease of a second":        {reply6(dhcpv6.WithIANA(leased6("2001:db8::50", time.Second))), settings{addresses: good}, time.Minute, ""},
		"a lease for ever":           {reply6(dhcpv6.WithIANA(leased6("2001:db8::50", 0xffffffff*time.Second))), settings{addresses: good}, 24 * time.Hour, ""},
		"resolvers that are none":    {reply6(address, dhcpv6.WithDNS(net.ParseIP("::1"), net.ParseIP("ff02::fb"), net.ParseIP("2001:db8::50"), net.ParseIP("fe80::53"))), settings{addresses: good}, time.Hour, ""},
		"no address":                 {reply6(), settings{}, 0, "no address"},
		"an empty association":       {reply6(dhcpv6.WithIANA()), settings{}, 0, "no usable address"},
		"a lease that is over":       {reply6(dhcpv6.WithIANA(leased6("2001:db8::50", 0))), settings{}, 0, "no usable address"},
		"a multicast address":        {reply6(dhcpv6.WithIANA(leased6("ff05::1", time.Hour))), settings{}, 0, "no usable address"},
		"an IPv4 address":            {reply6(dhcpv6.WithIANA(leased6("::ffff:192.0.2.1", time.Hour))), settings{}, 0, "no usable address"},
		"the server has none":        {reply6(address, dhcpv6.WithOption(&dhcpv6.OptStatusCode{StatusCode: iana.StatusNoAddrsAvail})), settings{}, 0, "refuses"},
		"an answer to somebody else": {reply6(address, dhcpv6.WithClientID(&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: net.HardwareAddr{2, 0, 0, 0, 0, 2}})), settings{}, 0, "another client's"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, life, err := lease6Settings(tt.m, client6)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(settings{}), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
			if life != tt.life {
				t.Errorf("lease %v, want %v", life, tt.life)
			}
		})
	}
}

// bounded is what every fuzzed source must give.
func bounded(t *testing.T, s settings) {
	t.Helper()
	if len(s.addresses) > maxPrefixes || len(s.routes) > 1 || len(s.nameservers) > maxNameservers || len(s.search) > maxSearch || len(s.timeservers) > maxTimeservers {
		t.Errorf("out of bounds: %+v", s)
	}
	if s.mtu != 0 && (s.mtu < minMTU || s.mtu > maxMTU) {
		t.Errorf("MTU %d", s.mtu)
	}
	for _, p := range s.addresses {
		if !usableIPv6(p.Addr()) {
			t.Errorf("address %v", p)
		}
	}
	for line := range strings.Lines(string(resolvConf(s.nameservers, s.search, "timeout:2"))) {
		word, _, _ := strings.Cut(line, " ")
		if word != "nameserver" && word != "search" && word != "options" || strings.ContainsFunc(strings.TrimSuffix(line, "\n"), func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Errorf("resolv.conf line %q", line)
		}
	}
}

// FuzzLease6: whatever a server sends, what is accepted lies within the bounds.
func FuzzLease6(f *testing.F) {
	f.Add(reply6(dhcpv6.WithIANA(leased6("2001:db8::50", time.Hour)), dhcpv6.WithDNS(net.ParseIP("2001:db8::53")), dhcpv6.WithDomainSearchList("lab.example")).ToBytes())
	f.Add([]byte{7, 0, 0, 1, 0, 1, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := dhcpv6.MessageFromBytes(data)
		if err != nil {
			return
		}
		s, life, err := lease6Settings(m, client6)
		if err != nil {
			return
		}
		bounded(t, s)
		if len(s.addresses) != 1 || life < minLease || life > maxLease {
			t.Errorf("lease %v %v", s.addresses, life)
		}
		leasedAddresses(m)
	})
}

// FuzzAdvertisement: whatever arrives, twice, what is accepted lies within the
// bounds and ends.
func FuzzAdvertisement(f *testing.F) {
	seed, err := ndp.MarshalMessage(&ndp.RouterAdvertisement{RouterLifetime: time.Hour, Options: []ndp.Option{
		&ndp.PrefixInformation{PrefixLength: 64, AutonomousAddressConfiguration: true, ValidLifetime: time.Hour, PreferredLifetime: time.Hour, Prefix: addr("2001:db8::")},
		&ndp.MTU{MTU: 1400}, &ndp.RecursiveDNSServer{Lifetime: time.Hour, Servers: []netip.Addr{addr("2001:db8::53")}},
	}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed, seed[:16])
	f.Fuzz(func(t *testing.T, one, two []byte) {
		now := time.Now()
		v := &routerView{slaac: true}
		for i, b := range [][]byte{one, two} {
			if ra := advertisement(b); ra != nil {
				v.hear(ra, addr("fe80::1"), now.Add(time.Duration(i)*time.Minute))
			}
		}
		s, next := v.settings(now.Add(time.Minute))
		bounded(t, s)
		if next.After(now.Add(maxPrefixLife + 2*time.Minute)) {
			t.Errorf("next look at %v", next)
		}
		if s, _ := v.settings(now.Add(maxPrefixLife + time.Hour)); len(s.addresses) > 0 || len(s.routes) > 0 || len(s.nameservers) > 0 {
			t.Errorf("kept for ever: %+v", s)
		}
	})
}
