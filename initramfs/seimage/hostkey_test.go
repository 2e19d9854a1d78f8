package seimage

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// pki is an imitation of IBM's: root, intermediate, signing certificate (no
// CA), host key documents, and a revocation list of each.
type pki struct {
	t                   *testing.T
	dir                 string
	root, inter, signer *authority
	now                 time.Time
}

type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func ibmName(town, unit string) pkix.Name {
	const ibm = "International Business Machines Corporation"
	return pkix.Name{
		Country: []string{"US"}, Province: []string{"New York"}, Locality: []string{town},
		Organization: []string{ibm}, OrganizationalUnit: []string{unit}, CommonName: ibm,
	}
}

func newPKI(t *testing.T) *pki {
	p := &pki{t: t, dir: t.TempDir(), now: time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)}
	p.root = p.authority(nil, pkix.Name{CommonName: "Test Root G4"}, true, elliptic.P384())
	p.inter = p.authority(p.root, pkix.Name{CommonName: "Test Code Signing CA"}, true, elliptic.P384())
	p.signer = p.authority(p.inter, ibmName("Poughkeepsie", "IBM Z Host Key Signing Service"), false, elliptic.P521())
	for name, a := range map[string]*authority{"root": p.root, "inter": p.inter, "signer": p.signer} {
		p.write(name+".crt", "CERTIFICATE", a.cert.Raw)
		p.list(name+".crl", a, p.now.AddDate(0, 0, -1), p.now.AddDate(0, 1, 0))
	}
	return p
}

func (p *pki) authority(parent *authority, name pkix.Name, ca bool, curve elliptic.Curve) *authority {
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		p.t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		Subject: name, BasicConstraintsValid: ca, IsCA: ca, SubjectKeyId: []byte(rand.Text()),
		NotBefore: p.now.AddDate(-1, 0, 0), NotAfter: p.now.AddDate(1, 0, 0), KeyUsage: x509.KeyUsageDigitalSignature,
	}
	if ca {
		tmpl.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	}
	return &authority{p.sign(parent, tmpl, key), key}
}

var serials int64

// sign makes a certificate; parent nil = by its own key.
func (p *pki) sign(parent *authority, tmpl *x509.Certificate, key crypto.Signer) *x509.Certificate {
	p.t.Helper()
	serials++
	tmpl.SerialNumber = big.NewInt(serials)
	if parent == nil {
		parent = &authority{tmpl, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent.cert, key.Public(), parent.key)
	if err != nil {
		p.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		p.t.Fatal(err)
	}
	return cert
}

func (p *pki) write(name, kind string, der []byte) string {
	file := filepath.Join(p.dir, name)
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		p.t.Fatal(err)
	}
	return file
}

// list writes a revocation list.
func (p *pki) list(name string, by *authority, from, to time.Time, revoked ...*x509.Certificate) string {
	p.t.Helper()
	tmpl := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: from, NextUpdate: to}
	for _, c := range revoked {
		tmpl.RevokedCertificateEntries = append(tmpl.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: from})
	}
	// As IBM's signing certificate, which is no CA and says nothing of CRLs.
	issuer := *by.cert
	issuer.KeyUsage |= x509.KeyUsageCRLSign
	der, err := x509.CreateRevocationList(rand.Reader, tmpl, &issuer, by.key)
	if err != nil {
		p.t.Fatal(err)
	}
	return p.write(name, "X509 CRL", der)
}

// host writes a host key document.
func (p *pki) host(name string, by *authority, key crypto.Signer, change func(*x509.Certificate)) (string, *x509.Certificate) {
	p.t.Helper()
	if key == nil {
		var err error
		if key, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader); err != nil {
			p.t.Fatal(err)
		}
	}
	tmpl := &x509.Certificate{
		Subject:   ibmName("Poughkeepsie", "IBM Z Host Key"),
		NotBefore: p.now.AddDate(0, -1, 0), NotAfter: p.now.AddDate(0, 6, 0), KeyUsage: x509.KeyUsageKeyAgreement,
	}
	if change != nil {
		change(tmpl)
	}
	cert := p.sign(by, tmpl, key)
	return p.write(name, "CERTIFICATE", cert.Raw), cert
}

func (p *pki) file(name string) string { return filepath.Join(p.dir, name) }

func (p *pki) trust() Trust {
	return Trust{
		Certs: []string{p.file("signer.crt"), p.file("inter.crt")},
		CRLs:  []string{p.file("signer.crl"), p.file("inter.crl"), p.file("root.crl")},
		Root:  p.file("root.crt"), Now: p.now,
	}
}

// Attack: somebody gives the builder a document of a key of his own, or of a
// machine that IBM has given up. Claim: refused, and the error says which file
// and why.
func TestHostKeyDocumentsAreVerified(t *testing.T) {
	p := newPKI(t)
	good, cert := p.host("good.crt", p.signer, nil, nil)
	other := p.authority(p.inter, ibmName("Armonk", "IBM Z Host Key Signing Service"), false, elliptic.P521())
	p.write("other.crt", "CERTIFICATE", other.cert.Raw)
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	month := func(n int) time.Time { return p.now.AddDate(0, n, 0) }
	// The good document with other things to verify it by; or another document.
	by := func(change func(*Trust)) func(*Trust) string {
		return func(tr *Trust) string { change(tr); return good }
	}
	doc := func(name string, by *authority, key crypto.Signer, change func(*x509.Certificate)) func(*Trust) string {
		return func(*Trust) string { f, _ := p.host(name, by, key, change); return f }
	}
	list := func(i int, name string, by *authority, from, to time.Time, revoked ...*x509.Certificate) func(*Trust) string {
		return func(tr *Trust) string { tr.CRLs[i] = p.list(name, by, from, to, revoked...); return good }
	}
	signer := func(name string, a *authority) func(*Trust) string {
		return func(tr *Trust) string { tr.Certs[0] = p.write(name, "CERTIFICATE", a.cert.Raw); return good }
	}
	weakSigner := p.sign(p.inter, &x509.Certificate{
		Subject: ibmName("Armonk", "Key Signing Service"), NotBefore: month(-1), NotAfter: month(1),
	}, weak)

	stranger := p.write("stranger.crt", "CERTIFICATE", p.authority(nil, pkix.Name{CommonName: "Test Root G4"}, true, elliptic.P384()).cert.Raw)
	more := ibmName("Armonk", "Key Signing Service")
	more.SerialNumber = "1"

	for name, tc := range map[string]struct {
		setup func(*Trust) string // gives the document
		want  string              // "" = accepted
	}{
		"good":                     {by(func(*Trust) {}), ""},
		"good, DER":                {func(*Trust) string { return der(t, p, good) }, ""},
		"certificates in one file": {by(func(tr *Trust) { tr.Certs = []string{joined(t, p, tr.Certs...)} }), ""},
		"an old list beside a new": {by(func(tr *Trust) {
			tr.CRLs = append(tr.CRLs, p.list("old.crl", p.signer, month(-2), month(-1)))
		}), ""},
		"signer of the other town": {func(tr *Trust) string {
			tr.Certs[0] = p.file("other.crt")
			tr.CRLs = append(tr.CRLs, p.list("armonk.crl", other, p.now, month(1)))
			return doc("armonk.crt", other, nil, nil)(tr)
		}, ""},
		"verification switched off": {func(tr *Trust) string {
			*tr = Trust{None: true}
			return doc("none.crt", nil, nil, nil)(tr)
		}, ""},

		"signed by itself":          {doc("self.crt", nil, nil, nil), "self.crt: its signature is not that of the given signing certificate"},
		"signed by another IBM key": {doc("akid.crt", other, nil, nil), "akid.crt: it was signed by another key"},
		"expired": {doc("exp.crt", p.signer, nil, func(c *x509.Certificate) { c.NotAfter = p.now.AddDate(0, 0, -1) }),
			"exp.crt: it is valid from 2026-05-01 to 2026-05-31 only"},
		"not valid yet": {doc("early.crt", p.signer, nil, func(c *x509.Certificate) { c.NotBefore = p.now.AddDate(0, 0, 1) }),
			"early.crt: it is valid from 2026-06-02"},
		"revoked":  {list(0, "rev.crl", p.signer, p.now, month(1), cert), "good.crt: it is revoked since 2026-06-01 by"},
		"on P-256": {doc("p256.crt", p.signer, ecKey(t, elliptic.P256()), nil), "p256.crt: its key is P-256, a host key is on P-521"},
		"RSA":      {doc("rsa.crt", p.signer, weak, nil), "its key is RSA-1024"},
		"on P-384, not verified": {func(tr *Trust) string { *tr = Trust{None: true}; return p.file("inter.crt") },
			"its key is P-384"},
		"no certificate": {func(*Trust) string { return p.file("signer.crl") }, "signer.crl holds no certificate"},
		"garbage": {func(*Trust) string { writeFile(t, p.file("garbage"), []byte("garbage")); return p.file("garbage") },
			"garbage is no certificate"},

		"no list of the signing key": {by(func(tr *Trust) { tr.CRLs = tr.CRLs[1:] }),
			`no revocation list (CRL) of "IBM Z Host Key Signing Service"`},
		"no list of the intermediate": {by(func(tr *Trust) { tr.CRLs = slices.Delete(tr.CRLs, 1, 2) }),
			`no revocation list (CRL) of "Test Code Signing CA"`},
		"no list of the root":         {by(func(tr *Trust) { tr.CRLs = tr.CRLs[:2] }), `no revocation list (CRL) of "Test Root G4"`},
		"an outdated list":            {list(0, "late.crl", p.signer, month(-2), p.now), "late.crl is valid from 2026-04-01 to 2026-06-01 only"},
		"a list of the future":        {list(0, "soon.crl", p.signer, month(1), month(2)), "no revocation list"},
		"a list by another key":       {list(0, "forged.crl", &authority{p.signer.cert, other.key}, p.now, month(1)), "no revocation list"},
		"signing certificate revoked": {list(1, "srev.crl", p.inter, p.now, month(1), p.signer.cert), "srev.crl"},
		"intermediate revoked":        {list(2, "irev.crl", p.root, p.now, month(1), p.inter.cert), "irev.crl"},
		"a certificate as a list":     {by(func(tr *Trust) { tr.CRLs = []string{p.file("root.crt")} }), "root.crt holds no x509 crl"},

		"no signing certificate":      {by(func(tr *Trust) { tr.Certs = tr.Certs[1:] }), "none of the certificates is IBM's"},
		"two signing certificates":    {by(func(tr *Trust) { tr.Certs = append(tr.Certs, p.file("other.crt")) }), "both IBM Z signing certificates"},
		"no intermediate":             {by(func(tr *Trust) { tr.Certs = tr.Certs[:1] }), "signer.crt: x509: certificate signed by unknown authority"},
		"the system's roots":          {by(func(tr *Trust) { tr.Root = "" }), "unknown authority"},
		"another root":                {by(func(tr *Trust) { tr.Root = stranger }), "unknown authority"},
		"signing certificate expired": {by(func(tr *Trust) { tr.Now = month(24) }), "expired"},
		"signed by the root itself": {signer("direct.crt", p.authority(p.root, ibmName("Armonk", "Key Signing Service"), false, elliptic.P521())),
			"its chain has 2 certificates"},
		"somebody else's name": {signer("hursley.crt", p.authority(p.inter, ibmName("Hursley", "Key Signing Service"), false, elliptic.P521())),
			"none of the certificates is IBM's"},
		"another service of IBM's": {signer("code.crt", p.authority(p.inter, ibmName("Armonk", "Code Signing"), false, elliptic.P521())),
			"none of the certificates is IBM's"},
		"a name with more to it": {signer("more.crt", p.authority(p.inter, more, false, elliptic.P521())),
			"none of the certificates is IBM's"},
		"a short key in the chain": {signer("weak.crt", &authority{weakSigner, weak}), "RSA-1024, which is too short"},
	} {
		t.Run(name, func(t *testing.T) {
			tr := p.trust()
			doc := tc.setup(&tr)
			keys, err := ReadHostKeys([]string{doc}, tr)
			if tc.want == "" && (err != nil || len(keys) != 1 || keys[0].File != doc) {
				t.Errorf("got %v, %v", keys, err)
			}
			if tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}

	if _, err := ReadHostKeys([]string{good, good}, p.trust()); err == nil || !strings.Contains(err.Error(), "same key") {
		t.Errorf("one key twice: %v", err)
	}
	if _, err := ReadHostKeys([]string{p.file("nowhere")}, p.trust()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}

func ecKey(t *testing.T, curve elliptic.Curve) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func writeFile(t *testing.T, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func der(t *testing.T, p *pki, file string) string {
	t.Helper()
	certs, err := readCerts(file)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, p.file("doc.der"), certs[0].Raw)
	return p.file("doc.der")
}

func joined(t *testing.T, p *pki, files ...string) string {
	t.Helper()
	var all []byte
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, data...)
	}
	writeFile(t, p.file("chain.crt"), all)
	return p.file("chain.crt")
}

// FuzzHostKeyDocument: whatever a document holds, it gives keys or an error.
func FuzzHostKeyDocument(f *testing.F) {
	doc, err := os.ReadFile("testdata/scalar2.crt")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(doc)
	if block, _ := pem.Decode(doc); block != nil {
		f.Add(block.Bytes)
	}
	oid, err := asn1.Marshal(asn1.ObjectIdentifier{1, 2, 3})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(oid)
	f.Fuzz(func(t *testing.T, data []byte) {
		file := filepath.Join(t.TempDir(), "doc")
		writeFile(t, file, data)
		keys, err := ReadHostKeys([]string{file}, Trust{None: true})
		if (err == nil) == (len(keys) == 0) {
			t.Errorf("%d keys, %v", len(keys), err)
		}
	})
}
