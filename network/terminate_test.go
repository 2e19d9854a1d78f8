package network

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"hpcr/agent/secret"
)

// pki makes an authority and certificates of it with openssl: what users have.
type pki struct {
	t   *testing.T
	dir string
}

func newPKI(t *testing.T) pki {
	p := pki{t, t.TempDir()}
	p.openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "ca.key", "-out", "ca.crt", "-days", "2", "-subj", "/CN=authority",
		"-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign")
	return p
}

func (p pki) openssl(args ...string) {
	p.t.Helper()
	cmd := exec.Command("openssl", args...)
	cmd.Dir = p.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		p.t.Fatalf("openssl %v: %v\n%s", args, err, out)
	}
}

func (p pki) issue(name, san, usage string, days int) {
	p.t.Helper()
	p.openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", name+".key", "-out", name+".csr", "-subj", "/CN="+name)
	ext := "subjectAltName=" + san + "\nextendedKeyUsage=" + usage + "\n"
	if err := os.WriteFile(filepath.Join(p.dir, name+".ext"), []byte(ext), 0o600); err != nil {
		p.t.Fatal(err)
	}
	args := []string{"x509", "-req", "-in", name + ".csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-out", name + ".crt", "-extfile", name + ".ext"}
	p.openssl(append(args, "-days", fmt.Sprint(days))...)
}

func (p pki) file(name string) string { return filepath.Join(p.dir, name) }

func (p pki) read(name string) []byte {
	p.t.Helper()
	b, err := os.ReadFile(p.file(name))
	if err != nil {
		p.t.Fatal(err)
	}
	return b
}

func (p pki) identity(name string) tls.Certificate {
	p.t.Helper()
	key := secret.New(p.read(name + ".key"))
	defer key.Wipe()
	id, err := Identity(p.read(name+".crt"), key)
	if err != nil {
		p.t.Fatal(err)
	}
	return id
}

// server is a listener's configuration with an identity of the PKI.
func (p pki) server(name string, clientCA []byte, serverName string) *tls.Config {
	p.t.Helper()
	id := p.identity(name)
	c, err := ServerConfig(func() (*tls.Certificate, error) { return &id, nil }, clientCA, serverName, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	return c
}

// inNetwork runs a tool in a namespace with something to read.
func inNetwork(t *testing.T, ns, stdin, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", ns, name}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// echo answers a connection with what it reads, once that ends.
func echo(t *testing.T, ns, addr string) {
	t.Helper()
	if err := inNS(t, ns, func() error {
		l, err := net.Listen("tcp4", addr)
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					b, err := io.ReadAll(c)
					if err == nil {
						_, _ = c.Write(append([]byte("echo:"), b...)) // the client judges
					}
				}()
			}
		}()
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// TestIngress: foreign clients on the wire, a plain-text service in a
// container, and what comes between.
func TestIngress(t *testing.T) {
	c := wire(t, "isp", "eth0", "192.0.2.1/24")
	n, err := up(t, Config{Links: []LinkConfig{{Name: "enc1", Addresses: []netip.Prefix{prefix("192.0.2.10/24")}}}}, c)
	if err != nil {
		t.Fatal(err)
	}
	p, other := newPKI(t), newPKI(t)
	p.issue("site", "DNS:shop.example,IP:192.0.2.10", "serverAuth", 1)
	p.issue("client", "DNS:client.example", "clientAuth", 1)
	p.issue("late", "DNS:client.example", "clientAuth", -1)
	p.issue("server", "DNS:client.example", "serverAuth", 1)
	other.issue("client", "DNS:client.example", "clientAuth", 1)
	own, err := NewOwnIdentity([]string{"own.example", "192.0.2.10"}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	ownConfig, err := ServerConfig(own.Certificate, nil, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range []Ingress{
		{Name: "mutual", Listen: 8443, TLS: p.server("site", p.read("ca.crt"), ""), To: "web", Port: 80},
		{Name: "named", Listen: 8444, TLS: p.server("site", nil, "shop.example"), To: "web", Port: 80},
		{Name: "own", Listen: 8445, TLS: ownConfig, To: "web", Port: 80},
		{Name: "echo", Listen: 8446, TLS: p.server("site", nil, ""), To: "web", Port: 7},
	} {
		if err := n.Ingress(i); err != nil {
			t.Fatal(err)
		}
	}
	project, err := n.NewProject("shop")
	if err != nil {
		t.Fatal(err)
	}
	web := namespace(t, "web")
	namespace(t, "neighbour")
	listen(t, "web", "tcp", "0.0.0.0:80", "web")
	echo(t, "web", "0.0.0.0:7")
	if _, err := project.Attach("c2", "/run/netns/neighbour", []string{"neighbour"}, nil); err != nil {
		t.Fatal(err)
	}

	// Closed while the container is not there, not refused: a scan sees nothing.
	blocked(t, "isp", "tcp", "192.0.2.10:8443")
	if _, err := project.Attach("c1", web, []string{"web"}, nil); err != nil {
		t.Fatal(err)
	}
	get := func(url string, args ...string) (string, error) {
		return inNetwork(t, "isp", "", "curl", append([]string{"-sS", "--max-time", "10", "--http0.9", "--cacert", p.file("ca.crt"), "--connect-to", "::192.0.2.10:", url}, args...)...)
	}
	identity := func(p pki, name string) []string {
		return []string{"--cert", p.file(name + ".crt"), "--key", p.file(name + ".key")}
	}
	tests := map[string]struct {
		url  string
		args []string
		ok   bool
	}{
		"a client of the authority":              {"https://shop.example:8443/", identity(p, "client"), true},
		"no client certificate":                  {"https://shop.example:8443/", nil, false},
		"a client of another authority":          {"https://shop.example:8443/", identity(other, "client"), false},
		"an expired client certificate":          {"https://shop.example:8443/", identity(p, "late"), false},
		"a certificate that is not for clients":  {"https://shop.example:8443/", identity(p, "server"), false},
		"the right name":                         {"https://shop.example:8444/", nil, true},
		"TLS 1.2":                                {"https://shop.example:8444/", []string{"--tls-max", "1.2"}, false},
		"another name":                           {"https://x.example:8444/", []string{"-k"}, false},
		"no name":                                {"https://192.0.2.10:8444/", []string{"-k"}, false},
		"plain HTTP":                             {"http://shop.example:8444/", nil, false},
		"the guest's own key, by its hash alone": {"https://192.0.2.10:8445/", []string{"-k", "--pinnedpubkey", "sha256//" + pin(t, own)}, true},
		"another key's hash":                     {"https://192.0.2.10:8445/", []string{"-k", "--pinnedpubkey", "sha256//AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			out, err := get(tt.url, tt.args...)
			if reached := strings.Contains(out, "web "+project.Gateway().String()); (err == nil) != tt.ok || reached != tt.ok {
				t.Errorf("%v: %s", err, out)
			}
		})
	}

	// The same by another stack than curl's and socat's openssl.
	gnutls := map[string]struct {
		args []string
		ok   bool
	}{
		"GnuTLS, a client of the authority": {[]string{"--x509certfile=" + p.file("client.crt"), "--x509keyfile=" + p.file("client.key"), "-p", "8443"}, true},
		"GnuTLS, no client certificate":     {[]string{"-p", "8443"}, false},
		"GnuTLS, a stranger":                {[]string{"--x509certfile=" + other.file("client.crt"), "--x509keyfile=" + other.file("client.key"), "-p", "8443"}, false},
		"GnuTLS, the right name":            {[]string{"-p", "8444"}, true},
		"GnuTLS, TLS 1.2":                   {[]string{"-p", "8444", "--priority=NORMAL:-VERS-TLS1.3"}, false},
	}
	for name, tt := range gnutls {
		t.Run(name, func(t *testing.T) {
			out, err := inNetwork(t, "isp", "GET / HTTP/1.0\r\n\r\n", "gnutls-cli", append([]string{"--x509cafile=" + p.file("ca.crt"), "--sni-hostname=shop.example", "--verify-hostname=shop.example", "192.0.2.10"}, tt.args...)...)
			if reached := strings.Contains(out, "web "+project.Gateway().String()); reached != tt.ok {
				t.Errorf("%v: %s", err, out)
			}
		})
	}

	t.Run("both ends say their last word", func(t *testing.T) {
		big := strings.Repeat("0123456789abcdef", 200_000) // 3.2 MB each way
		out, err := inNetwork(t, "isp", big, "socat", "-t10", "-", "OPENSSL:192.0.2.10:8446,commonname=shop.example,cafile="+p.file("ca.crt"))
		if err != nil || out != "echo:"+big {
			t.Errorf("%v: %d octets came back, want %d", err, len(out), len(big)+5)
		}
	})
	t.Run("containers do not reach it", func(t *testing.T) {
		for _, a := range []string{"192.0.2.10:8444", project.Gateway().String() + ":8444"} {
			blocked(t, "neighbour", "tcp", a)
		}
	})
	t.Run("clients that do not shake hands", func(t *testing.T) {
		var all []net.Conn
		if err := inNS(t, "isp", func() error {
			for range maxHandshakes + 50 {
				c, err := net.Dial("tcp4", "192.0.2.10:8444")
				if err != nil {
					return err
				}
				all = append(all, c)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		closed := 0
		for _, c := range all {
			if err := c.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Read(make([]byte, 1)); err == io.EOF || strings.Contains(fmt.Sprint(err), "reset") {
				closed++
			}
			defer c.Close()
		}
		if closed < 40 {
			t.Errorf("of %d silent clients, %d were turned away", len(all), closed)
		}
		for end := time.Now().Add(2 * handshakeLimit); ; time.Sleep(time.Second) { // their time ends, and others get in
			if out, err := get("https://shop.example:8444/"); err == nil && strings.Contains(out, "web") {
				return
			} else if time.Now().After(end) {
				t.Fatalf("nobody gets in any more: %v: %s", err, out)
			}
		}
	})
	if err := project.Detach("c1"); err != nil {
		t.Fatal(err)
	}
	blocked(t, "isp", "tcp", "192.0.2.10:8443")
	stats := n.Endpoints()
	if len(stats) != 4 || stats[0].Accepted != 2 || stats[0].Failed < 4 || stats[1].Open != 0 {
		t.Errorf("%+v", stats)
	}
}

func pin(t *testing.T, o *OwnIdentity) string {
	t.Helper()
	c, err := o.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(c.Leaf.RawSubjectPublicKeyInfo)
	if hex.EncodeToString(sum[:]) != o.SPKI() {
		t.Error("the record names another key")
	}
	cmd := exec.Command("sh", "-c", "openssl x509 -pubkey -noout | openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | base64 -w0")
	cmd.Stdin = bytes.NewReader(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}))
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// TestEgress: a container speaks plain text by a name of the project, a server
// on the wire sees mutual TLS.
func TestEgress(t *testing.T) {
	c := wire(t, "isp", "eth0", "192.0.2.1/24")
	n, err := up(t, Config{Links: []LinkConfig{{Name: "enc1", Addresses: []netip.Prefix{prefix("192.0.2.10/24")}}}}, c)
	if err != nil {
		t.Fatal(err)
	}
	p, other := newPKI(t), newPKI(t)
	p.issue("db", "DNS:db.example", "serverAuth", 1)
	p.issue("wrong", "DNS:wrong.example", "serverAuth", 1)
	p.issue("guest", "DNS:guest.example", "clientAuth", 1)
	other.issue("db", "DNS:db.example", "serverAuth", 1)
	serve := func(port string, p pki, name string) {
		background(t, "isp", "openssl", "s_server", "-accept", "192.0.2.1:"+port, "-cert", p.file(name+".crt"), "-key", p.file(name+".key"),
			"-CAfile", p.file("ca.crt"), "-Verify", "3", "-verify_return_error", "-www")
	}
	serve("1", p, "db")
	serve("2", p, "wrong")
	serve("3", other, "db")
	background(t, "isp", "gnutls-serv", "--port=4", "--http", "--require-client-cert", "--verify-client-cert", "--x509cafile="+p.file("ca.crt"), "--x509certfile="+p.file("db.crt"), "--x509keyfile="+p.file("db.key"))
	id := p.identity("guest")
	for i, name := range []string{"good", "misnamed", "foreign", "gnutls", "anonymous"} {
		who := Certificate(func() (*tls.Certificate, error) { return &id, nil })
		if name == "anonymous" {
			who = nil
		}
		conf, err := ClientConfigAs(p.read("ca.crt"), who, "db.example", nil)
		if err != nil {
			t.Fatal(err)
		}
		port := uint16(i + 1)
		if name == "anonymous" {
			port = 1
		}
		n.Egress(Egress{Name: name, Listen: uint16(5000 + i), TLS: conf, Host: "192.0.2.1", Port: port})
	}
	project, err := n.NewBridge(BridgeOptions{Internal: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.NewProject("elsewhere"); err != nil { // the same endpoints on a second bridge
		t.Fatal(err)
	}
	if _, err := project.Attach("c1", namespace(t, "app"), []string{"app"}, nil); err != nil {
		t.Fatal(err)
	}
	blocked(t, "app", "tcp", "192.0.2.1:1") // the network is internal
	blocked(t, "app", "tcp", project.Gateway().String()+":5009")
	blocked(t, "isp", "tcp", "192.0.2.10:5000")
	get := func(name, port string) (string, error) {
		t.Helper()
		// curl of this machine asks this machine's resolver, not the bridge's.
		return inNetwork(t, "app", "", "curl", "-sS", "--max-time", "15", "--resolve", name+":"+port+":"+project.Gateway().String(), "http://"+name+":"+port+"/")
	}
	out, err := get("good", "5000")
	if err != nil || !strings.Contains(out, "CN=guest") && !strings.Contains(out, "CN = guest") || !strings.Contains(out, "TLSv1.3") {
		t.Errorf("%v: %s", err, out)
	}
	if out, err = get("gnutls", "5003"); err != nil || !strings.Contains(out, "TLS1.3") {
		t.Errorf("GnuTLS: %v: %s", err, out)
	}
	for port, name := range map[string]string{"5001": "misnamed", "5002": "foreign", "5004": "anonymous"} {
		if out, err := get(name, port); err == nil {
			t.Errorf("%s: %s", name, out)
		}
	}
	for _, e := range n.Endpoints() {
		if good := e.Name == "good" || e.Name == "gnutls"; good && e.Failed != 0 || !good && e.Failed == 0 && e.Name != "anonymous" {
			t.Errorf("%+v", e)
		}
	}
	names := map[string]netip.Addr{"good": project.Gateway(), "GOOD": project.Gateway()}
	for name, want := range names {
		if got := resolve(t, "app", project.Gateway(), name); got != want {
			t.Errorf("%s is %v", name, got)
		}
	}
}

// TestOwnIdentityIsRenewed: the key stays, certificates do not grow old.
func TestOwnIdentityIsRenewed(t *testing.T) {
	now := time.Now()
	o, err := NewOwnIdentity([]string{"a.example", "192.0.2.1"}, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	first, err := o.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	for _, after := range []time.Duration{time.Hour, 18 * time.Hour} {
		now = now.Add(after)
		if c, err := o.Certificate(); err != nil || c != first {
			t.Errorf("renewed after %v: %v", after, err)
		}
	}
	for name, at := range map[string]time.Time{"late": now.Add(time.Hour), "the clock was set back": now.Add(-48 * time.Hour)} {
		now = at
		c, err := o.Certificate()
		if err != nil || c == first || !c.Leaf.NotBefore.Before(now) || c.Leaf.NotAfter.Before(now.Add(ownLife/5)) {
			t.Errorf("%s: %v", name, err)
		}
		pool := x509.NewCertPool()
		pool.AddCert(c.Leaf)
		if _, err := c.Leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: "a.example", CurrentTime: now}); err != nil {
			t.Error(err)
		}
		if !bytes.Equal(c.Leaf.RawSubjectPublicKeyInfo, first.Leaf.RawSubjectPublicKeyInfo) {
			t.Error("another key")
		}
	}
}

// resolve asks the bridge's resolver for an address.
func resolve(t *testing.T, ns string, server netip.Addr, name string) (a netip.Addr) {
	t.Helper()
	if err := inNS(t, ns, func() error {
		m, _, err := new(dns.Client).ExchangeContext(t.Context(), new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA), netip.AddrPortFrom(server, portDNS).String())
		if err == nil && len(m.Answer) == 1 {
			a, _ = netip.AddrFromSlice(m.Answer[0].(*dns.A).A.To4())
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return a
}
