package main

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"hpcr/contract"
)

func newOpenCmd() *cobra.Command {
	var (
		keys    []string
		section string
	)
	cmd := &cobra.Command{
		Use:   "open --key KEY [--section S] FILE",
		Short: "Decrypt a contract, one of its sections, or a bare token",
		Long: `Decrypt what was encrypted for an image, with the image's contract.key.

FILE is a contract, which comes out with every token replaced by its text, as a
guest writes user-data.decrypted; with --section it is that section's exact
text. Or FILE is a bare token, which comes out as its exact plaintext, byte for
byte. Nothing is checked beyond the decryption: see contract lint.`,
		Example: `  hpcrctl contract open --key keys/contract.key user-data
  hpcrctl contract open --key keys/contract.key --section env user-data
  hpcrctl contract open --key keys/contract.key workload.token`,
		Args: oneFile,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(keys) == 0 {
				return usage("--key KEY is missing")
			}
			private, err := readKeys(cmd, keys)
			if err != nil {
				return err
			}
			defer wipe(private)
			in, err := readInput(cmd, args[0])
			if err != nil {
				return err
			}
			if token := string(bytes.TrimSpace(in)); contract.IsToken(token) {
				if section != "" {
					return usage("--section is for contracts; %s is a bare token", args[0])
				}
				plain, err := contract.OpenBare(token, private)
				if err != nil {
					return err
				}
				defer plain.Wipe()
				return emit(cmd, plain.Bytes())
			}
			if bytes.HasPrefix(in, []byte(contract.PrefixHPCR+".")) || bytes.HasPrefix(in, []byte(contract.PrefixCCRT+".")) {
				return errors.New("the token is damaged: it has three parts, joined by dots, of base64 without line breaks")
			}
			opened, err := contract.Open(in, private)
			if err != nil {
				return err
			}
			defer opened.Wipe()
			if section == "" {
				return emit(cmd, opened.UserData.Bytes())
			}
			text, ok := opened.Sections[section]
			if !ok {
				return fmt.Errorf("the contract has no %s", section)
			}
			return emit(cmd, text.Bytes())
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&keys, "key", nil, "the image's contract.key (several allowed)")
	f.StringVar(&section, "section", "", "print only this key's text: workload, env, attestationPublicKey, …")
	fixed(cmd, "section", "workload", "env", "attestationPublicKey", "envWorkloadSignature")
	return cmd
}
