package main

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

// x509's own verifier cannot be used: the certificate that issues IBM's
// contract certificates is a code signer's and no CA (contract.md §1.3). So the
// chain is made of certificates that the user named, each of them, and names
// nothing else as trusted.

// voucher is a certificate of one --ca file.
type voucher struct {
	*x509.Certificate
	file string
}

// checkChain wants a chain from the certificate to one whose issuer was not
// given, with a part for each --ca file.
func (r *recipient) checkChain(cmd *cobra.Command, cert *x509.Certificate, now time.Time, note func(string, ...any)) error {
	var given []voucher
	for _, file := range r.cas {
		certs, err := parseCertificates(cmd, file)
		if err != nil {
			return err
		}
		for _, c := range certs {
			given = append(given, voucher{c, file})
		}
	}
	chain, err := buildChain(voucher{cert, r.cert}, given, now)
	if err != nil {
		return err
	}
	used := map[string]bool{}
	for _, c := range chain[1:] {
		used[c.file] = true
		if !c.IsCA {
			note("%s is no CA's certificate; it counts because you named it, as IBM's has to", c.file)
		}
	}
	for _, file := range r.cas {
		if !used[file] {
			return fmt.Errorf("%s does not vouch for %s: give only certificates of its chain, and get them anew if this is one", file, r.cert)
		}
	}
	return r.checkRevocation(cmd, chain, now)
}

// buildChain goes from a certificate to its issuer, and on. Whoever is named as
// an issuer and was given must have signed.
func buildChain(cert voucher, given []voucher, now time.Time) ([]voucher, error) {
	chain := []voucher{cert}
	for {
		last := chain[len(chain)-1]
		if len(chain) > 1 && bytes.Equal(last.RawIssuer, last.RawSubject) {
			return chain, nil
		}
		issuer, named := findIssuer(last, given)
		switch {
		case issuer.Certificate == nil && named:
			return nil, fmt.Errorf("%s was not signed by the certificate of its issuer that --ca gives: one of the two is not genuine", last.file)
		case issuer.Certificate == nil && len(chain) == 1:
			return nil, fmt.Errorf("%s was issued by %s, whose certificate is not among --ca", last.file, shown(last.Issuer.String()))
		case issuer.Certificate == nil:
			return chain, nil // trusted because it was named
		case len(chain) > len(given):
			return nil, errors.New("the certificates of --ca vouch for each other in a circle")
		}
		if err := checkCertificateDates(issuer.Certificate, now); err != nil {
			return nil, fmt.Errorf("%s: %w", issuer.file, err)
		}
		chain = append(chain, issuer)
	}
}

// findIssuer says whether an issuer of that name is given, and which of them
// signed, if any.
func findIssuer(cert voucher, given []voucher) (issuer voucher, named bool) {
	for _, g := range given {
		if !bytes.Equal(g.RawSubject, cert.RawIssuer) {
			continue
		}
		named = true
		if g.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature) == nil {
			return g, true
		}
	}
	return voucher{}, named
}

// checkRevocation wants no certificate of the chain on a list, and the list of
// the contract certificate's own issuer among those given.
func (r *recipient) checkRevocation(cmd *cobra.Command, chain []voucher, now time.Time) error {
	covered := len(r.crls) == 0
	for _, file := range r.crls {
		blocks, err := readBlocks(cmd, file, "X509 CRL")
		if err != nil {
			return err
		}
		for _, der := range blocks {
			list, err := x509.ParseRevocationList(der)
			if err != nil {
				return usage("%s is not a revocation list: %w", file, err)
			}
			i, err := issuerOf(list, chain)
			if err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			if err := checkList(list, now); err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			covered = covered || i == 1
			subject := chain[i-1]
			for _, e := range list.RevokedCertificateEntries {
				if e.SerialNumber.Cmp(subject.SerialNumber) == 0 {
					return fmt.Errorf("%s was revoked on %s: do not start its image any more, and take a current image's certificate", subject.file, e.RevocationTime.UTC().Format(time.RFC3339))
				}
			}
		}
	}
	if !covered {
		return fmt.Errorf("no list of --crl is by the issuer of %s: fetch the one that the certificate names", r.cert)
	}
	return nil
}

// issuerOf finds who signed a list: the i-th of the chain, who vouches for the
// one before.
func issuerOf(list *x509.RevocationList, chain []voucher) (int, error) {
	for i := 1; i < len(chain); i++ {
		c := chain[i]
		if !bytes.Equal(c.RawSubject, list.RawIssuer) {
			continue
		}
		if err := c.CheckSignature(list.SignatureAlgorithm, list.RawTBSRevocationList, list.Signature); err != nil {
			return 0, errors.New("the list was not signed by its issuer: fetch it again")
		}
		return i, nil
	}
	return 0, fmt.Errorf("the list is by %s, who is not in the chain of --ca", shown(list.Issuer.String()))
}

var distributionPoint = asn1.ObjectIdentifier{2, 5, 29, 28}

// checkList refuses a list that is not current, or that says less than it seems.
func checkList(list *x509.RevocationList, now time.Time) error {
	switch {
	case now.Before(list.ThisUpdate):
		return fmt.Errorf("the list begins only on %s: check this machine's clock", list.ThisUpdate.UTC().Format(time.RFC3339))
	case !list.NextUpdate.IsZero() && now.After(list.NextUpdate):
		return fmt.Errorf("the list was good until %s: fetch a current one", list.NextUpdate.UTC().Format(time.RFC3339))
	}
	for _, e := range list.Extensions {
		if e.Critical && !e.Id.Equal(distributionPoint) {
			return errors.New("the list is of a kind that is not understood (a delta list?): fetch the full one")
		}
	}
	return nil
}
