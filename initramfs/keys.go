package initramfs

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"time"

	"hpcr/agent/secret"
)

// Flavours of keys and images.
const (
	FlavourDev     = "dev"
	FlavourRelease = "release"
)

const keyBits = 4096

// MaxKeys is how many contract keys the guest tries; a test there compares.
const MaxKeys = 16

// flavourUnit is the organizational unit by which a certificate of ours says
// what image its key may enter.
func flavourUnit(flavour string) string { return "hpcr " + flavour + " image" }

// CertificateFlavour is the flavour that a certificate of ours carries, "" for
// one made by others.
func CertificateFlavour(crt *x509.Certificate) string {
	for _, f := range []string{FlavourDev, FlavourRelease} {
		if slices.Contains(crt.Subject.OrganizationalUnit, flavourUnit(f)) {
			return f
		}
	}
	return ""
}

// Keys is a keys folder, read.
type Keys struct {
	Flavour                           string
	ContractKey, AttestationKey       *secret.Secret // PEM PKCS#8; the caller of ReadKeys wipes them
	ContractCert, AttestationCert     []byte         // PEM
	ContractPublic, AttestationPublic []byte         // PEM
}

// Wipe overwrites the private keys.
func (k *Keys) Wipe() {
	k.ContractKey.Wipe()
	k.AttestationKey.Wipe()
}

// ReadKeys reads a keys folder and checks that it is whole: keys fit their
// certificates, and the certificates say no other flavour than keys.json.
func ReadKeys(dir string) (*Keys, error) {
	flavour, err := readFlavour(filepath.Join(dir, "keys.json"))
	if err != nil {
		return nil, err
	}
	k := &Keys{Flavour: flavour}
	if k.ContractKey, k.ContractCert, k.ContractPublic, err = readPair(dir, "contract", k.Flavour); err != nil {
		return nil, err
	}
	if k.AttestationKey, k.AttestationCert, k.AttestationPublic, err = readPair(dir, "attestation", k.Flavour); err != nil {
		k.ContractKey.Wipe()
		return nil, err
	}
	return k, nil
}

// readFlavour reads keys.json; without one, as in a folder made by hand, the
// keys are dev's. It is strict: a misspelt flavour must not become dev's.
func readFlavour(file string) (string, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return FlavourDev, nil
	}
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrEnvironment, err)
	}
	var meta struct {
		Flavour string `json:"flavour"`
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&meta); err != nil {
		return "", fmt.Errorf("%s: %w", file, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return "", fmt.Errorf("%s: more than one JSON object", file)
	}
	if meta.Flavour != FlavourDev && meta.Flavour != FlavourRelease {
		return "", fmt.Errorf(`%s: flavour must be "dev" or "release"`, file)
	}
	return meta.Flavour, nil
}

func readPair(dir, name, flavour string) (key *secret.Secret, cert, public []byte, err error) {
	keyFile, certFile := filepath.Join(dir, name+".key"), filepath.Join(dir, name+".crt")
	raw, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("%w: %w", ErrEnvironment, err)
	}
	defer clear(raw)
	private, err := parseKey(raw)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("%s: %w", keyFile, err)
	}
	rsaKey, ok := private.(*rsa.PrivateKey)
	if !ok || rsaKey.N.BitLen() < 2048 {
		return nil, nil, nil, fmt.Errorf("%s: must be an RSA key of at least 2048 bits (%d are usual)", keyFile, keyBits)
	}
	if cert, err = os.ReadFile(certFile); err != nil {
		return nil, nil, nil, fmt.Errorf("%w: %w", ErrEnvironment, err)
	}
	crt, err := parseCert(cert)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("%s: %w", certFile, err)
	}
	if pub, ok := crt.PublicKey.(*rsa.PublicKey); !ok || !pub.Equal(rsaKey.Public()) {
		return nil, nil, nil, fmt.Errorf("%s is the certificate of another key than %s", certFile, keyFile)
	}
	if f := CertificateFlavour(crt); f != "" && f != flavour {
		return nil, nil, nil, fmt.Errorf("%s is for %s images, but the folder is for %s (keys.json; without it dev)", certFile, f, flavour)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("%s: %w", keyFile, err)
	}
	defer clear(der)
	spki, err := x509.MarshalPKIXPublicKey(rsaKey.Public())
	if err != nil {
		return nil, nil, nil, fmt.Errorf("%s: %w", keyFile, err)
	}
	key = secret.New(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	return key, cert, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}), nil
}

// parseKey reads PEM of PKCS#8, or PKCS#1 as older openssl writes it.
func parseKey(data []byte) (crypto.PrivateKey, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, errors.New("holds no PEM block")
	}
	switch block.Type {
	case "PRIVATE KEY":
		return x509.ParsePKCS8PrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		if block.Headers["DEK-Info"] == "" {
			return x509.ParsePKCS1PrivateKey(block.Bytes)
		}
		fallthrough
	case "ENCRYPTED PRIVATE KEY":
		return nil, errors.New("is protected by a passphrase, which nobody could type at boot: store it without (openssl pkcs8 -topk8 -nocrypt)")
	case "EC PRIVATE KEY":
		return x509.ParseECPrivateKey(block.Bytes)
	}
	return nil, fmt.Errorf("holds a %q where a private key is expected", block.Type)
}

func parseCert(data []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("holds no PEM certificate")
	}
	return x509.ParseCertificate(block.Bytes)
}

// KeyOptions say how NewKeys makes a keys folder.
type KeyOptions struct {
	Flavour       string
	CAKey, CACert string // files; "" = self-signed
	Days          int
	Now           time.Time
}

// NewKeys makes a keys folder. It never overwrites: a lost contract key makes
// every contract for its image unreadable.
func NewKeys(dir string, o KeyOptions) error {
	if o.Flavour != FlavourDev && o.Flavour != FlavourRelease {
		return fmt.Errorf("%w: flavour must be dev or release", ErrEnvironment)
	}
	var ca *x509.Certificate
	var caKey crypto.PrivateKey
	if o.CAKey != "" {
		raw, err := os.ReadFile(o.CAKey)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrEnvironment, err)
		}
		defer clear(raw)
		if caKey, err = parseKey(raw); err != nil {
			return fmt.Errorf("%s: %w", o.CAKey, err)
		}
		data, err := os.ReadFile(o.CACert)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrEnvironment, err)
		}
		if ca, err = parseCert(data); err != nil {
			return fmt.Errorf("%s: %w", o.CACert, err)
		}
		pub, ok := ca.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
		signer, ok2 := caKey.(crypto.Signer)
		if !ok || !ok2 || !pub.Equal(signer.Public()) {
			return fmt.Errorf("%s is the certificate of another key than %s", o.CACert, o.CAKey)
		}
		if !ca.IsCA {
			return fmt.Errorf("%s is no CA certificate (basicConstraints CA:TRUE)", o.CACert)
		}
	}
	for _, name := range []string{"contract.key", "contract.crt", "attestation.key", "attestation.crt", "keys.json"} {
		if exists(filepath.Join(dir, name)) {
			return fmt.Errorf("%s exists already: choose a new folder, keys are never overwritten", filepath.Join(dir, name))
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("%w: %w", ErrEnvironment, err)
	}
	for _, name := range []string{"contract", "attestation"} {
		if err := newPair(dir, name, o, ca, caKey); err != nil {
			return err
		}
	}
	return exclusive(filepath.Join(dir, "keys.json"), fmt.Appendf(nil, "{\"flavour\":%q}\n", o.Flavour), 0o644)
}

func newPair(dir, name string, o KeyOptions, ca *x509.Certificate, caKey crypto.PrivateKey) error {
	key, err := rsa.GenerateKey(rand.Reader, keyBits)
	if err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return err
	}
	usage := x509.KeyUsageKeyEncipherment | x509.KeyUsageDataEncipherment
	if name == "attestation" {
		usage = x509.KeyUsageDigitalSignature
	}
	cert := &x509.Certificate{
		SerialNumber: serial.Add(serial, big.NewInt(1)),
		Subject: pkix.Name{
			Organization:       []string{"hpcr"},
			OrganizationalUnit: []string{flavourUnit(o.Flavour)},
			CommonName:         "hpcr " + name,
		},
		NotBefore:             o.Now.Add(-time.Hour).UTC(), // builders' clocks differ a little
		NotAfter:              o.Now.AddDate(0, 0, o.Days).UTC(),
		KeyUsage:              usage,
		BasicConstraintsValid: true,
	}
	parent, signer := cert, crypto.PrivateKey(key)
	if ca != nil {
		parent, signer = ca, caKey
	}
	crt, err := x509.CreateCertificate(rand.Reader, cert, parent, key.Public(), signer)
	if err != nil {
		return fmt.Errorf("certificate of the %s key: %w", name, err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	defer clear(der)
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	defer clear(text)
	if err := exclusive(filepath.Join(dir, name+".key"), text, 0o600); err != nil {
		return err
	}
	return exclusive(filepath.Join(dir, name+".crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: crt}), 0o644)
}

// exclusive writes a file that must not exist yet.
func exclusive(name string, data []byte, mode os.FileMode) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Chmod(mode), f.Close())
}

// keysTree is the keys archive of an image: the first folder signs, each adds
// a contract key. Modes keep everyone but root out; the agent destroys them.
func keysTree(folders []*Keys) *Tree {
	t := NewTree()
	t.Dir("keys", 0o700)
	for i, k := range folders {
		dir := fmt.Sprintf("keys/%d", i)
		t.Dir(dir, 0o700)
		t.File(dir+"/contract.key", 0o400, k.ContractKey.Bytes())
	}
	first := folders[0]
	t.File("keys/attestation.key", 0o400, first.AttestationKey.Bytes())
	t.File("keys/contract.crt", 0o444, first.ContractCert)
	t.File("keys/attestation.crt", 0o444, first.AttestationCert)
	return t
}

// sameKeys says whether two folders hold one contract key, which would only
// make every boot try it twice.
func sameKeys(folders []*Keys) error {
	for i, k := range folders {
		if j := slices.IndexFunc(folders[:i], func(o *Keys) bool { return bytes.Equal(o.ContractPublic, k.ContractPublic) }); j >= 0 {
			return fmt.Errorf("key folders %d and %d hold the same contract key", j+1, i+1)
		}
	}
	return nil
}
