package main

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
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hpcr/initramfs"
)

// authority is a certificate with its key.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
	file string
}

// issue makes a certificate; edit changes what is usual. A nil issuer makes it
// self-signed.
func issue(t testing.TB, name string, issuer *authority, key crypto.Signer, edit func(*x509.Certificate)) *authority {
	t.Helper()
	if key == nil {
		var err error
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	now := time.Now()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(1, 0, 0), SubjectKeyId: []byte(name),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	if edit != nil {
		edit(tmpl)
	}
	a := &authority{key: key}
	parent, signer := tmpl, key
	if issuer != nil {
		parent, signer = issuer.cert, issuer.key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.file = write(t, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	return a
}

// revoke writes a revocation list.
func (a *authority) revoke(t testing.TB, edit func(*x509.RevocationList), revoked ...*authority) string {
	t.Helper()
	now := time.Now()
	tmpl := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: now.Add(-time.Hour), NextUpdate: now.Add(time.Hour)}
	for _, r := range revoked {
		tmpl.RevokedCertificateEntries = append(tmpl.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: r.cert.SerialNumber, RevocationTime: now.Add(-time.Hour)})
	}
	if edit != nil {
		edit(tmpl)
	}
	may := *a.cert // IBM's issuer may not sign lists either, and does
	may.KeyUsage |= x509.KeyUsageCRLSign
	der, err := x509.CreateRevocationList(rand.Reader, tmpl, &may, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return write(t, string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})))
}

// IBM's way: root, CA, a code signer that is no CA, the contract certificate.
// Somebody in the middle has each of them with the right name and a wrong key.
func TestCertificateChain(t *testing.T) {
	imageKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	leaf := func(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, x509.KeyUsageDigitalSignature }
	ended := func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().AddDate(-2, 0, 0), time.Now().AddDate(-1, 0, 0)
	}
	root := issue(t, "root", nil, nil, nil)
	ca := issue(t, "ca", root, nil, nil)
	signer := issue(t, "signer", ca, nil, leaf)
	image := issue(t, "image", signer, imageKey, leaf)
	forgedSigner := issue(t, "signer", nil, nil, leaf)
	forgedByCAName := issue(t, "signer", issue(t, "ca", nil, nil, nil), nil, leaf)
	endedSigner := issue(t, "signer", ca, signer.key, func(c *x509.Certificate) { leaf(c); ended(c) })
	der := write(t, string(root.cert.Raw))
	bundle := write(t, readFileText(t, signer.file)+readFileText(t, ca.file)+readFileText(t, root.file))
	loopA := issue(t, "loop", nil, nil, nil)
	loopB := issue(t, "pool", &authority{cert: loopA.cert, key: loopA.key}, nil, nil)
	loopA2 := issue(t, "loop", loopB, loopA.key, nil)

	tests := map[string]struct {
		cert *authority
		cas  []string
		crls []string
		code int
		says string
	}{
		"the whole chain":                         {image, []string{signer.file, ca.file, root.file}, nil, 0, "no CA's certificate"},
		"in any order, the root in DER":           {image, []string{der, signer.file, ca.file}, nil, 0, ""},
		"as a bundle":                             {image, []string{bundle}, nil, 0, ""},
		"the issuer alone, trusted as named":      {image, []string{signer.file}, nil, 0, ""},
		"without the issuer":                      {image, []string{ca.file, root.file}, nil, 1, "not among --ca"},
		"with a gap":                              {image, []string{signer.file, root.file}, nil, 1, "does not vouch"},
		"a forged certificate":                    {issue(t, "image", forgedSigner, imageKey, leaf), []string{signer.file, ca.file, root.file}, nil, 1, "not genuine"},
		"a forged issuer of no name":              {issue(t, "image", forgedSigner, imageKey, leaf), []string{forgedSigner.file, ca.file, root.file}, nil, 1, "does not vouch"},
		"a forged issuer that names the CA":       {issue(t, "image", forgedByCAName, imageKey, leaf), []string{forgedByCAName.file, ca.file, root.file}, nil, 1, "not genuine"},
		"an ended issuer":                         {image, []string{endedSigner.file, ca.file, root.file}, nil, 1, "ended on"},
		"issuers in a circle":                     {issue(t, "image", loopA2, imageKey, leaf), []string{loopA2.file, loopB.file}, nil, 1, "in a circle"},
		"a CA that has nothing to do with it":     {image, []string{signer.file, issue(t, "else", nil, nil, nil).file}, nil, 1, "does not vouch"},
		"self-signed, and named":                  {issue(t, "image", nil, imageKey, leaf), nil, nil, 0, "2048 bits"},
		"an ended certificate":                    {issue(t, "image", signer, imageKey, ended), nil, nil, 1, "take the one of a current image"},
		"an RSA key of 1024 bits":                 {issue(t, "image", signer, weak, leaf), nil, nil, 1, "can be broken"},
		"an elliptic key":                         {issue(t, "image", signer, nil, leaf), nil, nil, 1, "no RSA key"},
		"a dev image's certificate":               {issue(t, "image", signer, imageKey, func(c *x509.Certificate) { c.Subject.OrganizationalUnit = []string{"hpcr dev image"} }), nil, nil, 0, "no real secret"},
		"a list that is named and not given":      {issue(t, "image", signer, imageKey, func(c *x509.Certificate) { c.CRLDistributionPoints = []string{"http://crl.example/x.crl"} }), nil, nil, 0, "http://crl.example/x.crl"},
		"a list without the certificate":          {image, []string{signer.file}, []string{signer.revoke(t, nil, ca)}, 0, ""},
		"a list with the certificate":             {image, []string{signer.file}, []string{signer.revoke(t, nil, image)}, 1, "revoked on"},
		"a list with the issuer":                  {image, []string{signer.file, ca.file}, []string{signer.revoke(t, nil), ca.revoke(t, nil, signer)}, 1, "revoked on"},
		"a list of the CA alone":                  {image, []string{signer.file, ca.file}, []string{ca.revoke(t, nil)}, 1, "fetch the one"},
		"a forged list":                           {image, []string{signer.file}, []string{forgedSigner.revoke(t, nil)}, 1, "not signed by its issuer"},
		"a list of somebody else":                 {image, []string{signer.file}, []string{root.revoke(t, nil)}, 1, "not in the chain"},
		"a list that is out of date":              {image, []string{signer.file}, []string{signer.revoke(t, func(l *x509.RevocationList) { l.NextUpdate = time.Now().Add(-time.Minute) })}, 1, "fetch a current one"},
		"a list of tomorrow":                      {image, []string{signer.file}, []string{signer.revoke(t, func(l *x509.RevocationList) { l.ThisUpdate = time.Now().Add(30 * time.Minute) })}, 1, "clock"},
		"a delta list":                            {image, []string{signer.file}, []string{signer.revoke(t, func(l *x509.RevocationList) { l.ExtraExtensions = []pkix.Extension{delta} })}, 1, "delta"},
		"a list without anybody to vouch for it":  {image, nil, []string{signer.revoke(t, nil)}, 2, "--crl needs --ca"},
		"a certificate in the place of the list":  {image, []string{signer.file}, []string{ca.file}, 2, "X509 CRL"},
		"a CA file that does not exist":           {image, []string{"does-not-exist"}, nil, 2, "no such file"},
		"a private key in the place of a CA file": {image, []string{key("other.key")}, nil, 2, "CERTIFICATE"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			args := []string{"contract", "encrypt", "--cert", tt.cert.file, "--raw", "-"}
			for _, f := range tt.cas {
				args = append(args, "--ca", f)
			}
			for _, f := range tt.crls {
				args = append(args, "--crl", f)
			}
			r := hpcrctl(t, "text", args...)
			if r.code != tt.code || !strings.Contains(r.stderr, tt.says) {
				t.Errorf("exit %d, want %d and %q\n%s", r.code, tt.code, tt.says, r.stderr)
			}
			if (r.stdout != "") != (tt.code == 0) {
				t.Errorf("stdout %.40q", r.stdout)
			}
		})
	}
	// contract sign makes the same checks.
	r := hpcrctl(t, goodContract(t), "contract", "sign", "--signing-key", key("sign.key"), "--cert", image.file, "--ca", signer.file, "--crl", signer.revoke(t, nil, image), "-")
	if r.code != 1 || !strings.Contains(r.stderr, "revoked on") {
		t.Errorf("sign: exit %d\n%s", r.code, r.stderr)
	}
}

var delta = pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 27}, Critical: true, Value: []byte{2, 1, 1}}

func readFileText(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Keys that hpcrctl makes under a CA pass the check with that CA; openssl's own
// authority and list do as well.
func TestCertificateChainOfOpenssl(t *testing.T) {
	dir := t.TempDir()
	sh(t, dir, `openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 30 -subj /CN=CA
		touch index.txt; echo 01 > crlnumber
		printf '[ca]\ndefault_ca=d\n[d]\ndatabase=index.txt\ncrlnumber=crlnumber\ndefault_md=sha256\ndefault_crl_days=7\n' > ca.cnf
		openssl ca -config ca.cnf -gencrl -keyfile ca.key -cert ca.crt -out before.crl`)
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := initramfs.NewKeys(at("keys"), initramfs.KeyOptions{Flavour: "release", Days: 30, CAKey: at("ca.key"), CACert: at("ca.crt"), Now: time.Now()}); err != nil {
		t.Fatal(err)
	}
	sh(t, dir, `openssl verify -CAfile ca.crt keys/contract.crt
		openssl ca -config ca.cnf -revoke keys/contract.crt -keyfile ca.key -cert ca.crt
		openssl ca -config ca.cnf -gencrl -keyfile ca.key -cert ca.crt -out after.crl
		openssl crl -in after.crl -outform DER -out after.der`)
	for list, code := range map[string]int{"before.crl": 0, "after.crl": 1, "after.der": 1} {
		r := hpcrctl(t, "text", "contract", "encrypt", "--cert", at("keys/contract.crt"), "--ca", at("ca.crt"), "--crl", at(list), "--raw", "-")
		if r.code != code {
			t.Errorf("%s: exit %d, want %d\n%s", list, r.code, code, r.stderr)
		}
	}
}
