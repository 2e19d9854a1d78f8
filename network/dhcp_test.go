package network

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/insomniacslk/dhcp/dhcpv4"
)

// dnsmasq serves DHCP, and with port != 0 DNS, in a namespace.
func dnsmasq(t *testing.T, ns string, args ...string) {
	t.Helper()
	background(t, ns, "dnsmasq", append([]string{"--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--no-resolv", "--no-hosts",
		"--interface=out", "--bind-interfaces", "--leasefile-ro", "--dhcp-authoritative", "--no-ping", "--user=root", "--group=root", "--log-facility=-"}, args...)...)
}

func TestDHCP(t *testing.T) {
	c := wire(t, "isp", "eth0", "192.0.2.1/24")
	dnsmasq(t, "isp", "--port=0", "--dhcp-range=192.0.2.50,192.0.2.60,255.255.255.0,2m", "--dhcp-option=6,192.0.2.3,198.51.100.53",
		"--dhcp-option=119,lab.example,example.com", "--dhcp-option-force=26,1400", "--dhcp-option-force=121,10.0.0.0/8,192.0.2.66", "--dhcp-option-force=12,evil", "--dhcp-option-force=42,192.0.2.66")
	n, err := up(t, Config{}, c)
	if err != nil {
		t.Fatal(err)
	}
	got := n.Addresses()
	if len(got) != 1 || !prefix("192.0.2.0/24").Contains(got[0].Addr()) || got[0].Bits() != 24 {
		t.Errorf("addresses %v", got)
	}
	if diff := cmp.Diff([]netip.Addr{addr("192.0.2.3"), addr("198.51.100.53")}, n.Nameservers(), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"lab.example", "example.com"}, n.Search()); diff != "" {
		t.Error(diff)
	}
	if out := ip(t, "link show dev enc1"); !strings.Contains(out, "mtu 1400") {
		t.Errorf("MTU of the lease not set:\n%s", out)
	}
	routes := ip(t, "route")
	if !strings.Contains(routes, "default via 192.0.2.1 dev enc1") || strings.Contains(routes, "10.0.0.0/8") {
		t.Errorf("routes:\n%s", routes)
	}
	listen(t, "isp", "tcp", "192.0.2.1:80", "world")
	reaches(t, "", "tcp", "192.0.2.1:80", "world")

	// The lease is renewed against the same server.
	l := n.links[0]
	before := n.Addresses()
	d := dhcp4{n, l}
	h, err := d.acquire(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	renewed, err := d.renew(t.Context(), h)
	if err != nil {
		t.Fatalf("renew: %v", err)
	}
	if renewed.time != 2*time.Minute {
		t.Errorf("lease time %v", renewed.time)
	}
	if diff := cmp.Diff(before, n.Addresses(), cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Error(diff)
	}
}

// TestLeaseIsOver: the server goes, the address goes with the lease, and comes
// back with the server.
func TestLeaseIsOver(t *testing.T) {
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
	t.Run("served", func(t *testing.T) {
		dnsmasq(t, "isp", "--port=0", "--dhcp-range=192.0.2.50,192.0.2.60,255.255.255.0,2m")
		if err := n.up(t.Context(), Config{}, []card{c}, 10*time.Second); err != nil {
			t.Fatal(err)
		}
	})
	l := n.links[0]
	n.keepLease(t.Context(), l, dhcp4{n, l}, &held{v4: fakeLease(t), since: time.Now(), time: 100 * time.Millisecond})
	waitFor(t, "address given up", func() bool { return len(n.Addresses()) == 0 })
	if out := ip(t, "addr show dev enc1"); strings.Contains(out, "inet ") {
		t.Errorf("address kept:\n%s", out)
	}
	dnsmasq(t, "isp", "--port=0", "--dhcp-range=192.0.2.70,192.0.2.80,255.255.255.0,2m")
	waitFor(t, "a new address", func() bool {
		a := n.Addresses()
		return len(a) == 1 && a[0].Addr().Compare(addr("192.0.2.70")) >= 0
	})
}

// TestTwoCards: without a configuration one lease is enough to go on; the other
// card is set up when its server comes.
func TestTwoCards(t *testing.T) {
	one := wire(t, "isp", "eth0", "192.0.2.1/24")
	two := wire(t, "other", "eth1", "198.51.100.1/24")
	two.target = "enc2"
	dnsmasq(t, "other", "--port=0", "--dhcp-range=198.51.100.50,198.51.100.60,255.255.255.0,2m", "--dhcp-option=6,198.51.100.1")
	begin := time.Now()
	n, err := up(t, Config{}, one, two)
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > leaseGrace+3*time.Second {
		t.Errorf("took %v", took)
	}
	if diff := cmp.Diff([]string{"enc2"}, n.Links()); diff != "" {
		t.Error(diff)
	}
	path := write(t, filepath.Join(t.TempDir(), "resolv.conf"), "")
	if err := n.WriteResolvConf(path); err != nil {
		t.Fatal(err)
	}
	dnsmasq(t, "isp", "--port=0", "--dhcp-range=192.0.2.50,192.0.2.60,255.255.255.0,2m", "--dhcp-option=6,192.0.2.1")
	waitFor(t, "the late card", func() bool { return len(n.Links()) == 2 })
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := "nameserver 192.0.2.1\nnameserver 198.51.100.1\noptions timeout:2 attempts:2\n"; string(text) != want {
		t.Errorf("resolv.conf after the second lease: %q", text)
	}
	if routes := ip(t, "route show default"); !strings.Contains(routes, "192.0.2.1 dev enc1 metric 100") || !strings.Contains(routes, "198.51.100.1 dev enc2 metric 101") {
		t.Errorf("routes:\n%s", routes)
	}
}

// ack builds an answer from options, as a server of our choice would.
func ack(yiaddr string, mods ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	m, err := dhcpv4.New(append([]dhcpv4.Modifier{
		dhcpv4.WithYourIP(net.ParseIP(yiaddr)),
		dhcpv4.WithOption(dhcpv4.OptSubnetMask(net.IPv4Mask(255, 255, 255, 0))),
	}, mods...)...)
	if err != nil {
		panic(err)
	}
	return m
}

func raw(code byte, data ...byte) dhcpv4.Modifier {
	return dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.GenericOptionCode(code), data))
}

func TestLeaseSettings(t *testing.T) {
	defaultVia := func(s string) []Route { return []Route{{To: prefix("0.0.0.0/0"), Via: addr(s)}} }
	addrs := func(s ...string) (out []netip.Addr) {
		for _, a := range s {
			out = append(out, addr(a))
		}
		return out
	}
	good := []netip.Prefix{prefix("192.0.2.50/24")}
	tests := map[string]struct {
		ack  *dhcpv4.DHCPv4
		want settings
		life time.Duration
		err  string
	}{
		"plain":                     {ack("192.0.2.50", raw(3, 192, 0, 2, 1), raw(6, 192, 0, 2, 2)), settings{addresses: good, routes: defaultVia("192.0.2.1"), nameservers: addrs("192.0.2.2")}, time.Hour, ""},
		"lease time":                {ack("192.0.2.50", raw(51, 0, 0, 2, 88)), settings{addresses: good}, 10 * time.Minute, ""},
		"lease of a second":         {ack("192.0.2.50", raw(51, 0, 0, 0, 1)), settings{addresses: good}, time.Minute, ""},
		"lease for ever":            {ack("192.0.2.50", raw(51, 255, 255, 255, 255)), settings{addresses: good}, 24 * time.Hour, ""},
		"router outside":            {ack("192.0.2.50", raw(3, 10, 0, 0, 1)), settings{addresses: good}, time.Hour, ""},
		"second router fits":        {ack("192.0.2.50", raw(3, 10, 0, 0, 1, 192, 0, 2, 9)), settings{addresses: good, routes: defaultVia("192.0.2.9")}, time.Hour, ""},
		"router is ourselves":       {ack("192.0.2.50", raw(3, 192, 0, 2, 50)), settings{addresses: good}, time.Hour, ""},
		"host route with a router":  {ack("192.0.2.50", raw(1, 255, 255, 255, 255), raw(3, 10, 0, 0, 1)), settings{addresses: []netip.Prefix{prefix("192.0.2.50/32")}, routes: defaultVia("10.0.0.1")}, time.Hour, ""},
		"resolver on the loopback":  {ack("192.0.2.50", raw(6, 127, 0, 0, 1, 192, 0, 2, 50, 224, 0, 0, 251, 9, 9, 9, 9)), settings{addresses: good, nameservers: addrs("9.9.9.9")}, time.Hour, ""},
		"four resolvers":            {ack("192.0.2.50", raw(6, 9, 9, 9, 1, 9, 9, 9, 2, 9, 9, 9, 3, 9, 9, 9, 4)), settings{addresses: good, nameservers: addrs("9.9.9.1", "9.9.9.2", "9.9.9.3")}, time.Hour, ""},
		"MTU":                       {ack("192.0.2.50", raw(26, 5, 120)), settings{addresses: good, mtu: 1400}, time.Hour, ""},
		"tiny MTU":                  {ack("192.0.2.50", raw(26, 0, 68)), settings{addresses: good}, time.Hour, ""},
		"huge MTU":                  {ack("192.0.2.50", raw(26, 255, 255)), settings{addresses: good}, time.Hour, ""},
		"domain":                    {ack("192.0.2.50", raw(15, []byte("lab.example.")...)), settings{addresses: good, search: []string{"lab.example"}}, time.Hour, ""},
		"domain with a line feed":   {ack("192.0.2.50", raw(15, []byte("a.b\nnameserver 6.6.6.6")...)), settings{addresses: good, search: []string{"a.b", "nameserver", "6.6.6.6"}}, time.Hour, ""},
		"domain with a control":     {ack("192.0.2.50", raw(15, []byte("a\x1b[2Jb")...)), settings{addresses: good}, time.Hour, ""},
		"no address":                {ack("0.0.0.0"), settings{}, 0, "no usable address"},
		"multicast address":         {ack("224.0.0.5"), settings{}, 0, "no usable address"},
		"loopback address":          {ack("127.0.0.2"), settings{}, 0, "no usable address"},
		"address is the network":    {ack("192.0.2.0"), settings{}, 0, "of the network"},
		"address is the broadcast":  {ack("192.0.2.255"), settings{}, 0, "of everybody"},
		"mask of the whole world":   {ack("192.0.2.50", raw(1, 0, 0, 0, 0)), settings{}, 0, "mask"},
		"mask with a hole":          {ack("192.0.2.50", raw(1, 255, 0, 255, 0)), settings{}, 0, "mask"},
		"mask of three bytes":       {ack("192.0.2.50", raw(1, 255, 255, 255)), settings{}, 0, "mask"},
		"classless routes are void": {ack("192.0.2.50", raw(121, 8, 10, 192, 0, 2, 66)), settings{addresses: good}, time.Hour, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, life, err := leaseSettings(tt.ack)
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

// FuzzLease: whatever a server sends, what is accepted lies within the bounds,
// and resolv.conf made of it has only lines of known words.
func FuzzLease(f *testing.F) {
	f.Add(ack("192.0.2.50", raw(3, 192, 0, 2, 1), raw(6, 192, 0, 2, 2), raw(15, []byte("x.example")...), raw(26, 5, 120)).ToBytes())
	f.Add(ack("192.0.2.50", raw(119, 3, 'l', 'a', 'b', 0), raw(51, 0, 0, 0, 1)).ToBytes())
	f.Add([]byte{2, 1, 6, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := dhcpv4.FromBytes(data)
		if err != nil {
			return
		}
		s, life, err := leaseSettings(m)
		if err != nil {
			if s.addresses != nil {
				t.Error("an error with an address")
			}
			return
		}
		if len(s.addresses) != 1 || !usableUnicast(s.addresses[0].Addr()) || s.addresses[0].Bits() < 8 {
			t.Errorf("address %v", s.addresses)
		}
		if len(s.routes) > 1 || len(s.nameservers) > maxNameservers || len(s.search) > maxSearch || life < minLease || life > maxLease {
			t.Errorf("out of bounds: %+v %v", s, life)
		}
		if s.mtu != 0 && (s.mtu < minMTU || s.mtu > maxMTU) {
			t.Errorf("MTU %d", s.mtu)
		}
		for line := range strings.Lines(string(resolvConf(s.nameservers, s.search, "timeout:2"))) {
			word, _, _ := strings.Cut(line, " ")
			if word != "nameserver" && word != "search" && word != "options" {
				t.Errorf("resolv.conf line %q", line)
			}
			if strings.ContainsFunc(strings.TrimSuffix(line, "\n"), func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Errorf("resolv.conf line %q", line)
			}
		}
	})
}
