package contract

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

const ownLinks = `x-hpcr:
  network:
    ethernets:
      enc1:
        addresses: [192.0.2.10/24, "2001:db8:1::10/64"]
        routes: [{to: default, via: 192.0.2.1}, {to: default, via: "fe80::1"}, {to: "2001:db8:9::/48", via: "2001:db8:1::9"}]
        nameservers: {addresses: ["2001:db8:1::53"], search: [example.com]}
      enc8: {dhcp4: true, dhcp6: true, accept-ra: true, mtu: 1400}
      enc9: {}
    vlans:
      vlan100: {id: 100, link: enc9, dhcp4: true}
      vlan7: {id: 7, link: enc1, addresses: ["2001:db8:7::1/64"]}
cacerts:`

// What the contract says of links is one plan, which the wire keeps.
func TestOwnNetwork(t *testing.T) {
	s := baseSections(t)
	s["env"] = strings.Replace(s["env"], "cacerts:", ownLinks, 1)
	v, err := runSections(t, s, false).verdict()
	if err != nil {
		t.Fatal(err)
	}
	p, a := netip.MustParsePrefix, netip.MustParseAddr
	want := &Network{FromContract: true, Links: []Link{
		{
			Name: "enc1", Addresses: []netip.Prefix{p("192.0.2.10/24"), p("2001:db8:1::10/64")},
			Routes:      []Route{{p("0.0.0.0/0"), a("192.0.2.1")}, {p("::/0"), a("fe80::1")}, {p("2001:db8:9::/48"), a("2001:db8:1::9")}},
			Nameservers: []netip.Addr{a("2001:db8:1::53")}, Search: []string{"example.com"},
		},
		{Name: "enc8", DHCP: true, DHCP6: true, AcceptRA: true, MTU: 1400},
		{Name: "enc9"},
		{Name: "vlan100", VLAN: 100, Parent: "enc9", DHCP: true},
		{Name: "vlan7", VLAN: 7, Parent: "enc1", Addresses: []netip.Prefix{p("2001:db8:7::1/64")}},
	}}
	var wire bytes.Buffer
	if err := v.Encode(&wire); err != nil {
		t.Fatal(err)
	}
	w, err := Decode(wire.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Wipe()
	for _, got := range []*Network{v.Plan().Network, w.Plan().Network} {
		if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
			t.Error(diff)
		}
	}
}

// Time servers reach the agent, who checks them again.
func TestOwnTime(t *testing.T) {
	s := baseSections(t)
	s["env"] = strings.Replace(s["env"], "cacerts:", "x-hpcr: {time: {ntp: [time.example.com, 192.0.2.1, '2001:db8::1']}}\ncacerts:", 1)
	v, err := runSections(t, s, false).verdict()
	if err != nil {
		t.Fatal(err)
	}
	var wire bytes.Buffer
	if err := v.Encode(&wire); err != nil {
		t.Fatal(err)
	}
	w, err := Decode(wire.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Wipe()
	if diff := cmp.Diff(Time{NTP: []string{"time.example.com", "192.0.2.1", "2001:db8::1"}}, w.Plan().Time); diff != "" {
		t.Error(diff)
	}
	s["env"] = strings.Replace(s["env"], "{ntp: [", "{nts: [", 1)
	if v, err = runSections(t, s, false).verdict(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Time{NTS: []string{"time.example.com", "192.0.2.1", "2001:db8::1"}}, v.Plan().Time); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []Time{{NTP: make([]string, maxTimeServers+1)}, {NTP: []string{"a b"}}, {NTS: []string{"a b"}}, {NTP: []string{"a"}, NTS: []string{"b"}}} {
		if bad.check() == nil {
			t.Errorf("%v: accepted", bad)
		}
	}
}

// Resolvers reach the agent with the certificates of their authorities, and it
// checks them again.
func TestOwnDNS(t *testing.T) {
	s := baseSections(t)
	s["env"] = strings.Replace(s["env"], "cacerts:", "x-hpcr: {tls: {authorities: {corp: "+encoded(t, "ca.crt")+`}}, dns: {servers: [
  {address: 192.0.2.53, serverName: dns.example.com, authority: corp}, {address: "2001:db8::53", port: 8853, serverName: "2001:db8::53"}]}}
cacerts:`, 1)
	v, err := runSections(t, s, false).verdict()
	if err != nil {
		t.Fatal(err)
	}
	if w := v.Plan().Warnings; len(w) != 0 {
		t.Errorf("warnings %+v", w)
	}
	var wire bytes.Buffer
	if err := v.Encode(&wire); err != nil {
		t.Fatal(err)
	}
	w, err := Decode(wire.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Wipe()
	certs, err := certificates(pemBlocks(readFile(t, vectors, "keys", "ca.crt")))
	if err != nil {
		t.Fatal(err)
	}
	want := []DNSServer{
		{Address: netip.MustParseAddrPort("192.0.2.53:853"), ServerName: "dns.example.com", CA: certificatesPEM(certs)},
		{Address: netip.MustParseAddrPort("[2001:db8::53]:8853"), ServerName: "2001:db8::53"},
	}
	if diff := cmp.Diff(want, w.Plan().DNS, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
		t.Error(diff)
	}
	for _, bad := range [][]DNSServer{
		make([]DNSServer, 1),
		slices.Repeat(want[:1], maxDNSServers+1),
		{{Address: netip.MustParseAddrPort("127.0.0.1:853"), ServerName: "a.example"}},
		{{Address: netip.MustParseAddrPort("192.0.2.53:0"), ServerName: "a.example"}},
		{{Address: netip.MustParseAddrPort("192.0.2.53:853"), ServerName: "a b"}},
	} {
		if checkDNS(bad) == nil {
			t.Errorf("%v: accepted", bad)
		}
	}
}

// The host's file must not stand beside the contract's word.
func TestTwoNetworks(t *testing.T) {
	s := baseSections(t)
	s["env"] = strings.Replace(s["env"], "cacerts:", ownLinks, 1)
	in := badInput{policy: DefaultPolicy(false)}
	in.files.UserData = userData(t, s)
	in.files.NetworkConfig = []byte("network: {version: 2, ethernets: {enc1: {dhcp4: true}}}")
	r := in.run(t, false)
	r.all()
	if len(r.findings) == 0 || r.findings[0].HostPath != "/env/x-hpcr/network" || !r.failed {
		t.Errorf("findings %+v", r.findings)
	}
}

// What the child would have to lie about to steer the agent's links.
func TestNetworkCheck(t *testing.T) {
	good := func() *Network {
		return &Network{FromContract: true, Links: []Link{{Name: "enc1", DHCP: true}, {Name: "vlan1", VLAN: 1, Parent: "enc1", AcceptRA: true}}}
	}
	if err := good().check(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(n *Network){
		"a name that is free":     func(n *Network) { n.Links[0].Name = "lo" },
		"a VLAN before its card":  func(n *Network) { n.Links[0], n.Links[1] = n.Links[1], n.Links[0] },
		"a VLAN of no number":     func(n *Network) { n.Links[1].VLAN = 4095 },
		"two of one name":         func(n *Network) { n.Links = append(n.Links, n.Links[1]) },
		"IPv6 in the host's file": func(n *Network) { n.FromContract = false },
		"a route between two families": func(n *Network) {
			n.Links[0].Routes = []Route{{netip.MustParsePrefix("::/0"), netip.MustParseAddr("192.0.2.1")}}
		},
		"a resolver with a zone":  func(n *Network) { n.Links[0].Nameservers = []netip.Addr{netip.MustParseAddr("fe80::1%lo")} },
		"an address that is none": func(n *Network) { n.Links[0].Addresses = []netip.Prefix{{}} },
		"more links than a guest takes": func(n *Network) {
			for i := range maxLinks {
				n.Links = append(n.Links, Link{Name: fmt.Sprintf("enc%d", i+2)})
			}
		},
	} {
		n := good()
		change(n)
		if n.check() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
