package logship

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"hpcr/agent/hpl"
)

// opensslServer is openssl's own TLS server with the given options.
func opensslServer(t *testing.T, server leaf, ca []byte, args ...string) int {
	t.Helper()
	dir, port := t.TempDir(), freePort(t)
	cmd := exec.Command("openssl", append([]string{"s_server", "-quiet", "-naccept", "1", "-accept", fmt.Sprintf("127.0.0.1:%d", port),
		"-cert", file(t, dir, "c", server.cert), "-key", file(t, dir, "k", server.key), "-CAfile", file(t, dir, "ca", ca)}, args...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v: install the test tools with 'make deps'", err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Process.Kill() // it may have ended with its one connection
		if err := cmd.Wait(); err != nil && t.Failed() {
			t.Logf("openssl: %v\n%s", err, out.String())
		}
	})
	// Its one connection is ours, so look for the listener without connecting.
	hexPort := fmt.Sprintf("0100007F:%04X 00000000:0000 0A", port)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		table, err := exec.Command("cat", "/proc/net/tcp").Output()
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(table, []byte(hexPort)) {
			return port
		}
		if time.Now().After(deadline) {
			t.Fatal("openssl does not listen")
		}
	}
}

// TestProbe: each cause has its own plain sentence.
func TestProbe(t *testing.T) {
	ours, other := newAuthority(t, "ours"), newAuthority(t, "other")
	client := ours.issue(t, nil)
	good := ours.issue(t, nil)
	verify := []string{"-Verify", "3", "-verify_return_error"}
	tests := map[string]struct {
		server leaf
		args   []string
		client leaf
		change func(*Config)
		want   string // part of the detail; empty = success
	}{
		"good, TLS 1.3":             {good, append(verify, "-tls1_3"), client, nil, ""},
		"good, TLS 1.2":             {good, append(verify, "-tls1_2"), client, nil, ""},
		"RSA, TLS 1.3":              {ours.issueFor(t, rsaKey(t, 2048), nil), append(verify, "-tls1_3"), client, nil, ""},
		"RSA, TLS 1.2":              {ours.issueFor(t, rsaKey(t, 3072), nil), append(verify, "-tls1_2"), client, nil, ""},
		"wants no certificate":      {good, nil, client, nil, ""},
		"TLS 1.1 only":              {good, []string{"-tls1_1", "-cipher", "ALL:@SECLEVEL=0"}, client, nil, "must offer TLS 1.3, or 1.2"},
		"client refused, TLS 1.3":   {good, append(verify, "-tls1_3"), other.issue(t, nil), nil, "refused our client certificate"},
		"client refused, TLS 1.2":   {good, append(verify, "-tls1_2"), other.issue(t, nil), nil, "refused our client certificate"},
		"client expired":            {good, verify, ours.issue(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), nil, "refused our client certificate"},
		"server of another CA":      {other.issue(t, nil), nil, client, nil, "another authority"},
		"server of another name":    {ours.issue(t, func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(192, 0, 2, 1)} }), nil, client, nil, "for other names"},
		"server without a name":     {ours.issue(t, func(c *x509.Certificate) { c.IPAddresses = nil; c.Subject.CommonName = "127.0.0.1" }), nil, client, nil, "no subject alternative name"},
		"server expired":            {ours.issue(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), nil, client, nil, "expired"},
		"our clock is at the floor": {good, nil, client, func(c *Config) { c.Now = func() time.Time { return time.Now().Add(-48 * time.Hour) } }, "expired or is not valid yet"},
		"not a server's":            {ours.issue(t, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }), nil, client, nil, "may not be used for a TLS server"},
		"server with a small key":   {ours.issueFor(t, rsaKey(t, 1024), nil), []string{"-cipher", "ALL:@SECLEVEL=0"}, client, nil, "too weak"},
		"CBC suites only":           {good, []string{"-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA256"}, client, nil, "refused the TLS handshake"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := config(t, ours, tt.client, opensslServer(t, tt.server, ours.pem, tt.args...))
			if tt.change != nil {
				tt.change(&c)
			}
			s, err := Open(t.Context(), c, nil)
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				if err := s.Close(); err != nil {
					t.Error(err)
				}
				return
			}
			e := hpl.From(err)
			if e.Code != "HPL01011E" || !strings.Contains(e.Detail, tt.want) || !strings.Contains(e.Line(), "[/env/logging/syslog/hostname]") {
				t.Errorf("got %v", err)
			}
		})
	}
	t.Run("nobody listens", func(t *testing.T) {
		_, err := Open(t.Context(), config(t, ours, client, freePort(t)), nil)
		if e := hpl.From(err); !strings.Contains(e.Detail, "cannot be reached") || strings.Contains(e.Line(), "127.0.0.1") {
			t.Errorf("got %v", e.Line())
		}
	})
	t.Run("no such name", func(t *testing.T) {
		c := config(t, ours, client, 1)
		c.Host = "canary-host.invalid"
		_, err := Open(t.Context(), c, func(context.Context, string, string) (net.Conn, error) {
			return nil, &net.DNSError{Err: "no such host"}
		})
		if e := hpl.From(err); !strings.Contains(e.Detail, "cannot be resolved") || strings.Contains(e.Line(), "canary") {
			t.Errorf("got %v", e.Line())
		}
	})
	t.Run("plain text", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			if c, err := l.Accept(); err == nil {
				io.WriteString(c, "220 hello, this is not TLS\r\n")
				c.Close()
			}
		}()
		_, err = Open(t.Context(), config(t, ours, client, l.Addr().(*net.TCPAddr).Port), nil)
		if e := hpl.From(err); !strings.Contains(e.Detail, "does not speak TLS") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("silence", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ctx, stop := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer stop()
		_, err = Open(ctx, config(t, ours, client, l.Addr().(*net.TCPAddr).Port), nil)
		if e := hpl.From(err); !strings.Contains(e.Detail, "did not answer in time") {
			t.Errorf("got %v", err)
		}
	})
}

func TestBadFields(t *testing.T) {
	a := newAuthority(t, "a")
	client, stranger := a.issue(t, nil), a.issue(t, nil)
	block := func(kind string, b []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}) }
	tests := map[string]struct {
		ca, cert, key []byte
		code          hpl.Code
		path          string
	}{
		"no authority":         {nil, client.cert, client.key, "HPL01007E", "server"},
		"authority not PEM":    {[]byte("canary"), client.cert, client.key, "HPL01005E", "server"},
		"authority is a key":   {client.key, client.cert, client.key, "HPL01007E", "server"},
		"authority damaged":    {block("CERTIFICATE", []byte("canary")), client.cert, client.key, "HPL01007E", "server"},
		"no certificate":       {a.pem, nil, client.key, "HPL01008E", "cert"},
		"certificate not PEM":  {a.pem, []byte("canary"), client.key, "HPL01005E", "cert"},
		"certificate is a key": {a.pem, client.key, client.key, "HPL01008E", "cert"},
		"no key":               {a.pem, client.cert, nil, "HPL01009E", "key"},
		"key not PEM":          {a.pem, client.cert, []byte("canary"), "HPL01005E", "key"},
		"key is a certificate": {a.pem, client.cert, client.cert, "HPL01009E", "key"},
		"key damaged":          {a.pem, client.cert, block("PRIVATE KEY", []byte("canary")), "HPL01006E", "key"},
		"key encrypted":        {a.pem, client.cert, block("ENCRYPTED PRIVATE KEY", []byte("canary")), "HPL01006E", "key"},
		"key of another":       {a.pem, client.cert, stranger.key, "HPL01011E", "key"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := config(t, &authority{pem: tt.ca}, leaf{tt.cert, tt.key}, 1)
			_, err := Open(t.Context(), c, func(context.Context, string, string) (net.Conn, error) {
				t.Error("dialled")
				return nil, io.EOF
			})
			e := hpl.From(err)
			if e.Code != tt.code || e.Path != "/env/logging/syslog/"+tt.path || strings.Contains(e.Line(), "canary") {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestKeyForms: HPCR wants PKCS#8; what openssl made before is taken too.
func TestKeyForms(t *testing.T) {
	a := newAuthority(t, "a")
	ec, r := newKey(t), rsaKey(t, 2048)
	ecDER, err := x509.MarshalECPrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]leaf{
		"SEC 1 with parameters": {a.issueFor(t, ec, nil).cert, append([]byte("-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: ecDER})...)},
		"PKCS#1":                {a.issueFor(t, r, nil).cert, pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(r)})},
		"PKCS#8":                a.issue(t, nil),
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, config(t, a, tt, opensslServer(t, a.issue(t, nil), a.pem, "-Verify", "3", "-verify_return_error")))
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestNeverPlain: not one octet of a message goes out before TLS, whatever the
// server says.
func TestNeverPlain(t *testing.T) {
	a := newAuthority(t, "a")
	client, server := net.Pipe()
	got := make(chan []byte)
	go func() {
		b, err := io.ReadAll(io.LimitReader(server, 64<<10))
		if err != nil {
			b = append(b, err.Error()...)
		}
		got <- b
	}()
	ctx, stop := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer stop()
	if _, err := Open(ctx, config(t, a, a.issue(t, nil), 1), func(context.Context, string, string) (net.Conn, error) { return client, nil }); err == nil {
		t.Fatal("no TLS, yet open")
	}
	if b := <-got; bytes.Contains(b, []byte(probeText)) || len(b) == 0 || b[0] != 22 {
		t.Errorf("on the wire: %q", b)
	}
}

// TestGap: a server that stops reading costs memory up to the bound; then the
// source that holds most loses its oldest, records in their place count them
// exactly, and the quiet source loses nothing.
func TestGap(t *testing.T) {
	a := newAuthority(t, "a")
	srv := a.issue(t, nil)
	cert, err := tls.X509KeyPair(srv.cert, srv.key)
	if err != nil {
		t.Fatal(err)
	}
	clientSide, serverSide := net.Pipe() // no buffer: nothing is taken that is not read
	stuck, done := make(chan struct{}), make(chan []string, 1)
	go func() {
		c := tls.Server(serverSide, &tls.Config{Certificates: []tls.Certificate{cert}})
		r := bufio.NewReaderSize(c, 16)
		if _, err := r.Peek(1); err != nil { // the probe has begun
			t.Error(err)
		}
		<-stuck
		msgs, _ := unframe(r)
		c.Close() // as a server does when its client says goodbye
		done <- msgs
	}()
	c := config(t, a, a.issue(t, nil), 1)
	dialled := false
	s, err := Open(t.Context(), c, func(context.Context, string, string) (net.Conn, error) {
		if dialled {
			return nil, io.EOF
		}
		dialled = true
		return clientSide, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	const n, quiet = spoolBytes/1100 + 500, 50
	begin := time.Now()
	chatty, calm := s.Source(Origin{Name: "chatty"}), s.Source(Origin{Name: "calm"})
	pad := strings.Repeat(" pad", 220)
	for i := range n {
		chatty.Send(Entry{Text: fmt.Appendf(nil, "m%d%s", i, pad)})
		if i%(n/quiet) == 0 && i/(n/quiet) < quiet {
			calm.Send(Entry{Text: fmt.Appendf(nil, "calm %d", i/(n/quiet))})
		}
	}
	if took := time.Since(begin); took > 8*time.Second { // the writer's patience is ten
		t.Errorf("sending blocked: %v", took)
	}
	if st := s.Stats(); st.Lost == 0 || st.SpooledSize > spoolBytes || st.Spooled == 0 || st.Lag <= 0 || !st.Connected {
		t.Errorf("while the server is stuck: %+v", st)
	}
	close(stuck)
	drain(t, s)
	stats := s.Stats()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	msgs := <-done
	arrived, lost, holes, last, calmNext := 0, 0, 0, 0, 0
	numbers := map[int]bool{}
	for _, m := range msgs {
		number, err := strconv.Atoi(seqID.FindStringSubmatch(m)[1])
		if err != nil || numbers[number] {
			t.Fatalf("number of %.200q: %v", m, err)
		}
		numbers[number], last = true, max(last, number)
		var k int
		text := m[strings.Index(m, "] ")+2:]
		if _, err := fmt.Sscanf(text, "m%d", &k); err == nil {
			arrived++
		} else if _, err := fmt.Sscanf(text, "calm %d", &k); err == nil {
			if k != calmNext {
				t.Errorf("calm %d, want %d", k, calmNext)
			}
			calmNext++
		} else if _, err := fmt.Sscanf(text, "%d log messages of one source were lost here", &k); err == nil {
			if !strings.Contains(m, fmt.Sprintf(`[hpcr@32473 lost="%d" source="chatty"]`, k)) {
				t.Errorf("%q", m)
			}
			lost += k
		}
	}
	for i := 1; i <= last; i++ {
		if !numbers[i] {
			holes++
		}
	}
	if lost == 0 || arrived+lost != n || holes != lost || int(stats.Lost) != lost || calmNext != quiet {
		t.Errorf("%d arrived, %d counted as lost (%d by the statistics), %d numbers missing, %d sent; %d of %d of the calm source", arrived, lost, stats.Lost, holes, n, calmNext, quiet)
	}
	if int(stats.Sent) != len(msgs)-1 || stats.Spooled != 0 || stats.Repeated != 0 {
		t.Errorf("%d messages, %+v", len(msgs), stats)
	}
	if !strings.Contains(msgs[len(msgs)-1], fmt.Sprintf("m%d ", n-1)) {
		t.Errorf("the newest did not arrive last: %.200q", msgs[len(msgs)-1])
	}
	chatty.Send(Entry{Text: []byte("after Close")})
}
