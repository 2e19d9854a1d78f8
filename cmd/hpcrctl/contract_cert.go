package main

import (
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"hpcr/contract"
	"hpcr/initramfs"
)

// recipient is the image that a contract is encrypted for, and how much its
// certificate has to prove.
type recipient struct {
	cert, prefix string
	cas, crls    []string
}

// recipientHelp is the part of a command's help that goes with the flags.
const recipientHelp = `The certificate is checked first: its dates and the size of its key; with --ca
that it comes from the certificates named, of which each vouches for the next
(IBM's are: the IBM intermediate, DigiCert's CA, DigiCert's root); with --crl
that its issuer has not revoked it. A certificate that anybody could have put in
your way lets anybody read the contract: without --ca compare its fingerprint
with one that you have from a better source.`

func (r *recipient) flags(f *pflag.FlagSet) {
	f.StringVar(&r.cert, "cert", "", "the image's contract.crt")
	f.StringVar(&r.prefix, "prefix", contract.PrefixHPCR, "token prefix: "+contract.PrefixHPCR+", or "+contract.PrefixCCRT+" for CCRT images of 2026 and later")
	f.StringArrayVar(&r.cas, "ca", nil, "certificate that vouches for --cert, PEM or DER (several allowed, all are needed)")
	f.StringArrayVar(&r.crls, "crl", nil, "revocation list of an issuer among --ca, PEM or DER (several allowed)")
}

// complete gives the shell what it cannot know.
func (r *recipient) complete(cmd *cobra.Command) {
	fixed(cmd, "prefix", contract.PrefixHPCR, contract.PrefixCCRT)
}

// fixed tells completion a flag's values.
func fixed(cmd *cobra.Command, flag string, values ...string) {
	if err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // a flag that does not exist
	}
}

// check finds wrong usage before anything is read.
func (r *recipient) check() error {
	switch {
	case r.cert == "":
		return usage("--cert CRT is missing: the image's contract.crt")
	case r.prefix != contract.PrefixHPCR && r.prefix != contract.PrefixCCRT:
		return usage("--prefix must be %s or %s", contract.PrefixHPCR, contract.PrefixCCRT)
	case len(r.crls) > 0 && len(r.cas) == 0:
		return usage("--crl needs --ca: a list that nobody vouches for says nothing")
	}
	return nil
}

// key reads the certificate and returns its key, if it may be used.
func (r *recipient) key(cmd *cobra.Command, now time.Time) (*rsa.PublicKey, error) {
	cert, err := parseCertificate(cmd, r.cert)
	if err != nil {
		return nil, err
	}
	note := func(format string, args ...any) { fmt.Fprintf(cmd.ErrOrStderr(), "note: "+format+"\n", args...) }
	key, ok := cert.PublicKey.(*rsa.PublicKey)
	switch {
	case !ok:
		return nil, fmt.Errorf("%s holds no RSA key: take the contract encryption certificate of an image", r.cert)
	case key.N.BitLen() < 2048:
		return nil, fmt.Errorf("%s has an RSA key of %d bits, which can be broken: images have 4096", r.cert, key.N.BitLen())
	case key.N.BitLen() != 4096:
		note("%s has an RSA key of %d bits; images of IBM and of hpcrctl keys new have 4096", r.cert, key.N.BitLen())
	}
	if err := checkCertificateDates(cert, now); err != nil {
		return nil, fmt.Errorf("%s: %w", r.cert, err)
	}
	if len(r.cas) > 0 {
		if err := r.checkChain(cmd, cert, now, note); err != nil {
			return nil, err
		}
	} else if len(cert.CRLDistributionPoints) > 0 {
		note("%s names a revocation list at %s: fetch it, and check it with --ca and --crl", r.cert, shown(cert.CRLDistributionPoints[0]))
	}
	if left := cert.NotAfter.Sub(now); left < 30*24*time.Hour {
		note("%s ends on %s", r.cert, cert.NotAfter.UTC().Format(time.RFC3339))
	}
	if initramfs.CertificateFlavour(cert) == initramfs.FlavourDev {
		note("%s is of a dev image: its key lies open in the image, so put no real secret into this contract", r.cert)
	}
	return key, nil
}

// parseCertificate reads the one certificate of a file.
func parseCertificate(cmd *cobra.Command, name string) (*x509.Certificate, error) {
	certs, err := parseCertificates(cmd, name)
	if err != nil {
		return nil, err
	}
	return certs[0], nil
}

// parseCertificates reads all certificates of a file, PEM or DER.
func parseCertificates(cmd *cobra.Command, name string) ([]*x509.Certificate, error) {
	blocks, err := readBlocks(cmd, name, "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	var certs []*x509.Certificate
	for _, der := range blocks {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, usage("%s is not a certificate: %w", name, err)
		}
		certs = append(certs, cert)
	}
	return certs, nil
}

// readBlocks takes the PEM blocks of a kind out of a file; one without any PEM
// is taken as DER.
func readBlocks(cmd *cobra.Command, name, kind string) ([][]byte, error) {
	text, err := readInput(cmd, name)
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(text)
	if block == nil && len(text) > 0 && text[0] == 0x30 { // an ASN.1 sequence
		return [][]byte{text}, nil
	}
	var blocks [][]byte
	for ; block != nil; block, rest = pem.Decode(rest) {
		if block.Type == kind {
			blocks = append(blocks, block.Bytes)
		}
	}
	if len(blocks) == 0 {
		return nil, usage("%s holds no %s in PEM or DER form", name, kind)
	}
	return blocks, nil
}

func checkCertificateDates(cert *x509.Certificate, now time.Time) error {
	switch {
	case now.After(cert.NotAfter):
		return fmt.Errorf("the certificate ended on %s: take the one of a current image", cert.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(cert.NotBefore):
		return fmt.Errorf("the certificate begins only on %s: check it, and this machine's clock", cert.NotBefore.UTC().Format(time.RFC3339))
	}
	return nil
}
