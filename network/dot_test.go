package network

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// TestDNSOverTLS: dnsmasq behind openssl's TLS (by socat) answers guest and
// containers. The network's own resolver would answer, and lie: it is never
// asked, also when the others' certificates are wrong.
func TestDNSOverTLS(t *testing.T) {
	c := wire(t, "isp", "eth0", "192.0.2.1/24")
	dnsmasq(t, "isp", "--port=5300", "--listen-address=127.0.0.1", "--address=/world.example/203.0.113.9")
	dnsmasq(t, "isp", "--port=53", "--listen-address=192.0.2.1", "--address=/world.example/203.0.113.66")
	p, other := newPKI(t), newPKI(t)
	p.issue("good", "DNS:dns.example", "serverAuth", 1)
	p.issue("misnamed", "DNS:other.example", "serverAuth", 1)
	other.issue("foreign", "DNS:dns.example", "serverAuth", 1)
	for port, of := range map[string]struct {
		pki  pki
		name string
	}{"853": {p, "good"}, "854": {p, "misnamed"}, "855": {other, "foreign"}} {
		// It ends a connection of which it hears nothing for a second.
		background(t, "isp", "socat", "-T1", "OPENSSL-LISTEN:"+port+",bind=192.0.2.1,reuseaddr,fork,verify=0,cert="+of.pki.file(of.name+".crt")+",key="+of.pki.file(of.name+".key"), "TCP:127.0.0.1:5300")
	}
	n, err := up(t, Config{Links: []LinkConfig{{Name: "enc1", Addresses: []netip.Prefix{prefix("192.0.2.10/24")}, Nameservers: []netip.Addr{addr("192.0.2.1")}}}}, c)
	if err != nil {
		t.Fatal(err)
	}
	project, err := n.NewProject("shop")
	if err != nil {
		t.Fatal(err)
	}
	app := namespace(t, "app")
	if _, err := project.Attach("c1", app, []string{"app"}, nil); err != nil {
		t.Fatal(err)
	}
	server := func(at string) SecureServer {
		conf, err := ClientConfig(p.read("ca.crt"), nil, nil, "dns.example", nil)
		if err != nil {
			t.Fatal(err)
		}
		return SecureServer{At: netip.MustParseAddrPort(at), TLS: conf}
	}
	ask := func(ns, server, proto string, edns bool) (answer string) {
		t.Helper()
		if err := inNS(t, ns, func() error {
			q := new(dns.Msg).SetQuestion("world.example.", dns.TypeA)
			if edns {
				q.SetEdns0(4096, false)
			}
			m, _, err := (&dns.Client{Net: proto, Timeout: 15 * time.Second}).ExchangeContext(t.Context(), q, server+":53")
			if err != nil {
				return err
			}
			if edns != (m.IsEdns0() != nil) {
				t.Errorf("the answer to a question with an OPT record (%v) is %v", edns, m)
			}
			if len(m.Answer) == 1 {
				answer = m.Answer[0].(*dns.A).A.String()
			} else {
				answer = dns.RcodeToString[m.Rcode]
			}
			return nil
		}); err != nil {
			t.Fatalf("%s asks %s: %v", ns, server, err)
		}
		return answer
	}
	for begin := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp4", "192.0.2.1:853")
		if err == nil {
			c.Close()
			break
		}
		if time.Since(begin) > 10*time.Second {
			t.Fatalf("the server does not start: %v", err)
		}
	}
	if got := ask("app", project.Gateway().String(), "udp", false); got != "203.0.113.66" {
		t.Fatalf("the network's resolver says %s", got)
	}

	// The first is not there; the second answers, and is the first from then on.
	if err := n.EncryptDNS([]SecureServer{server("192.0.2.1:9"), server("192.0.2.1:853")}); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := n.WriteResolvConf(conf); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(conf); err != nil || !strings.HasPrefix(string(b), "nameserver 127.0.0.1\n") || strings.Count(string(b), "nameserver") != 1 {
		t.Errorf("resolv.conf: %v: %s", err, b)
	}
	for _, proto := range []string{"udp", "tcp"} {
		for _, edns := range []bool{false, true} {
			for ns, at := range map[string]string{"": "127.0.0.1", "app": project.Gateway().String()} {
				if got := ask(ns, at, proto, edns); got != "203.0.113.9" {
					t.Errorf("%q gets %s over %s", ns, got, proto)
				}
			}
		}
	}
	if first := n.secure.first.Load(); first != 1 {
		t.Errorf("server %d is asked first", first)
	}
	time.Sleep(1500 * time.Millisecond) // the server has ended the connection meanwhile
	if got := ask("", "127.0.0.1", "udp", false); got != "203.0.113.9" {
		t.Errorf("after the connection's end: %s", got)
	}

	n.mu.Lock()
	good := n.secure
	n.mu.Unlock()
	for name, at := range map[string]string{"of another name": "192.0.2.1:854", "of another authority": "192.0.2.1:855", "in plain text": "192.0.2.1:53"} {
		n.mu.Lock()
		n.secure = &secureDNS{servers: []*secureServer{{SecureServer: server(at)}}}
		n.mu.Unlock()
		if got := ask("app", project.Gateway().String(), "udp", false); got != "SERVFAIL" {
			t.Errorf("a server %s answers: %s", name, got)
		}
	}
	n.mu.Lock()
	n.secure = good // the end closes it
	n.mu.Unlock()
}

// Questions of all lengths become multiples of the block, and keep what they
// asked.
func TestPadding(t *testing.T) {
	for size := range 60 {
		for _, own := range []bool{false, true} {
			m := new(dns.Msg).SetQuestion(strings.Repeat("a", size+1)+".example.", dns.TypeA)
			if own {
				m.SetEdns0(1400, true)
				m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_PADDING{Padding: make([]byte, 7)})
			}
			if added := pad(m); added == own {
				t.Errorf("added %v", added)
			}
			b, err := m.Pack()
			if err != nil || len(b)%dotPadding != 0 || len(m.IsEdns0().Option) != 1 || own && !m.IsEdns0().Do() {
				t.Errorf("%d octets: %v: %v", len(b), err, m)
			}
		}
	}
}
