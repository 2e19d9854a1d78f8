package network

import (
	"crypto"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"hpcr/agent/secret"
)

// Why a certificate or key could not be used. Callers map them to codes.
var (
	ErrNoPEM         = errors.New("no PEM block")
	ErrNoCertificate = errors.New("no X.509 certificate")
	ErrNoKey         = errors.New("no private key")
	ErrKeyType       = errors.New("unknown type of private key")
	ErrKeyMismatch   = errors.New("the private key does not belong to the certificate")
)

var errServerName = errors.New("the client asks for another server name")

// WeakPeerError says why a valid chain was refused all the same.
type WeakPeerError struct{ Reason string }

func (e *WeakPeerError) Error() string { return "the peer's certificate is too weak: " + e.Reason }

// aeadSuites are all that TLS 1.2 may use: forward secrecy and AEAD (RFC 9662).
// TLS 1.3 has no others.
var aeadSuites = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
	tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
}

const (
	minRSABits    = 2048
	maxChainDepth = 10
)

// ClientConfig is for a peer whose authority the contract names: only caPEM
// counts, never the system's roots. serverName, a DNS name or an IP address,
// must be among the subject alternative names of the peer's certificate;
// common names count for nothing. certPEM and key, both or neither, are our
// own identity. now is the clock with the time floor; nil = the system's.
//
// The key stays the caller's to wipe; crypto/tls keeps a parsed copy.
func ClientConfig(caPEM, certPEM []byte, key *secret.Secret, serverName string, now func() time.Time) (*tls.Config, error) {
	c, err := ClientConfigAs(caPEM, nil, serverName, now)
	if err != nil || certPEM == nil && key == nil {
		return c, err
	}
	id, err := Identity(certPEM, key)
	if err != nil {
		return nil, err
	}
	return ClientConfigAs(caPEM, func() (*tls.Certificate, error) { return &id, nil }, serverName, now)
}

// ClientConfigAs is ClientConfig with an identity that was read before, asked
// for at each handshake; nil = none.
func ClientConfigAs(caPEM []byte, id Certificate, serverName string, now func() time.Time) (*tls.Config, error) {
	roots, err := ParseCertificates(caPEM)
	if err != nil {
		return nil, fmt.Errorf("server authority: %w", err)
	}
	c := clientConfig(serverName, now)
	c.RootCAs = x509.NewCertPool()
	for _, r := range roots {
		c.RootCAs.AddCert(r)
	}
	if id == nil {
		return c, nil
	}
	// Shown whatever authorities the server lists: a refusal then says why,
	// and a list without our intermediate authority does no harm.
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return id() }
	return c, nil
}

// RegistryConfig is for image registries: the system's roots from rootsFile and
// the authorities of env.cacerts. The server name is the transport's to set.
func RegistryConfig(rootsFile string, extra [][]byte, now func() time.Time) (*tls.Config, error) {
	c := clientConfig("", now)
	c.RootCAs = x509.NewCertPool()
	system, err := os.ReadFile(rootsFile)
	if err != nil {
		return nil, fmt.Errorf("read the system's authorities: %w", err)
	}
	if !c.RootCAs.AppendCertsFromPEM(system) {
		return nil, fmt.Errorf("the system's authorities: %w", ErrNoCertificate)
	}
	for i, e := range extra {
		certs, err := ParseCertificates(e)
		if err != nil {
			return nil, fmt.Errorf("authority %d: %w", i+1, err)
		}
		for _, cert := range certs {
			c.RootCAs.AddCert(cert)
		}
	}
	return c, nil
}

// Certificate gives an end's certificate at each handshake.
type Certificate func() (*tls.Certificate, error)

// ServerConfig is for the guest's own listeners: TLS 1.3 only, no session
// tickets. With clientCA only clients of that authority get in, with
// serverName only those that ask for it (RFC 6066 §3).
func ServerConfig(id Certificate, clientCA []byte, serverName string, now func() time.Time) (*tls.Config, error) {
	c := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		Time:                   now,
		GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if serverName != "" && !strings.EqualFold(h.ServerName, serverName) {
				return nil, errServerName
			}
			return id()
		},
	}
	if clientCA != nil {
		authorities, err := ParseCertificates(clientCA)
		if err != nil {
			return nil, fmt.Errorf("client authority: %w", err)
		}
		c.ClientCAs, c.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
		for _, a := range authorities {
			c.ClientCAs.AddCert(a)
		}
		c.VerifyConnection = strongPeer
	}
	return c, nil
}

func clientConfig(serverName string, now func() time.Time) *tls.Config {
	return &tls.Config{
		MinVersion:       tls.VersionTLS12,
		CipherSuites:     aeadSuites,
		ServerName:       serverName,
		Time:             now,
		VerifyConnection: strongPeer,
	}
}

// strongPeer runs after Go has verified the chain. (Go itself refuses SHA-1.)
func strongPeer(s tls.ConnectionState) error {
	if len(s.PeerCertificates) > maxChainDepth {
		return &WeakPeerError{"its chain is too long"}
	}
	for _, chain := range s.VerifiedChains {
		for _, c := range chain {
			if k, ok := c.PublicKey.(*rsa.PublicKey); ok && k.N.BitLen() < minRSABits {
				return &WeakPeerError{"an RSA key in its chain has less than 2048 bits"}
			}
		}
	}
	return nil
}

// ParseCertificates reads all certificates of a PEM bundle: at least one, and
// none that is broken.
func ParseCertificates(data []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	blocks := 0
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		blocks++
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrNoCertificate, err)
		}
		certs = append(certs, c)
	}
	switch {
	case blocks == 0:
		return nil, ErrNoPEM
	case len(certs) == 0:
		return nil, ErrNoCertificate
	}
	return certs, nil
}

// Identity joins a certificate, with its chain, and its key: PKCS#8 as HPCR
// asks for, and PKCS#1 and SEC 1 as users have them.
func Identity(certPEM []byte, key *secret.Secret) (tls.Certificate, error) {
	var id tls.Certificate
	certs, err := ParseCertificates(certPEM)
	if err != nil {
		return id, fmt.Errorf("our certificate: %w", err)
	}
	parsed, err := parseKey(key)
	if err != nil {
		return id, err
	}
	pub, ok := parsed.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok {
		return id, ErrKeyType
	}
	if !pub.Equal(certs[0].PublicKey) {
		return id, ErrKeyMismatch
	}
	for _, c := range certs {
		id.Certificate = append(id.Certificate, c.Raw)
	}
	id.PrivateKey, id.Leaf = parsed, certs[0]
	return id, nil
}

func parseKey(key *secret.Secret) (crypto.Signer, error) {
	if key.Len() == 0 {
		return nil, ErrNoKey
	}
	blocks := 0
	for block, rest := pem.Decode(key.Bytes()); block != nil; block, rest = pem.Decode(rest) {
		blocks++
		parsed, err := parseKeyBlock(block)
		clear(block.Bytes)
		if parsed != nil || err != nil {
			return parsed, err
		}
	}
	if blocks == 0 {
		return nil, fmt.Errorf("private key: %w", ErrNoPEM)
	}
	return nil, ErrNoKey
}

// parseKeyBlock: nil without an error = not a private key, as the parameters
// that openssl writes before an EC key.
func parseKeyBlock(block *pem.Block) (crypto.Signer, error) {
	var parsed any
	var err error
	switch block.Type {
	case "PRIVATE KEY":
		parsed, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		parsed, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		parsed, err = x509.ParseECPrivateKey(block.Bytes)
	case "ENCRYPTED PRIVATE KEY":
		return nil, fmt.Errorf("%w: it is encrypted", ErrKeyType)
	default:
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeyType, err)
	}
	signer, ok := parsed.(crypto.Signer) // X25519 keys cannot sign
	if !ok {
		return nil, ErrKeyType
	}
	return signer, nil
}
