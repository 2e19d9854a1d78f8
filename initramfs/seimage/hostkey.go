package seimage

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// HostKey is the public key of a machine that may run an image.
type HostKey struct {
	File   string
	Hash   Hash
	public *ecdh.PublicKey
}

// Trust is what host key documents are verified with. Nothing is downloaded.
type Trust struct {
	Certs []string // IBM Z's host key signing certificate and the intermediate CA's
	CRLs  []string // one of each: of the signing key, the intermediate, the root
	Root  string   // "" = the system's root certificates
	None  bool     // take any document
	Now   time.Time
}

// ReadHostKeys reads host key documents (X.509, PEM or DER) and verifies each
// as IBM's tools do: the signing certificate is IBM's by name and chains to the
// root, it signed the document, nothing in the chain is expired or revoked.
func ReadHostKeys(files []string, t Trust) ([]*HostKey, error) {
	var chain *chain
	if !t.None {
		var err error
		if chain, err = t.verify(); err != nil {
			return nil, err
		}
	}
	var keys []*HostKey
	for _, file := range files {
		certs, err := readCerts(file)
		if err != nil {
			return nil, err
		}
		for _, cert := range certs {
			key, err := hostKey(cert)
			if err == nil && chain != nil {
				err = chain.signed(cert, t.Now)
			}
			if err != nil {
				return nil, fmt.Errorf("host key document %s: %w", file, err)
			}
			for _, k := range keys {
				if k.Hash == key.Hash {
					return nil, fmt.Errorf("host key document %s: holds the same key as %s", file, k.File)
				}
			}
			key.File = file
			keys = append(keys, key)
		}
	}
	return keys, nil
}

func hostKey(cert *x509.Certificate) (*HostKey, error) {
	pub, ok := cert.PublicKey.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P521() {
		return nil, fmt.Errorf("its key is %s, a host key is on P-521 (secp521r1)", keyName(cert))
	}
	key, err := pub.ECDH()
	if err != nil {
		return nil, err
	}
	return &HostKey{Hash: HashOf(key), public: key}, nil
}

func keyName(cert *x509.Certificate) string {
	switch pub := cert.PublicKey.(type) {
	case *ecdsa.PublicKey:
		return pub.Curve.Params().Name
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA-%d", pub.Size()*8)
	}
	return cert.PublicKeyAlgorithm.String()
}

// chain is a verified signing certificate with the lists that speak of the
// documents it signed.
type chain struct {
	signer *x509.Certificate
	lists  []crl
}

type crl struct {
	file string
	*x509.RevocationList
}

// verify finds IBM's certificate among the given ones and verifies its chain.
func (t Trust) verify() (*chain, error) {
	pool, roots := x509.NewCertPool(), (*x509.CertPool)(nil)
	var signer *x509.Certificate
	var signerFile string
	for _, file := range t.Certs {
		certs, err := readCerts(file)
		if err != nil {
			return nil, err
		}
		for _, cert := range certs {
			switch {
			case !ibmSigner(cert):
				pool.AddCert(cert)
			case signer != nil:
				return nil, fmt.Errorf("%s and %s are both IBM Z signing certificates: give one", signerFile, file)
			default:
				signer, signerFile = cert, file
			}
		}
	}
	if signer == nil {
		return nil, errors.New("none of the certificates is IBM's host key signing certificate (subject: International Business Machines Corporation, … Key Signing Service)")
	}
	if t.Root != "" {
		certs, err := readCerts(t.Root)
		if err != nil {
			return nil, err
		}
		roots = x509.NewCertPool()
		for _, cert := range certs {
			roots.AddCert(cert)
		}
	}
	lists, err := readCRLs(t.CRLs)
	if err != nil {
		return nil, err
	}
	chains, err := signer.Verify(x509.VerifyOptions{
		Intermediates: pool, Roots: roots, CurrentTime: t.Now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return nil, fmt.Errorf("signing certificate %s: %w", signerFile, err)
	}
	for _, certs := range chains {
		if err = strongChain(certs, lists, t.Now); err == nil {
			return &chain{signer, lists}, nil
		}
	}
	return nil, fmt.Errorf("signing certificate %s: %w", signerFile, err)
}

// strongChain applies what x509.Verify leaves open: length, key sizes, and
// that nothing in the chain is revoked. The root vouches for itself.
func strongChain(certs []*x509.Certificate, lists []crl, now time.Time) error {
	if len(certs) < 3 || len(certs) > 4 {
		return fmt.Errorf("its chain has %d certificates; expected are one or two intermediate ones below the root", len(certs))
	}
	for i, cert := range certs {
		if pub, ok := cert.PublicKey.(*rsa.PublicKey); ok && pub.Size() < 256 {
			return fmt.Errorf("the key of %q is %s, which is too short", cert.Subject.CommonName, keyName(cert))
		}
		if i+1 < len(certs) {
			if err := notRevoked(title(cert), cert, certs[i+1], lists, now); err != nil {
				return err
			}
		}
	}
	return nil
}

// signed says whether the signing key made this document and still stands by
// it. The certificate is no CA, so no library calls that a chain.
func (c *chain) signed(doc *x509.Certificate, now time.Time) error {
	if len(doc.AuthorityKeyId) > 0 && len(c.signer.SubjectKeyId) > 0 && !bytes.Equal(doc.AuthorityKeyId, c.signer.SubjectKeyId) {
		return errors.New("it was signed by another key than that of the given signing certificate")
	}
	if err := c.signer.CheckSignature(doc.SignatureAlgorithm, doc.RawTBSCertificate, doc.Signature); err != nil {
		return fmt.Errorf("its signature is not that of the given signing certificate: %w", err)
	}
	if now.Before(doc.NotBefore) || now.After(doc.NotAfter) {
		return fmt.Errorf("it is valid from %s to %s only", doc.NotBefore.Format(time.DateOnly), doc.NotAfter.Format(time.DateOnly))
	}
	return notRevoked("it", doc, c.signer, c.lists, now)
}

// notRevoked wants at least one list that the issuer signed and that is valid
// now, and the certificate in none. Lists are matched by signature: the names
// in IBM's differ from the signer's in order and town.
func notRevoked(name string, cert, issuer *x509.Certificate, lists []crl, now time.Time) error {
	valid, outdated := 0, ""
	for _, l := range lists {
		if issuer.CheckSignature(l.SignatureAlgorithm, l.RawTBSRevocationList, l.Signature) != nil {
			continue
		}
		if now.Before(l.ThisUpdate) || !now.Before(l.NextUpdate) {
			outdated = fmt.Sprintf("; %s is valid from %s to %s only", l.file, l.ThisUpdate.Format(time.DateOnly), l.NextUpdate.Format(time.DateOnly))
			continue
		}
		valid++
		for _, e := range l.RevokedCertificateEntries {
			if e.SerialNumber.Cmp(cert.SerialNumber) == 0 {
				return fmt.Errorf("%s is revoked since %s by %s", name, e.RevocationTime.Format(time.DateOnly), l.file)
			}
		}
	}
	if valid == 0 {
		return fmt.Errorf("no revocation list (CRL) of %s that is valid now was given%s", title(issuer), outdated)
	}
	return nil
}

// title quotes the part of a name that tells IBM's and DigiCert's certificates
// apart.
func title(cert *x509.Certificate) string {
	if ou := cert.Subject.OrganizationalUnit; len(ou) > 0 && ibmSigner(cert) {
		return fmt.Sprintf("%q", ou[0])
	}
	return fmt.Sprintf("%q", cert.Subject.CommonName)
}

// ibmSigner knows the certificate of the key that signs host keys by its name,
// as IBM documents it; that the name is true follows from the chain.
func ibmSigner(cert *x509.Certificate) bool {
	const ibm = "International Business Machines Corporation"
	s := cert.Subject
	return len(s.Names) == 6 &&
		one(s.Country, "US") && one(s.Province, "New York") && one(s.Organization, ibm) && s.CommonName == ibm &&
		(one(s.Locality, "Poughkeepsie") || one(s.Locality, "Armonk")) &&
		len(s.OrganizationalUnit) == 1 && strings.HasSuffix(s.OrganizationalUnit[0], "Key Signing Service")
}

func one(values []string, want string) bool { return len(values) == 1 && values[0] == want }

// fileMax bounds what is read as a certificate or a revocation list.
const fileMax = 16 << 20

// readBlocks gives the DER of each PEM block of a kind, or the file itself.
func readBlocks(file, kind string) ([][]byte, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	if len(data) > fileMax {
		return nil, fmt.Errorf("%s: %d bytes are too many", file, len(data))
	}
	if !bytes.Contains(data, []byte("-----BEGIN ")) {
		return [][]byte{data}, nil
	}
	var out [][]byte
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == kind {
			out = append(out, block.Bytes)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s holds no %s", file, strings.ToLower(kind))
	}
	return out, nil
}

func readCerts(file string) ([]*x509.Certificate, error) {
	blocks, err := readBlocks(file, "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	var certs []*x509.Certificate
	for _, b := range blocks {
		cert, err := x509.ParseCertificate(b)
		if err != nil {
			return nil, fmt.Errorf("%s is no certificate: %w", file, err)
		}
		certs = append(certs, cert)
	}
	return certs, nil
}

func readCRLs(files []string) ([]crl, error) {
	var lists []crl
	for _, file := range files {
		blocks, err := readBlocks(file, "X509 CRL")
		if err != nil {
			return nil, err
		}
		for _, b := range blocks {
			list, err := x509.ParseRevocationList(b)
			if err != nil {
				return nil, fmt.Errorf("%s is no revocation list: %w", file, err)
			}
			lists = append(lists, crl{file, list})
		}
	}
	return lists, nil
}
