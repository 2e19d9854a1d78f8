package contract

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"regexp"
	"strings"

	"hpcr/agent/secret"
)

// How a PEM text was written in the contract, beyond plainly.
type pemForm struct {
	literalEscapes bool // backslash and n where line ends belong
	damaged        bool // a trailer that is not quite one
	bare           bool // DER without PEM's lines around it
}

const (
	maxPEM    = 1 << 20
	minRSA    = 2048
	maxRSA    = 16384 // beyond it one verification costs seconds
	b64Rounds = 3
)

var errNoPEM = errors.New("no PEM block")

var trailer = regexp.MustCompile(`-----END ([A-Z0-9 ]+?)-{1,5}\s*$`)

// pemText finds the PEM text in any form that users and tools write: literal
// block, escapes, base64 of it, base64 of base64 (contract.md §1.5).
func pemText(s string) ([]byte, pemForm, error) {
	var form pemForm
	if len(s) > maxPEM {
		return nil, form, errNoPEM
	}
	for range b64Rounds + 1 {
		if strings.Contains(s, `\n`) {
			form.literalEscapes = true
			s = strings.NewReplacer(`\r\n`, "\n", `\n`, "\n", `\r`, "").Replace(s)
		}
		if strings.Contains(s, "-----BEGIN ") {
			return repair([]byte(s), &form), form, nil
		}
		raw, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(s), ""))
		if err != nil {
			return nil, form, errNoPEM
		}
		form.bare = len(raw) > 1 && raw[0] == 0x30 && raw[1] >= 0x80 // a long SEQUENCE of ASN.1
		s = string(raw)
	}
	return nil, form, errNoPEM
}

// repair gives a text a whole trailer and a final line end.
func repair(text []byte, form *pemForm) []byte {
	text = append(bytes.TrimSpace(bytes.ReplaceAll(text, []byte("\r\n"), []byte("\n"))), '\n')
	m := trailer.FindSubmatch(text)
	if m == nil || bytes.HasSuffix(text, []byte("-----END "+string(m[1])+"-----\n")) {
		return text
	}
	form.damaged = true
	return append(trailer.ReplaceAll(text, nil), []byte("-----END "+string(m[1])+"-----\n")...)
}

// pemBlocks decodes all blocks; what stands between them is ignored, as by
// every reader of PEM. The bytes of a private key are the caller's to wipe.
func pemBlocks(text []byte) []*pem.Block {
	var blocks []*pem.Block
	for len(blocks) < 256 {
		b, rest := pem.Decode(text)
		if b == nil {
			break
		}
		blocks, text = append(blocks, b), rest
	}
	return blocks
}

// certificates takes the X.509 certificates of a PEM text.
func certificates(blocks []*pem.Block) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for _, b := range blocks {
		if b.Type != "CERTIFICATE" && b.Type != "X509 CERTIFICATE" && b.Type != "TRUSTED CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

// certificatesPEM writes certificates in normal form.
func certificatesPEM(certs []*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// rsaPublic takes an RSA public key or the key of a certificate.
func rsaPublic(blocks []*pem.Block) (*rsa.PublicKey, *x509.Certificate, error) {
	if len(blocks) == 0 {
		return nil, nil, errNoPEM
	}
	var (
		key  any
		cert *x509.Certificate
		err  error
	)
	switch b := blocks[0]; b.Type {
	case "PUBLIC KEY":
		key, err = x509.ParsePKIXPublicKey(b.Bytes)
	case "RSA PUBLIC KEY":
		key, err = x509.ParsePKCS1PublicKey(b.Bytes)
	case "CERTIFICATE":
		if cert, err = x509.ParseCertificate(b.Bytes); err == nil {
			key = cert.PublicKey
		}
	default:
		err = errors.New("neither a public key nor a certificate")
	}
	if err != nil {
		return nil, nil, err
	}
	pub, ok := key.(*rsa.PublicKey)
	if !ok {
		return nil, nil, errors.New("not an RSA key")
	}
	if n := pub.N.BitLen(); n < minRSA || n > maxRSA {
		return nil, nil, errors.New("an RSA key has 2048 to 16384 bits")
	}
	return pub, cert, nil
}

func publicPEM(key *rsa.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}

// privateKey parses an unprotected private key of any kind that openssl
// writes.
func privateKey(b *pem.Block) (crypto.Signer, error) {
	var (
		key any
		err error
	)
	switch b.Type {
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(b.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(b.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(b.Bytes)
	default:
		return nil, errors.New("not an unprotected private key")
	}
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("a key that cannot sign")
	}
	return signer, nil
}

// firstPrivate finds the private key among blocks; "EC PARAMETERS" may stand
// before it.
func firstPrivate(blocks []*pem.Block) *pem.Block {
	for _, b := range blocks {
		if strings.HasSuffix(b.Type, "PRIVATE KEY") {
			return b
		}
	}
	return nil
}

// pkcs8PEM writes a key in the form that HPCR wants. The caller owns it.
func pkcs8PEM(key crypto.Signer) (*secret.Secret, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	defer clear(der)
	return secret.New(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), nil
}

// samePublic says whether a certificate belongs to a key.
func samePublic(cert *x509.Certificate, key crypto.Signer) bool {
	switch pub := cert.PublicKey.(type) {
	case *rsa.PublicKey:
		return pub.Equal(key.Public())
	case *ecdsa.PublicKey:
		return pub.Equal(key.Public())
	case interface{ Equal(crypto.PublicKey) bool }:
		return pub.Equal(key.Public())
	default:
		return false
	}
}

// ParseContractKey reads a contract key in PEM, PKCS#8 or PKCS#1.
func ParseContractKey(pemBytes []byte) (*rsa.PrivateKey, error) {
	b := firstPrivate(pemBlocks(pemBytes))
	if b == nil {
		return nil, errors.New("no unprotected private key in PEM form")
	}
	defer clear(b.Bytes)
	key, err := privateKey(b)
	if err != nil {
		return nil, err
	}
	k, ok := key.(*rsa.PrivateKey)
	if !ok {
		return nil, errors.New("a contract key is an RSA key")
	}
	return k, nil
}
