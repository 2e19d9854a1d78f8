package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"hpcr/contract"
)

func init() { commands = append(commands, newCidataCmd) }

func newCidataCmd() *cobra.Command {
	var in cidataFiles
	var out string
	cmd := &cobra.Command{
		Use:   "cidata --user-data F [--meta-data F] [--vendor-data F] [--network-config F] --out ISO",
		Short: "Make the cidata volume that carries a contract into a guest",
		Long: `Make an ISO 9660 image with the label cidata, as genisoimage -volid cidata
-joliet -rock does, to be attached to a guest as a read-only disk.

  user-data       the contract
  meta-data       YAML; "local-hostname: NAME" sets the guest's host name
  vendor-data     has no effect; its hash is in the attestation record
  network-config  static addresses; without it the guest asks by DHCP

meta-data and vendor-data are empty files if not given. The same files always
make the same bytes, so the hash of the volume can be told beforehand.`,
		Example: `  hpcrctl cidata --user-data user-data --meta-data meta-data --out cidata.iso`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if in.userData == "" || out == "" {
				return usage("--user-data F and --out ISO are needed")
			}
			device, err := in.device(cmd)
			if err != nil {
				return err
			}
			if out == "-" {
				return emit(cmd, device)
			}
			if err := os.WriteFile(out, device, 0o644); err != nil {
				return usage("write the volume: %w", err)
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "made %s, %d bytes\n", out, len(device))
			return nil
		},
	}
	f := cmd.Flags()
	in.flags(cmd)
	f.StringVar(&out, "out", "", "file to write (- = standard output)")
	return cmd
}

// cidataFiles names the files that go onto a cidata volume.
type cidataFiles struct{ userData, metaData, vendorData, networkConfig string }

func (in *cidataFiles) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&in.userData, "user-data", "", "the contract")
	f.StringVar(&in.metaData, "meta-data", "", "meta-data file")
	f.StringVar(&in.vendorData, "vendor-data", "", "vendor-data file")
	f.StringVar(&in.networkConfig, "network-config", "", "network-config file")
}

// device reads the files and makes the volume.
func (in *cidataFiles) device(cmd *cobra.Command) ([]byte, error) {
	files := contract.Files{MetaData: []byte{}, VendorData: []byte{}}
	for _, f := range []struct {
		name string
		to   *[]byte
	}{{in.userData, &files.UserData}, {in.metaData, &files.MetaData}, {in.vendorData, &files.VendorData}, {in.networkConfig, &files.NetworkConfig}} {
		if f.name == "" {
			continue
		}
		b, err := readInput(cmd, f.name)
		if err != nil {
			return nil, err
		}
		*f.to = append([]byte{}, b...) // an empty file is a file
	}
	return contract.WriteCidata(files)
}
