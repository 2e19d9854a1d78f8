package boot

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"hpcr/agent/attest"
	"hpcr/agent/event"
	"hpcr/agent/hpl"
	"hpcr/contract"
)

// signRecord writes down what this guest runs, has it signed, and destroys the
// attestation key.
func (g *Guest) signRecord(ctx context.Context) error {
	g.Console.Bootloader("create attestation data")
	expiry, err := g.certificates()
	if err != nil {
		return err
	}
	if err := g.recordEndpoints(); err != nil {
		return err
	}
	sum := sha256.Sum256(expiry)
	g.record.Add(attest.Fact{Name: "certificate_expiry_date.json", SHA256: hex.EncodeToString(sum[:])})
	text, err := g.record.Text()
	if err != nil {
		return err
	}
	key, err := os.Open(attestationKey)
	if err != nil {
		return err
	}
	defer key.Close()
	signature, err := attest.Sign(ctx, "/bin/signer", key, text)
	if err != nil {
		return hpl.Wrap(err, "HPL11000E", "", "the attestation record could not be signed")
	}
	if err := destroy(attestationKey); err != nil {
		return err
	}
	checksums := attest.File{Name: "se-checksums.txt", Data: text}
	if pub := g.plan.AttestationPublicKey; pub != nil {
		g.Console.Bootloader("encrypt attestation document...")
		token, err := attest.Encrypt(pub, text)
		if err != nil {
			return hpl.Wrap(err, "HPL11002E", "/attestationPublicKey", "give an RSA public key in PEM, or its base64")
		}
		checksums = attest.File{Name: "se-checksums.txt.enc", Data: token}
	}
	files := []attest.File{
		checksums,
		{Name: "se-signature.bin", Data: signature},
		{Name: "se-version", Data: []byte(g.Image.Version + "\n")},
		{Name: "certificate_expiry_date.json", Data: expiry},
		{Name: "cidata/meta-data", Data: g.plan.MetaData},
		{Name: "cidata/vendor-data", Data: g.plan.VendorData},
	}
	if g.plan.WorkloadDataDecrypted.Len() > 0 { // a container mounts them
		files = append(files,
			attest.File{Name: "user-data.decrypted", Data: g.plan.UserDataMasked.Bytes()},
			attest.File{Name: "workload-data.decrypted", Data: g.plan.WorkloadDataDecrypted.Bytes(), OwnerWrites: true})
	}
	err = attest.Write(attest.Dir, files)
	g.plan.UserDataMasked.Wipe()
	g.plan.WorkloadDataDecrypted.Wipe()
	if err != nil {
		return err
	}
	g.note(event.RecordSigned, event.Notice, "attestation record signed", slog.String("sha256", fmt.Sprintf("%x", sha256.Sum256(text))))
	return nil
}

// certificates adds the image's age and the ends of its certificates to the
// record and returns certificate_expiry_date.json.
func (g *Guest) certificates() ([]byte, error) {
	age := int(g.now().Sub(g.Image.Built()) / (24 * time.Hour))
	g.record.Add(attest.Fact{Name: "Image age", Text: fmt.Sprintf("%d days since creation.", age)})
	ends := map[string]string{}
	for _, c := range []struct {
		file, label, key string
		code             hpl.Code
	}{
		{keysDir + "/contract.crt", "Encryption Certificate valid until", "encryption", "HPL12011W"},
		{keysDir + "/attestation.crt", "Attestation Certificate valid until", "attestation", "HPL12013W"},
	} {
		crt, err := readCertificate(c.file)
		if err != nil {
			return nil, err
		}
		end := crt.NotAfter
		g.ends = append(g.ends, certificate{name: c.key, schedule: always(contract.ImageSchedule(end)), ending: c.code, ended: c.code})
		ends[c.key] = end.UTC().Format(time.RFC3339)
		g.record.Add(attest.Fact{Name: c.label, Text: attest.ValidUntil(end)})
	}
	// Here, not when they are watched: the management listener reads the list.
	if end := g.plan.SignerNotAfter; !end.IsZero() {
		g.ends = append(g.ends, certificate{name: "signing", schedule: always(contract.SignerSchedule(end)), valid: "HPL12005I", ending: "HPL12006W", ended: "HPL12007W"})
	}
	return json.Marshal(ends)
}

func readCertificate(path string) (*x509.Certificate, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, errors.New(path + " is not PEM")
	}
	crt, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return crt, nil
}
