package main

import (
	"crypto/rsa"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"hpcr/contract"
)

func newEncryptCmd() *cobra.Command {
	var (
		to      recipient
		section string
		raw     bool
	)
	cmd := &cobra.Command{
		Use:   "encrypt --cert CRT [--ca F]… [--crl F]… [--prefix P] (FILE | --section S FILE | --raw FILE)",
		Short: "Encrypt a contract, one section for hand-over, or any file",
		Long: `Encrypt for the image whose contract.crt is given. Only that image's contract.key
opens the result.

  FILE             a whole contract: workload and env become tokens, what is a
                   token already stays, other keys stay as they are
  --section S FILE the text of one section (type: workload …, without the
                   workload: line) becomes its token, to be handed to the other
                   persona; S is workload, env or attestationPublicKey
  --raw FILE       any bytes become one token

Each token has a password of its own, of 32 printable characters: tools that
drop NUL bytes or stop at line ends open it as well.

` + recipientHelp,
		Example: `  hpcrctl contract encrypt --cert keys/contract.crt contract.yaml > user-data
  hpcrctl contract encrypt --cert keys/contract.crt --section workload workload.yaml > workload.token
  hpcrctl contract encrypt --cert keys/contract.crt --raw settings.tgz > settings.token
  hpcrctl contract encrypt --cert ibm-encrypt.crt --ca ibm-intermediate.crt --ca digicert-ca.crt --ca digicert-root.crt \
    --crl ibm-intermediate.crl --prefix contract-basic contract.yaml > user-data`,
		Args: oneFile,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := to.check(); err != nil {
				return err
			}
			switch {
			case raw && section != "":
				return usage("--raw and --section exclude each other")
			case section != "" && section != "workload" && section != "env" && section != "attestationPublicKey":
				return usage("--section must be workload, env or attestationPublicKey")
			}
			key, err := to.key(cmd, time.Now())
			if err != nil {
				return err
			}
			in, err := readInput(cmd, args[0])
			if err != nil {
				return err
			}
			var out []byte
			switch {
			case raw:
				out, err = sealOne(to.prefix, key, in)
			case section != "":
				if err = checkSection(section, in); err == nil {
					out, err = sealOne(to.prefix, key, in)
				}
			default:
				out, err = encryptContract(cmd, to.prefix, key, in)
			}
			if err != nil {
				return err
			}
			return emit(cmd, out)
		},
	}
	f := cmd.Flags()
	to.flags(f)
	f.StringVar(&section, "section", "", "FILE is the text of this section")
	f.BoolVar(&raw, "raw", false, "FILE is any bytes")
	to.complete(cmd)
	fixed(cmd, "section", "workload", "env", "attestationPublicKey")
	return cmd
}

func sealOne(prefix string, key *rsa.PublicKey, plain []byte) ([]byte, error) {
	token, err := contract.Seal(prefix, key, plain)
	return []byte(token), err
}

func checkSection(name string, text []byte) error {
	if contract.IsToken(string(text)) {
		return errors.New("this is a token already")
	}
	if name == "attestationPublicKey" {
		return contract.CheckAttestationKey(text)
	}
	return contract.CheckSection(name, text)
}

// encryptContract turns the plain sections of a whole contract into tokens.
func encryptContract(cmd *cobra.Command, prefix string, key *rsa.PublicKey, in []byte) ([]byte, error) {
	c, err := contract.ParseContract(in)
	if err != nil {
		return nil, err
	}
	if _, signed, err := c.Value("envWorkloadSignature"); err != nil {
		return nil, err
	} else if signed {
		return nil, errors.New("the contract is signed, and encryption would break the signature: remove envWorkloadSignature and use contract sign")
	}
	for _, name := range []string{"workload", "env"} {
		if err := encryptSection(cmd, c, name, prefix, key); err != nil {
			return nil, err
		}
	}
	return c.Encode()
}

// encryptSection replaces one section by its token; a token stays.
func encryptSection(cmd *cobra.Command, c *contract.Contract, name, prefix string, key *rsa.PublicKey) error {
	text, ok, err := c.Value(name)
	switch {
	case err != nil:
		return err
	case !ok:
		return fmt.Errorf("the contract has no %s", name)
	case contract.IsToken(text):
		fmt.Fprintf(cmd.ErrOrStderr(), "note: %s is a token already and stays as it is\n", name)
		return nil
	}
	if err := contract.CheckSection(name, []byte(text)); err != nil {
		return err
	}
	token, err := contract.Seal(prefix, key, []byte(text))
	if err != nil {
		return err
	}
	c.Set(name, token)
	return nil
}
