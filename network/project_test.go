package network

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// TestProject sets up what a guest has: a wire to the world with a resolver on
// it, two networks of a project and three containers; and looks at all ways.
func TestProject(t *testing.T) {
	c := wire(t, "isp", "eth0", "192.0.2.1/24")
	dnsmasq(t, "isp", "--port=53", "--listen-address=192.0.2.1", "--address=/world.example/203.0.113.9", "--address=/db/203.0.113.66", "--txt-record=long.example,"+strings.Repeat("x", 250)+","+strings.Repeat("y", 250)+","+strings.Repeat("z", 250)+","+strings.Repeat("w", 250)+","+strings.Repeat("v", 250)+","+strings.Repeat("u", 250))
	n, err := up(t, Config{Links: []LinkConfig{{Name: "enc1", Addresses: []netip.Prefix{prefix("192.0.2.10/24")}, Gateway: addr("192.0.2.1"), Nameservers: []netip.Addr{addr("192.0.2.1")}}}}, c)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Allow(9080); err != nil {
		t.Fatal(err)
	}
	front, err := n.NewProject("shop")
	if err != nil {
		t.Fatal(err)
	}
	back, err := n.NewBridge(BridgeOptions{Internal: true})
	if err != nil {
		t.Fatal(err)
	}
	web, db, other := namespace(t, "web"), namespace(t, "db"), namespace(t, "other")
	attach := func(p *Project, id, ns string, names []string, ports ...Port) netip.Addr {
		t.Helper()
		a, err := p.Attach(id, ns, names, ports)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	webAddr := attach(front, "c1", web, []string{"web", "www"}, Port{HostPort: 8080, ContainerPort: 80}, Port{HostPort: 5353, ContainerPort: 53, Proto: "udp"},
		Port{HostIP: addr("127.0.0.1"), HostPort: 8081, ContainerPort: 80})
	webBack := attach(back, "c1", web, []string{"web"})
	dbAddr := attach(back, "c2", db, []string{"db"})
	otherAddr := attach(front, "c3", other, []string{"other"})
	if front.Subnet().Overlaps(back.Subnet()) || front.Gateway() == webAddr {
		t.Errorf("addresses: %v %v", front.Subnet(), back.Subnet())
	}

	listen(t, "web", "tcp", "0.0.0.0:80", "web")
	listen(t, "web", "udp", webAddr.String()+":53", "web-udp")
	listen(t, "db", "tcp", "0.0.0.0:5432", "db")
	listen(t, "other", "tcp", "0.0.0.0:80", "other")
	listen(t, "isp", "tcp", "192.0.2.1:80", "world")
	listen(t, "", "tcp", "0.0.0.0:9080", "health")
	at := func(a netip.Addr, port int) string { return fmt.Sprintf("%s:%d", a, port) }

	// Published ports: from the wire, from the guest, from a neighbour.
	reaches(t, "isp", "tcp", "192.0.2.10:8080", "web 192.0.2.1")
	reaches(t, "isp", "udp", "192.0.2.10:5353", "web-udp")
	reaches(t, "", "tcp", "127.0.0.1:8080", "web")
	reaches(t, "", "tcp", "192.0.2.10:8080", "web")
	reaches(t, "", "tcp", "127.0.0.1:8081", "web")
	reaches(t, "other", "tcp", "192.0.2.10:8080", "web")
	reaches(t, "other", "tcp", at(front.Gateway(), 8080), "web")
	reaches(t, "web", "tcp", "192.0.2.10:8080", "web") // to itself
	blocked(t, "isp", "tcp", "192.0.2.10:8081")
	blocked(t, "other", "tcp", "192.0.2.10:8081")
	// The same port of a stranger is not caught.
	listen(t, "isp", "tcp", "192.0.2.1:8080", "stranger")
	reaches(t, "other", "tcp", "192.0.2.1:8080", "stranger 192.0.2.10")
	reaches(t, "", "tcp", "192.0.2.1:8080", "stranger")

	// Neighbours and the world.
	reaches(t, "web", "tcp", at(otherAddr, 80), "other")
	reaches(t, "web", "tcp", at(dbAddr, 5432), "db "+webBack.String())
	reaches(t, "web", "tcp", "192.0.2.1:80", "world 192.0.2.10") // masqueraded
	blocked(t, "db", "tcp", "192.0.2.1:80")                      // internal
	blocked(t, "other", "tcp", at(dbAddr, 5432))                 // another network

	// Nothing of the agent from a container, on no address.
	for _, a := range []string{"192.0.2.10:9080", at(front.Gateway(), 9080), at(back.Gateway(), 9080)} {
		blocked(t, "other", "tcp", a)
	}
	reaches(t, "isp", "tcp", "192.0.2.10:9080", "health")
	ip(t, "-n other route add 127.0.0.0/8 via "+front.Gateway().String()+" table 7")
	ip(t, "-n other rule add to 127.0.0.0/8 lookup 7 pref 0")
	run(t, "ip", "netns", "exec", "other", "sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet; ip rule del pref 0 lookup local; ip rule add pref 9 lookup local")
	blocked(t, "other", "tcp", "127.0.0.1:9080") // the guest's loopback, by way of route_localnet
	// Nothing of a container but its published ports from the wire.
	ip(t, "-n isp route add "+front.Subnet().String()+" via 192.0.2.10")
	blocked(t, "isp", "tcp", at(otherAddr, 80))
	blocked(t, "isp", "tcp", at(webAddr, 80)) // not even those, past the guest's address

	t.Run("names", func(t *testing.T) {
		lookup := func(ns, server, name string, kind uint16, proto string) *dns.Msg {
			t.Helper()
			var m *dns.Msg
			if err := inNS(t, ns, func() (err error) {
				c := &dns.Client{Net: proto}
				m, _, err = c.ExchangeContext(context.Background(), new(dns.Msg).SetQuestion(dns.Fqdn(name), kind), server+":53")
				return err
			}); err != nil {
				t.Fatalf("%s asks for %s: %v", ns, name, err)
			}
			return m
		}
		fg, bg := front.Gateway().String(), back.Gateway().String()
		text := func(m *dns.Msg) string {
			out := dns.RcodeToString[m.Rcode]
			for _, rr := range m.Answer {
				switch rr := rr.(type) {
				case *dns.A:
					out += " " + rr.A.String()
				case *dns.PTR:
					out += " " + rr.Ptr
				case *dns.TXT:
					out += fmt.Sprintf(" txt%d", len(rr.Txt))
				}
			}
			return out
		}
		tests := map[string]struct {
			ns, server, name string
			kind             uint16
			proto, want      string
		}{
			"neighbour":                     {"other", fg, "web", dns.TypeA, "udp", "NOERROR " + webAddr.String()},
			"alias, upper case":             {"other", fg, "WWW", dns.TypeA, "udp", "NOERROR " + webAddr.String()},
			"over TCP":                      {"other", fg, "web", dns.TypeA, "tcp", "NOERROR " + webAddr.String()},
			"no IPv6 address":               {"other", fg, "web", dns.TypeAAAA, "udp", "NOERROR"},
			"of another network, one label": {"other", fg, "db", dns.TypeA, "udp", "NXDOMAIN"}, // though the world would answer
			"member of both":                {"web", fg, "db", dns.TypeA, "udp", "NOERROR " + dbAddr.String()},
			"reverse":                       {"db", bg, "" + reverseName(webBack), dns.TypePTR, "udp", "NOERROR web."},
			"the world":                     {"other", fg, "world.example", dns.TypeA, "udp", "NOERROR 203.0.113.9"},
			"the world over TCP":            {"other", fg, "long.example", dns.TypeTXT, "tcp", "NOERROR txt6"},
		}
		for name, tt := range tests {
			t.Run(name, func(t *testing.T) {
				if got := text(lookup(tt.ns, tt.server, tt.name, tt.kind, tt.proto)); got != tt.want {
					t.Errorf("got %q, want %q", got, tt.want)
				}
			})
		}
		if m := lookup("other", fg, "long.example", dns.TypeTXT, "udp"); !m.Truncated {
			t.Error("a long answer is not marked as truncated")
		}
		blocked(t, "isp", "tcp", "192.0.2.10:53") // nobody else is served
	})

	if diff := cmp.Diff(fmt.Sprintf("nameserver %s\noptions ndots:0\n", front.Gateway()), string(front.ResolvConf())); diff != "" {
		t.Error(diff)
	}
	t.Run("conflicts", func(t *testing.T) {
		x := namespace(t, "x")
		for _, p := range []Port{{HostPort: 8080, ContainerPort: 1}, {HostIP: addr("192.0.2.10"), HostPort: 8080, ContainerPort: 1}, {HostPort: 9080, ContainerPort: 1}, {HostPort: 8081, ContainerPort: 1}, {ContainerPort: 1}, {HostPort: 1, ContainerPort: 1, Proto: "sctp"}} {
			if _, err := front.Attach("x", x, nil, []Port{p}); err == nil {
				t.Errorf("%+v was taken", p)
			}
		}
		if _, err := front.Attach("c3", other, nil, nil); err == nil {
			t.Error("attached twice")
		}
		if out := ip(t, "-n x -br link"); strings.Contains(out, "eth") {
			t.Errorf("a refused container kept an interface:\n%s", out)
		}
		if _, err := n.NewBridge(BridgeOptions{Subnet: prefix("192.0.2.128/25")}); err == nil {
			t.Error("a subnet of the wire was taken")
		}
	})

	if err := front.Detach("c1"); err != nil {
		t.Fatal(err)
	}
	if got, err := ask(t, "isp", "tcp", "192.0.2.10:8080"); err == nil {
		t.Errorf("detached, yet %q", got)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if out := ip(t, "-br link"); strings.Contains(out, "hpcr") || strings.Contains(out, "vac") {
		t.Errorf("left behind:\n%s", out)
	}
	if out := run(t, "nft", "list", "ruleset"); strings.Contains(out, "dnat") || strings.Contains(out, "hpcr0") || !strings.Contains(out, "policy drop") {
		t.Errorf("rules after Close:\n%s", out)
	}
}

func reverseName(a netip.Addr) string {
	name, err := dns.ReverseAddr(a.String())
	if err != nil {
		panic(err)
	}
	return name
}

// TestRuleset: nft(8), not we, says what the kernel has understood.
func TestRuleset(t *testing.T) {
	s := ruleState{
		open:    []uint16{9080},
		local:   []netip.Addr{addr("192.0.2.10")},
		bridges: []bridgeRules{{"hpcr0", prefix("172.20.0.0/24"), addr("172.20.0.1"), false}, {"hpcr1", prefix("172.20.1.0/24"), addr("172.20.1.1"), true}},
		published: []publishedPort{
			{"hpcr0", netip.Addr{}, 8080, protoTCP, netip.MustParseAddrPort("172.20.0.2:80")},
			{"hpcr0", addr("127.0.0.1"), 5353, protoUDP, netip.MustParseAddrPort("172.20.0.2:53")},
		},
	}
	six := ruleState{ipv6: []ipv6Rules{{name: "enc1"}, {name: "enc2", routers: true, dhcp: true}}}
	for name, state := range map[string]ruleState{"closed": {}, "project": s, "ipv6": six} {
		t.Run(name, func(t *testing.T) {
			if err := applyRules(state); err != nil {
				t.Fatal(err)
			}
			got := run(t, "nft", "list", "table", "inet", TableName)
			path := "testdata/" + name + ".nft"
			if *update {
				write(t, path, got)
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Error(diff)
			}
		})
	}
	if err := applyRules(ruleState{}); err != nil {
		t.Fatal(err)
	}
}

func TestFreeSubnet(t *testing.T) {
	tests := map[string]struct {
		taken []netip.Prefix
		want  string
	}{
		"all free":           {nil, "172.20.0.0/24"},
		"first taken":        {[]netip.Prefix{prefix("172.20.0.9/32")}, "172.20.1.0/24"},
		"private 172 in use": {[]netip.Prefix{prefix("172.16.0.0/12")}, "10.88.0.0/24"},
		"172 and 10 in use":  {[]netip.Prefix{prefix("172.16.0.0/12"), prefix("10.0.0.0/8")}, "192.168.192.0/24"},
		"nothing left":       {[]netip.Prefix{prefix("0.0.0.0/1"), prefix("128.0.0.0/1")}, "invalid Prefix"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := freeSubnet(tt.taken)
			if got.String() != tt.want || (err == nil) != got.IsValid() {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
}
