package network

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"math/big"
	"net/netip"
	"sync"
	"time"
)

// OwnIdentity is one that the guest makes for itself: a key of this boot, which
// never leaves it, and certificates that the key signs itself. Clients know it
// by its key, whose hash is a fact of the attestation record.
type OwnIdentity struct {
	key   *ecdsa.PrivateKey
	spki  [sha256.Size]byte
	names []string
	now   func() time.Time

	mu   sync.Mutex
	cert *tls.Certificate
}

// A certificate is renewed while it is good for another fifth of its life, and
// begins early for clients whose clocks are slow.
const (
	ownLife = 24 * time.Hour
	ownSlow = time.Hour
)

// NewOwnIdentity makes a key on P-256. names are DNS names and IP addresses for
// the certificates; now is the clock.
func NewOwnIdentity(names []string, now func() time.Time) (*OwnIdentity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the guest's TLS key: %w", err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("make the guest's TLS key: %w", err)
	}
	return &OwnIdentity{key: key, spki: sha256.Sum256(der), names: names, now: now}, nil
}

// SPKI is the SHA-256 of the key's SubjectPublicKeyInfo in DER (RFC 5280
// §4.1.2.7) in lower-case hex, what RFC 7469 pins.
func (o *OwnIdentity) SPKI() string { return hex.EncodeToString(o.spki[:]) }

// Certificate is a Certificate of ServerConfig.
func (o *OwnIdentity) Certificate() (*tls.Certificate, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := o.now()
	if o.cert != nil && now.After(o.cert.Leaf.NotBefore) && now.Add(ownLife/5).Before(o.cert.Leaf.NotAfter) {
		return o.cert, nil
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "hpcr guest"},
		NotBefore: now.Add(-ownSlow), NotAfter: now.Add(ownLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	for _, n := range o.names {
		if a, err := netip.ParseAddr(n); err == nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, a.AsSlice())
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, o.key.Public(), o.key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	o.cert = &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: o.key, Leaf: leaf}
	return o.cert, nil
}
