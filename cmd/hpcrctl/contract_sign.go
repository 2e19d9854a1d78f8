package main

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"hpcr/contract"
)

func newSignCmd() *cobra.Command {
	var (
		to                                      recipient
		signingKey, passphraseFile, signingCert string
	)
	cmd := &cobra.Command{
		Use:   "sign --signing-key KEY [--passphrase-file F] [--signing-cert CRT] --cert CRT [--ca F]… [--crl F]… FILE",
		Short: "Add the signing key to env, encrypt both sections, sign them",
		Long: `Turn a contract into a signed one: signingKey goes into env, env and workload
become tokens (a workload that is a token already stays), envWorkloadSignature
goes over both. The guest then refuses a contract whose two halves were not put
together by the holder of the key.

The signing key is RSA, of 2048 bits or more, in any PEM form that openssl
writes; a protected one takes its passphrase from the first line of
--passphrase-file. With --signing-cert the certificate goes into env in the
key's place, and the guest refuses the contract after the certificate's end.
Any private CA will do for it. One that has ended is refused here already.

` + recipientHelp,
		Example: `  openssl genrsa -aes128 -out sign.key 4096
  hpcrctl contract sign --signing-key sign.key --passphrase-file pass --cert keys/contract.crt contract.yaml > user-data
  hpcrctl contract sign --signing-key sign.key --signing-cert sign.crt --cert keys/contract.crt contract.yaml > user-data
  openssl rsa -in sign.key -pubout -out sign.pub      # for x-hpcr.require.signingKeys of the workload`,
		Args: oneFile,
		RunE: func(cmd *cobra.Command, args []string) error {
			if signingKey == "" {
				return usage("--signing-key KEY is missing: make one with openssl genrsa -aes128 -out sign.key 4096")
			}
			if err := to.check(); err != nil {
				return err
			}
			now := time.Now()
			image, err := to.key(cmd, now)
			if err != nil {
				return err
			}
			key, err := readSigningKey(cmd, signingKey, passphraseFile)
			if err != nil {
				return err
			}
			public, err := signersPEM(cmd, key, signingCert, now)
			if err != nil {
				return err
			}
			in, err := readInput(cmd, args[0])
			if err != nil {
				return err
			}
			out, err := signContract(cmd, in, key, public, to.prefix, image)
			if err != nil {
				return err
			}
			return emit(cmd, out)
		},
	}
	f := cmd.Flags()
	f.StringVar(&signingKey, "signing-key", "", "private RSA key (PEM)")
	f.StringVar(&passphraseFile, "passphrase-file", "", "file whose first line is the key's passphrase")
	f.StringVar(&signingCert, "signing-cert", "", "certificate of the signing key; its end is the contract's end")
	to.flags(f)
	to.complete(cmd)
	return cmd
}

// signersPEM is what goes into env: the public key, or its certificate.
func signersPEM(cmd *cobra.Command, key *rsa.PrivateKey, certFile string, now time.Time) ([]byte, error) {
	if certFile == "" {
		der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
		if err != nil {
			return nil, err
		}
		return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
	}
	cert, err := parseCertificate(cmd, certFile)
	if err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("%s does not belong to the signing key", certFile)
	}
	switch {
	case now.After(cert.NotAfter):
		return nil, fmt.Errorf("%s ended on %s, and every guest would refuse the contract: renew the certificate", certFile, cert.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(cert.NotBefore):
		return nil, fmt.Errorf("%s begins only on %s: check it, and this machine's clock", certFile, cert.NotBefore.UTC().Format(time.RFC3339))
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}), nil
}

func signContract(cmd *cobra.Command, in []byte, key *rsa.PrivateKey, public []byte, prefix string, image *rsa.PublicKey) ([]byte, error) {
	c, err := contract.ParseContract(in)
	if err != nil {
		return nil, err
	}
	env, ok, err := c.Value("env")
	switch {
	case err != nil:
		return nil, err
	case !ok:
		return nil, errors.New("the contract has no env")
	case contract.IsToken(env):
		return nil, errors.New("env is encrypted already, and the signing key has to go into it first: give the contract with env in plain text")
	}
	if err := contract.CheckSection("env", []byte(env)); err != nil {
		return nil, err
	}
	env, had, err := contract.WithSigningKey(env, base64.StdEncoding.EncodeToString(public))
	if err != nil {
		return nil, err
	}
	if had {
		fmt.Fprintln(cmd.ErrOrStderr(), "note: env had a signingKey already; it was replaced")
	}
	c.Set("env", env)
	for _, name := range []string{"workload", "env"} {
		if err := encryptSection(cmd, c, name, prefix, image); err != nil {
			return nil, err
		}
	}
	workload, _, err := c.Value("workload")
	if err != nil {
		return nil, err
	}
	env, _, err = c.Value("env")
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(workload + env))
	signature, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	c.Set("envWorkloadSignature", base64.StdEncoding.EncodeToString(signature))
	return c.Encode()
}
