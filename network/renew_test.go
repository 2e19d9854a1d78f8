package network

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"hpcr/agent/secret"
)

// renewals makes certificates with openssl, as owners do: req's further
// arguments decide.
func renewals(t *testing.T) (dir string, certify func(name, key, names string, args ...string) []byte) {
	t.Helper()
	dir = t.TempDir()
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), "openssl", args...).CombinedOutput(); err != nil {
			t.Fatalf("openssl %q: %v: %s", args, err, out)
		}
	}
	for _, k := range []string{"key", "other"} {
		run("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", filepath.Join(dir, k))
	}
	return dir, func(name, key, names string, args ...string) []byte {
		t.Helper()
		out := filepath.Join(dir, name+".crt")
		run(append([]string{"req", "-x509", "-new", "-key", filepath.Join(dir, key), "-subj", "/CN=" + name, "-addext", "subjectAltName=" + names, "-out", out}, args...)...)
		pem, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		return pem
	}
}

func TestReplace(t *testing.T) {
	dir, certify := renewals(t)
	const names = "DNS:shop.example,DNS:*.shop.example,IP:192.0.2.1"
	read, err := os.ReadFile(filepath.Join(dir, "key"))
	if err != nil {
		t.Fatal(err)
	}
	key := secret.New(bytes.Clone(read))
	defer key.Wipe()
	first := certify("first", "key", names, "-days", "10")
	c, err := Identity(first, key)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	live := NewLiveIdentity(c, func() time.Time { return now })
	good := certify("good", "key", names+",DNS:new.example", "-days", "20")
	later := now.Add(15 * 24 * time.Hour)
	for claim, at := range map[string]struct {
		pem  []byte
		now  time.Time
		want error
	}{
		"another key's is refused":                 {certify("stolen", "other", names, "-days", "20"), now, ErrKeyMismatch},
		"one that lacks a name is refused":         {certify("less", "key", "DNS:shop.example,IP:192.0.2.1", "-days", "20"), now, ErrOtherNames},
		"one that lacks an address is refused":     {certify("noip", "key", "DNS:shop.example,DNS:*.shop.example", "-days", "20"), now, ErrOtherNames},
		"one that ends before the old is refused":  {certify("short", "key", names, "-days", "5"), now, ErrEndsBefore},
		"one that has ended is refused":            {certify("past", "key", names, "-days", "12"), later, ErrNotNow},
		"one whose time has not come is refused":   {good, now.Add(-48 * time.Hour), ErrNotNow},
		"a key in its place is refused":            {read, now, ErrNoCertificate},
		"text is refused":                          {[]byte("hello"), now, ErrNoPEM},
		"nothing is refused":                       {nil, now, ErrNoPEM},
		"a certificate that is broken is refused":  {bytes.Replace(good, []byte("MII"), []byte("MIJ"), 1), now, ErrNoCertificate},
		"a chain without end is refused as a peer": {bytes.Repeat(good, maxChainDepth+1), now, &WeakPeerError{"its chain is too long"}},
	} {
		t.Run(claim, func(t *testing.T) {
			was := now
			defer func() { now = was }()
			now = at.now
			err := live.Replace(at.pem)
			weak, isWeak := at.want.(*WeakPeerError)
			var got *WeakPeerError
			if isWeak && (!errors.As(err, &got) || *got != *weak) || !isWeak && !errors.Is(err, at.want) {
				t.Errorf("error %v, want %v", err, at.want)
			}
			if have, err := live.Certificate(); err != nil || have.Leaf.Subject.CommonName != "first" {
				t.Errorf("%v serves: %v", have.Leaf.Subject, err)
			}
		})
	}

	was := now
	now = c.Leaf.NotBefore.Add(-time.Minute) // a guest whose clock is behind
	if err := live.Replace(first); err != nil {
		t.Errorf("a certificate that was made just now: %v", err)
	}
	now = was

	// A connection that is open lives on; the next one has the new certificate.
	server, err := ServerConfig(live.Certificate, nil, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	client, err := ClientConfigAs(append(bytes.Clone(first), good...), nil, "shop.example", nil)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				s := tls.Server(conn, server)
				_, _ = io.Copy(s, s) // what breaks here the client sees
			}()
		}
	}()
	open := func() *tls.Conn {
		t.Helper()
		conn, err := tls.Dial("unix", l.Addr().String(), client)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	said := func(c *tls.Conn) (name string) {
		t.Helper()
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		return c.ConnectionState().PeerCertificates[0].Subject.CommonName
	}
	before := open()
	if got := said(before); got != "first" {
		t.Errorf("%s serves", got)
	}
	if err := live.Replace(good); err != nil {
		t.Fatal(err)
	}
	if got := said(before); got != "first" {
		t.Errorf("the open connection is with %s", got)
	}
	if got := said(open()); got != "good" {
		t.Errorf("%s serves", got)
	}
	if end := live.NotAfter(); end.Before(later) {
		t.Errorf("it ends %v", end)
	}
}
