package network

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"go/parser"
	"go/token"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hpcr/agent/secret"
)

// selfSigned is an authority and its own server and client certificate.
func selfSigned(t *testing.T) (cert []byte, key *secret.Secret) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "t"}, DNSNames: []string{"guest.example"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	key = secret.New(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
	t.Cleanup(key.Wipe)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), key
}

func fixed(t *testing.T, cert []byte, key *secret.Secret) Certificate {
	t.Helper()
	id, err := Identity(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return func() (*tls.Certificate, error) { return &id, nil }
}

// handshake runs over a socket pair: a pipe without a buffer would block alerts.
func handshake(t *testing.T, client, server *tls.Config) (tls.ConnectionState, error) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	result := make(chan error, 1)
	go func() {
		defer b.Close()
		result <- tls.Server(b, server).HandshakeContext(t.Context())
	}()
	c := tls.Client(a, client)
	if err := c.HandshakeContext(t.Context()); err != nil {
		a.Close()
		return tls.ConnectionState{}, errors.Join(err, <-result)
	}
	return c.ConnectionState(), <-result
}

// TestOwnEnds: between our ends, TLS 1.3, both authenticated, and the hybrid
// key exchange.
func TestOwnEnds(t *testing.T) {
	cert, key := selfSigned(t)
	client, err := ClientConfig(cert, cert, key, "guest.example", nil)
	if err != nil {
		t.Fatal(err)
	}
	server, err := ServerConfig(fixed(t, cert, key), cert, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := handshake(t, client, server)
	if err != nil {
		t.Fatal(err)
	}
	if s.Version != tls.VersionTLS13 || s.CurveID != tls.X25519MLKEM768 {
		t.Errorf("version %x, curve %v", s.Version, s.CurveID)
	}
	old := client.Clone()
	old.MaxVersion = tls.VersionTLS12
	if _, err := handshake(t, old, server); err == nil {
		t.Error("our listener takes TLS 1.2")
	}
	anonymous, err := ClientConfig(cert, nil, nil, "guest.example", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := handshake(t, anonymous, server); err == nil {
		t.Error("our listener takes a client without a certificate")
	}
}

// TestTimeFloor: certificates are judged by the clock that is handed in.
func TestTimeFloor(t *testing.T) {
	cert, key := selfSigned(t)
	server, err := ServerConfig(fixed(t, cert, key), nil, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, now := range map[string]time.Time{"before": time.Now().Add(-2 * time.Hour), "after": time.Now().Add(2 * time.Hour)} {
		client, err := ClientConfig(cert, nil, nil, "guest.example", func() time.Time { return now })
		if err != nil {
			t.Fatal(err)
		}
		var invalid x509.CertificateInvalidError
		if _, err := handshake(t, client, server); !errors.As(err, &invalid) || invalid.Reason != x509.Expired {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestRegistryConfig(t *testing.T) {
	system, _ := selfSigned(t)
	extra, key := selfSigned(t)
	roots := filepath.Join(t.TempDir(), "roots.pem")
	if err := os.WriteFile(roots, system, 0o600); err != nil {
		t.Fatal(err)
	}
	server, err := ServerConfig(fixed(t, extra, key), nil, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		extra [][]byte
		want  bool
	}{"with env.cacerts": {[][]byte{extra}, true}, "without": {nil, false}} {
		client, err := RegistryConfig(roots, tt.extra, nil)
		if err != nil {
			t.Fatal(err)
		}
		client.ServerName = "guest.example"
		if _, err := handshake(t, client, server); (err == nil) != tt.want {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := RegistryConfig(roots, [][]byte{[]byte("x")}, nil); !errors.Is(err, ErrNoPEM) {
		t.Errorf("a broken authority: %v", err)
	}
	if _, err := RegistryConfig(roots+".none", nil, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no roots: %v", err)
	}
}

// TestVerificationIsNeverOff: no file of the product may name the field that
// switches verification off, but for one place that asks a container of the
// guest's own, in that container's network, whether it answers.
func TestVerificationIsNeverOff(t *testing.T) {
	const banned = "Insecure" + "SkipVerify"
	allowed := map[string]int{"../agent/workload/probes.go": 1}
	files := 0
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == ".git" || d.Name() == "build") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		files++
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if n := strings.Count(string(text), banned); n != allowed[path] {
			t.Errorf("%s names %s %d times, want %d", path, banned, n, allowed[path])
		}
		if strings.HasSuffix(path, "_linux.go") || !strings.HasPrefix(path, "../network/") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, text, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, i := range f.Imports {
			if i.Path.Value == `"golang.org/x/sys/unix"` {
				t.Errorf("%s imports x/sys/unix", path)
			}
		}
		return nil
	})
	if err != nil || files < 10 {
		t.Fatal(files, err)
	}
}
