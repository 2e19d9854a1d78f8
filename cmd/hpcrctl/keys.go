package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"hpcr/initramfs"
)

func init() { commands = append(commands, newKeysCmd) }

func newKeysCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "keys", Short: "Make the keys of an image", Args: cobra.NoArgs, RunE: needsSubcommand}
	var o initramfs.KeyOptions
	var out string
	create := &cobra.Command{
		Use:   "new --out DIR",
		Short: "Make a keys folder: contract key and attestation key with their certificates",
		Long: `Make a keys folder for image build:

  contract.key, contract.crt        contracts are encrypted with the certificate;
                                    give it to workload providers and deployers
  attestation.key, attestation.crt  the record of a boot is signed with the key;
                                    give the certificate to auditors
  keys.json                         the flavour of images the keys may enter

Keys are RSA-4096, PKCS#8, mode 0600, without a passphrase: whoever reads the
folder reads every contract. Nothing is ever overwritten. A folder made by hand
with openssl works as well.

Certificates are self-signed unless --ca-key and --ca-cert name a CA.`,
		Example: `  hpcrctl keys new --out keys
  hpcrctl keys new --out keys-prod --flavour release --ca-key ca.key --ca-cert ca.crt --days 365`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case out == "":
				return usage("--out DIR is missing")
			case (o.CAKey == "") != (o.CACert == ""):
				return usage("--ca-key and --ca-cert belong together")
			case o.Days < 1 || o.Days > 36500:
				return usage("--days must be from 1 to 36500")
			case o.Flavour != initramfs.FlavourDev && o.Flavour != initramfs.FlavourRelease:
				return usage(`--flavour must be "dev" or "release"`)
			}
			o.Now = time.Now()
			if err := initramfs.NewKeys(out, o); err != nil {
				return environment(err)
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "made %s keys in %s, valid for %d days\n", o.Flavour, out, o.Days)
			return nil
		},
	}
	f := create.Flags()
	f.StringVar(&out, "out", "", "folder to make")
	f.StringVar(&o.Flavour, "flavour", initramfs.FlavourDev, "images the keys may enter: dev or release")
	f.StringVar(&o.CAKey, "ca-key", "", "private key of the CA that signs the certificates (PEM)")
	f.StringVar(&o.CACert, "ca-cert", "", "certificate of that CA (PEM)")
	f.IntVar(&o.Days, "days", 3650, "validity of the certificates")
	cmd.AddCommand(create)
	return cmd
}

// needsSubcommand is a group's own run: naming the group alone is wrong usage.
func needsSubcommand(cmd *cobra.Command, args []string) error {
	if err := cmd.Help(); err != nil {
		return err
	}
	return usage("%s: name one of its commands", cmd.CommandPath())
}

// environment turns what the machine lacks into exit status 2.
func environment(err error) error {
	if errors.Is(err, initramfs.ErrEnvironment) {
		return &exitError{2, err}
	}
	return err
}
