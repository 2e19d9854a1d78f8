package main

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"hpcr/initramfs"
)

func init() { commands = append(commands, newImageCmd) }

func newImageCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "image", Short: "Build and verify images", Args: cobra.NoArgs, RunE: needsSubcommand}
	cmd.AddCommand(newImageBuildCmd(), newImageVerifyCmd(), newImageUpdateCmd())
	return cmd
}

func newImageBuildCmd() *cobra.Command {
	var o initramfs.BuildOptions
	var hostKeys []string
	cmd := &cobra.Command{
		Use:   "build --arch amd64|s390x --keys DIR --out DIR",
		Short: "Build an image folder: kernel, initrd, parmfile, manifest and SBOM",
		Long: `Build an image from this repository's source and from Debian's packages.

The image folder holds kernel, initrd, parmfile, manifest.json (hashes, public
keys, versions, policy) and sbom.spdx.json. It is replaced as a whole. Equal
inputs give equal bytes.

--keys may be given several times: the first folder's keys sign and are the
image's own, further ones only keep contracts opening that were encrypted for
an older image.

--dev builds an image that boots anywhere, and says so wherever it is asked.
Without it the image refuses to touch a contract outside of Secure Execution.
The keys must be of the same flavour.

Debian's packages are resolved once and kept, so a machine's builds are equal;
where they differ from initramfs/image.lock, a note says so. --locked takes
exactly what the lock names: packages by hash, Go, runc, containerd and the C
compiler, and refuses anything else. 'hpcrctl image update' renews both.`,
		Example: `  hpcrctl image build --arch amd64 --keys keys --dev --out image
  hpcrctl image build --arch s390x --keys keys-new --keys keys-old --policy policy.yaml --out image`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case o.Arch != "amd64" && o.Arch != "s390x":
				return usage("--arch must be amd64 or s390x")
			case len(o.Keys) == 0:
				return usage("--keys DIR is missing (make one with 'hpcrctl keys new')")
			case o.Out == "":
				return usage("--out DIR is missing")
			case len(hostKeys) > 0:
				return fmt.Errorf("--host-key-document: Secure Execution images (se.img) are not supported yet")
			}
			o.Log = cmd.ErrOrStderr()
			m, err := initramfs.Build(cmd.Context(), o)
			if err != nil {
				return environment(err)
			}
			fmt.Fprintf(o.Log, "%s: %s image, %s, kernel %s, initrd %.1f MB (base %s)\n", o.Out, m.Flavour, m.Arch, m.Kernel,
				float64(m.Parts[initramfs.InitrdFile].Size)/1e6, m.Base.SHA256[:16])
			if !o.Dev {
				fmt.Fprintf(o.Log, "note: the private keys are readable in %s: whoever has the file reads every contract for this image\n",
					filepath.Join(o.Out, initramfs.InitrdFile))
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Arch, "arch", "", "architecture: amd64 or s390x")
	f.StringArrayVar(&o.Keys, "keys", nil, "keys folder; may be repeated, the first signs")
	f.BoolVar(&o.Dev, "dev", false, "build a dev image, which boots outside of Secure Execution")
	f.BoolVar(&o.Locked, "locked", false, "build from exactly what initramfs/image.lock names")
	f.StringVar(&o.Policy, "policy", "", "policy file (YAML)")
	f.StringArrayVar(&hostKeys, "host-key-document", nil, "host key document of a machine that may run the image")
	f.StringVar(&o.Out, "out", "", "image folder to make or replace")
	f.StringVar(&o.Source, "source", "", "source tree (default: found from the working folder)")
	return cmd
}

func newImageVerifyCmd() *cobra.Command {
	var image, manifest string
	cmd := &cobra.Command{
		Use:   "verify --image DIR",
		Short: "Compare an image folder's files with its manifest, or with one you trust",
		Long: `Hash the parts of an image folder and compare them with the manifest in it, or
with the one that --manifest names: one you built yourself or got from someone
you trust. Exit 0: all parts are equal.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if image == "" {
				return usage("--image DIR is missing")
			}
			if manifest == "" {
				manifest = filepath.Join(image, initramfs.ManifestFile)
			}
			m, err := initramfs.ReadManifest(manifest)
			if err != nil {
				return environment(err)
			}
			if err := initramfs.Verify(image, m); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: %d parts are as the manifest says\n", image, len(m.Parts))
			return nil
		},
	}
	cmd.Flags().StringVar(&image, "image", "", "image folder")
	cmd.Flags().StringVar(&manifest, "manifest", "", "manifest to compare with (default: the folder's own)")
	return cmd
}

func newImageUpdateCmd() *cobra.Command {
	var source string
	cmd := &cobra.Command{
		Use:   "update",
		Short: "Take Debian's newest packages, and lock them",
		Long: `Resolve the newest packages for both architectures and rewrite the source tree's
initramfs/image.lock with them, and with the versions of Go, runc, containerd and
the C compiler of this machine. What changed is printed, a line each: review it
and commit it. Builds without --locked use the same packages from then on.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			changes, err := initramfs.Update(cmd.Context(), source, cmd.ErrOrStderr())
			if err != nil {
				return environment(err)
			}
			for _, c := range changes {
				fmt.Fprintln(cmd.OutOrStdout(), c)
			}
			if len(changes) == 0 {
				fmt.Fprintln(cmd.ErrOrStderr(), "nothing has changed")
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&source, "source", "", "source tree (default: found from the working folder)")
	return cmd
}
