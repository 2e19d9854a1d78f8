package main

import (
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"hpcr/agent/secret"
	"hpcr/contract"
)

func init() { commands = append(commands, newContractCmd) }

func newContractCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "contract",
		Short: "Check, encrypt, sign and open contracts",
		Long: `A contract is a YAML mapping with two texts, workload and env. Each may be
plain or a token, encrypted for one image with that image's contract.crt.

The usual way of a contract that two people write:
  provider   hpcrctl contract encrypt --cert contract.crt --section workload workload.yaml > workload.token
  deployer   puts the token behind "workload:" of contract.yaml, and writes env
  deployer   hpcrctl contract sign --signing-key sign.key --cert contract.crt contract.yaml > user-data

FILE may be - for standard input. Results go to stdout.`,
		Args: cobra.NoArgs,
		RunE: needsSubcommand,
	}
	cmd.AddCommand(newLintCmd(), newOpenCmd(), newEncryptCmd(), newSignCmd())
	return cmd
}

// maxInput bounds what is read from a file or from standard input.
const maxInput = 64 << 20

// readInput reads a file, or standard input for "-".
func readInput(cmd *cobra.Command, name string) ([]byte, error) {
	in := cmd.InOrStdin()
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, &exitError{2, err}
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, maxInput+1))
	if err != nil {
		return nil, usage("read %s: %w", name, err)
	}
	if len(b) > maxInput {
		return nil, fmt.Errorf("%s is larger than 64 MiB", name)
	}
	return b, nil
}

// readKeys reads private keys of images. The caller wipes them.
func readKeys(cmd *cobra.Command, names []string) ([]*secret.Secret, error) {
	var keys []*secret.Secret
	for _, name := range names {
		b, err := readInput(cmd, name)
		if err != nil {
			return nil, err
		}
		k := secret.New(b)
		keys = append(keys, k)
		if _, err := contract.ParseContractKey(k.Bytes()); err != nil {
			return nil, usage("%s: %w", name, err)
		}
	}
	return keys, nil
}

func wipe(keys []*secret.Secret) {
	for _, k := range keys {
		k.Wipe()
	}
}

// readCertificate reads an image's contract.crt and refuses it outside its
// dates: a contract for it could not be opened by an image that is still in
// use.
func readCertificate(cmd *cobra.Command, name string, now time.Time) (*rsa.PublicKey, error) {
	cert, err := parseCertificate(cmd, name)
	if err != nil {
		return nil, err
	}
	key, ok := cert.PublicKey.(*rsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("%s: a contract certificate holds an RSA key", name)
	}
	if err := checkCertificateDates(cert, now); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if left := cert.NotAfter.Sub(now); left < 30*24*time.Hour {
		fmt.Fprintf(cmd.ErrOrStderr(), "note: %s ends on %s\n", name, cert.NotAfter.UTC().Format(time.RFC3339))
	}
	return key, nil
}

func parseCertificate(cmd *cobra.Command, name string) (*x509.Certificate, error) {
	b, err := readInput(cmd, name)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, usage("%s is not a PEM certificate", name)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, usage("%s: %w", name, err)
	}
	return cert, nil
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

// emit writes a result byte for byte.
func emit(cmd *cobra.Command, b []byte) error {
	if _, err := cmd.OutOrStdout().Write(b); err != nil {
		return usage("write the result: %w", err)
	}
	return nil
}

// oneFile is Args for commands that take exactly one FILE.
func oneFile(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return errors.New("name exactly one FILE (- = standard input)")
	}
	return nil
}
