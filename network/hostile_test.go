package network

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestHostileClients: what a stranger says instead of a handshake ends within
// its time, reaches no container, and keeps nobody else out.
func TestHostileClients(t *testing.T) {
	c := wire(t, "isp", "eth0", "192.0.2.1/24")
	n, err := up(t, Config{Links: []LinkConfig{{Name: "enc1", Addresses: []netip.Prefix{prefix("192.0.2.10/24")}}}}, c)
	if err != nil {
		t.Fatal(err)
	}
	p := newPKI(t)
	p.issue("site", "DNS:shop.example", "serverAuth", 1)
	const at = "192.0.2.10:8443"
	if err := n.Ingress(Ingress{Name: "site", Listen: 8443, TLS: p.server("site", nil, ""), To: "web", Port: 80}); err != nil {
		t.Fatal(err)
	}
	project, err := n.NewProject("shop")
	if err != nil {
		t.Fatal(err)
	}
	web := namespace(t, "web")
	listen(t, "web", "tcp", "0.0.0.0:80", "web")
	if _, err := project.Attach("c1", web, []string{"web"}, nil); err != nil {
		t.Fatal(err)
	}
	openssl := func(args ...string) (string, error) {
		return inNetwork(t, "isp", "", "openssl", append([]string{"s_client", "-connect", at, "-CAfile", p.file("ca.crt"), "-verify_return_error", "-servername", "shop.example"}, args...)...)
	}
	good := func() {
		t.Helper()
		if out, err := openssl("-quiet"); err != nil || !strings.Contains(out, "web "+project.Gateway().String()) {
			t.Errorf("a good client after it: %v: %s", err, out)
		}
	}
	good()

	// Foreign clients with extensions as large as they make them.
	many := strings.TrimSuffix(strings.Repeat("protocol-that-nobody-knows,", 2000), ",") // 54 KB
	for name, args := range map[string][]string{
		"a name of 250 letters":     {"-servername", strings.Repeat("a.", 125)},
		"two thousand protocols":    {"-alpn", many},
		"TLS 1.1":                   {"-tls1_1", "-cipher", "ALL:@SECLEVEL=0"},
		"TLS 1.2":                   {"-tls1_2"},
		"a group that nobody knows": {"-groups", "ffdhe8192"},
	} {
		t.Run(name, func(t *testing.T) {
			begin := time.Now()
			out, err := openssl(append(args, "-quiet")...)
			reached := strings.Contains(out, "web ")
			if large := strings.HasPrefix(args[0], "-servername") || args[0] == "-alpn"; !large && (err == nil || reached) {
				t.Errorf("it gets in: %s", out)
			}
			if took := time.Since(begin); took > handshakeLimit+2*time.Second {
				t.Errorf("it took %v", took)
			}
			good()
		})
	}

	hello := firstFlight(t)
	record := func(kind byte, body []byte) []byte {
		return append([]byte{kind, 3, 1, byte(len(body) >> 8), byte(len(body))}, body...)
	}
	for name, sent := range map[string][]byte{
		"noise":                              bytes.Repeat([]byte{0xa5}, 1<<16),
		"zeroes":                             make([]byte, 1<<16),
		"HTTP":                               []byte("GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n"),
		"SSH":                                []byte("SSH-2.0-OpenSSH_9.2\r\n"),
		"a hello that says to have 16 MiB":   record(22, []byte{1, 0xff, 0xff, 0xff}),
		"records of handshakes without end":  bytes.Repeat(record(22, append([]byte{1, 0x00, 0xff, 0xff}, make([]byte, 1000)...)), 100),
		"empty records without end":          bytes.Repeat(record(22, nil), 10_000),
		"an alert":                           record(21, []byte{2, 40}),
		"half a hello":                       hello[:len(hello)/2],
		"a hello twice":                      append(bytes.Clone(hello), hello...),
		"a hello, and plain text behind it":  append(bytes.Clone(hello), record(23, []byte("GET / HTTP/1.0\r\n\r\n"))...),
		"a hello whose lengths are too long": grown(hello),
	} {
		t.Run(name, func(t *testing.T) {
			begin := time.Now()
			got := says(t, at, slices.Values([][]byte{sent}))
			if bytes.Contains(got, []byte("web ")) {
				t.Errorf("it reaches the container: %q", got)
			}
			if took := time.Since(begin); took > handshakeLimit+2*time.Second {
				t.Errorf("it lasted %v", took)
			}
		})
	}
	t.Run("a hello of one octet a second", func(t *testing.T) {
		begin := time.Now()
		says(t, at, func(yield func([]byte) bool) {
			for i := range hello {
				if !yield(hello[i : i+1]) {
					return
				}
				time.Sleep(time.Second)
			}
		})
		if took := time.Since(begin); took > handshakeLimit+3*time.Second {
			t.Errorf("it lasted %v", took)
		}
	})
	good()
	if s := n.Endpoints()[0]; s.Open != 0 || s.Failed < 12 {
		t.Errorf("%+v", s)
	}
}

// firstFlight is what a client says first.
func firstFlight(t *testing.T) []byte {
	t.Helper()
	near, far := net.Pipe()
	defer far.Close()
	go func() {
		defer near.Close()
		_ = tls.Client(near, &tls.Config{ServerName: "shop.example"}).Handshake() // nobody answers
	}()
	b := make([]byte, 1<<14)
	n, err := far.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

// grown is a hello whose handshake message says to be longer than its record.
func grown(hello []byte) []byte {
	b := bytes.Clone(hello)
	b[6], b[7], b[8] = 0, 0xff, 0xff
	return b
}

// says sends parts as long as they are taken, and returns what comes back until
// the other side ends it.
func says(t *testing.T, at string, parts func(yield func([]byte) bool)) (got []byte) {
	t.Helper()
	var c net.Conn
	if err := inNS(t, "isp", func() (err error) { c, err = net.Dial("tcp4", at); return err }); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(2 * handshakeLimit)); err != nil {
		t.Fatal(err)
	}
	for p := range parts {
		if _, err := c.Write(p); err != nil {
			break // it has ended it
		}
	}
	got, err := io.ReadAll(c)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("it was not ended")
	}
	return got
}
