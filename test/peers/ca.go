package peers

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"time"
)

// CA is a private certificate authority.
type CA struct {
	PEM []byte // its certificate

	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Identity is a certificate with its key, both PEM; the key is PKCS#8, the
// only form that HPCR's syslog client takes.
type Identity struct {
	Cert, Key []byte
}

// NewCA makes an authority with a fresh P-256 key, valid for 30 days from an
// hour ago, so that a guest whose clock is a little behind accepts it.
func NewCA(name string) (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the key of %s: %w", name, err)
	}
	t := template(name)
	t.IsCA = true
	t.BasicConstraintsValid = true
	t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("certify %s: %w", name, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read back the certificate of %s: %w", name, err)
	}
	return &CA{PEM: block("CERTIFICATE", der), cert: cert, key: key}, nil
}

// Server issues an identity for a server that is reached under hosts, each an
// IP address or a DNS name.
func (c *CA) Server(name string, hosts ...string) (Identity, error) {
	t := template(name)
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, h)
		}
	}
	return c.issue(t)
}

// Client issues an identity for a TLS client.
func (c *CA) Client(name string) (Identity, error) {
	t := template(name)
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	return c.issue(t)
}

// Pool holds just this authority.
func (c *CA) Pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(c.cert)
	return p
}

// TLS is the identity in the form that crypto/tls takes.
func (i Identity) TLS() (tls.Certificate, error) {
	return tls.X509KeyPair(i.Cert, i.Key)
}

func (c *CA) issue(t *x509.Certificate) (Identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Identity{}, fmt.Errorf("make the key of %s: %w", t.Subject.CommonName, err)
	}
	t.KeyUsage = x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, t, c.cert, key.Public(), c.key)
	if err != nil {
		return Identity{}, fmt.Errorf("certify %s: %w", t.Subject.CommonName, err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Identity{}, fmt.Errorf("encode the key of %s: %w", t.Subject.CommonName, err)
	}
	return Identity{Cert: block("CERTIFICATE", der), Key: block("PRIVATE KEY", pkcs8)}, nil
}

func template(name string) *x509.Certificate {
	now := time.Now()
	// crypto/rand.Int fails only if the system's random source does, which
	// crypto/rand turns into a crash of its own.
	serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.Add(30 * 24 * time.Hour),
	}
}

func block(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
