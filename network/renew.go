package network

import (
	"crypto"
	"crypto/tls"
	"errors"
	"slices"
	"sync"
	"time"
)

// Why a certificate does not take another one's place.
var (
	ErrOtherNames = errors.New("the certificate lacks names of the one that it would replace")
	ErrNotNow     = errors.New("the certificate is not valid at this time")
	ErrEndsBefore = errors.New("the certificate ends before the one that it would replace")
)

// LiveIdentity is one of the contract's. Its certificate may be replaced while
// the guest runs; the next handshake has the new one, and connections that are
// open do not notice. The key stays, so that what the attestation record says
// of it stays true.
type LiveIdentity struct {
	now func() time.Time

	mu   sync.Mutex
	cert *tls.Certificate
}

// NewLiveIdentity starts with a certificate of Identity; now is the clock.
func NewLiveIdentity(c tls.Certificate, now func() time.Time) *LiveIdentity {
	return &LiveIdentity{now: now, cert: &c}
}

// Certificate is a Certificate of ServerConfig.
func (l *LiveIdentity) Certificate() (*tls.Certificate, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cert, nil
}

// NotAfter is the end of the present certificate.
func (l *LiveIdentity) NotAfter() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cert.Leaf.NotAfter
}

// clockSlack is by how much an authority's clock may be ahead of the guest's:
// certificates often begin when they are made.
const clockSlack = 5 * time.Minute

// Replace takes a certificate in PEM with its chain, at most maxChainDepth of
// them: of the same key, valid now or in clockSlack, for no name less, and with
// an end that is not earlier. Otherwise all stays as it is, and the error is one of this
// package's.
func (l *LiveIdentity) Replace(certPEM []byte) error {
	certs, err := ParseCertificates(certPEM)
	if err != nil {
		return err
	}
	if len(certs) > maxChainDepth {
		return &WeakPeerError{"its chain is too long"}
	}
	leaf, now := certs[0], l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.cert.Leaf
	key, ok := leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	switch {
	case !ok || !key.Equal(old.PublicKey):
		return ErrKeyMismatch
	case now.Add(clockSlack).Before(leaf.NotBefore) || now.After(leaf.NotAfter):
		return ErrNotNow
	case leaf.NotAfter.Before(old.NotAfter):
		return ErrEndsBefore
	}
	names := slices.Clone(old.DNSNames)
	for _, a := range old.IPAddresses {
		names = append(names, a.String())
	}
	for _, n := range names {
		// As a literal name: a wildcard is no host that VerifyHostname takes.
		if !slices.Contains(leaf.DNSNames, n) && leaf.VerifyHostname(n) != nil {
			return ErrOtherNames
		}
	}
	c := &tls.Certificate{PrivateKey: l.cert.PrivateKey, Leaf: leaf}
	for _, x := range certs {
		c.Certificate = append(c.Certificate, x.Raw)
	}
	l.cert = c
	return nil
}
