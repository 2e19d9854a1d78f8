package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"hpcr/initramfs"
	"hpcr/initramfs/seimage"
)

func init() { commands = append(commands, newImageCmd) }

func newImageCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "image", Short: "Build and verify images", Args: cobra.NoArgs, RunE: needsSubcommand}
	cmd.AddCommand(newImageBuildCmd(), newImageVerifyCmd(), newImageUpdateCmd())
	return cmd
}

func newImageBuildCmd() *cobra.Command {
	var o initramfs.BuildOptions
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

With --host-key-document (s390x) se.img takes the place of initrd: a Secure
Execution image, which only the machines of these documents can open. The
private keys are never written in clear. Give IBM's signing certificate, the
CA's certificate and their revocation lists, which you download beforehand (see
docs/operations.md), and the documents are verified; without them a warning and
the manifest say that they were not.

Debian's packages are resolved once and kept, so a machine's builds are equal;
where they differ from initramfs/image.lock, a note says so. --locked takes
exactly what the lock names: packages by hash, Go, runc, containerd and the C
compiler, and refuses anything else. 'hpcrctl image update' renews both.`,
		Example: `  hpcrctl image build --arch amd64 --keys keys --dev --out image
  hpcrctl image build --arch s390x --keys keys-new --keys keys-old --policy policy.yaml --out image
  hpcrctl image build --arch s390x --keys keys --host-key-document HKD-8561-0123456.crt \
    --host-key-cert ibm-z-host-key-signing-gen2.crt --host-key-cert DigiCertCA.crt \
    --host-key-crl ibm-z-host-key-gen2.crl --host-key-crl DigiCertTrustedRootG4.crl \
    --host-key-crl DigiCertTrustedG4CodeSigningRSA4096SHA3842021CA1.crl --out image`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case o.Arch != "amd64" && o.Arch != "s390x":
				return usage("--arch must be amd64 or s390x")
			case len(o.Keys) == 0:
				return usage("--keys DIR is missing (make one with 'hpcrctl keys new')")
			case o.Out == "":
				return usage("--out DIR is missing")
			}
			if err := checkHostKeys(o); err != nil {
				return err
			}
			o.Log = cmd.ErrOrStderr()
			o.HostKeyTrust.Now = time.Now()
			o.HostKeyTrust.None = !verifies(o.HostKeyTrust)
			m, err := initramfs.Build(cmd.Context(), o)
			if err != nil {
				return environment(err)
			}
			big := initramfs.InitrdFile
			if m.SecureExecution != nil {
				big = initramfs.SecureImageFile
			}
			fmt.Fprintf(o.Log, "%s: %s image, %s, kernel %s, %s %.1f MB (base %s)\n", o.Out, m.Flavour, m.Arch, m.Kernel,
				big, float64(m.Parts[big].Size)/1e6, m.Base.SHA256[:16])
			m.PrintSizes(o.Log)
			switch {
			case m.SecureExecution == nil && !o.Dev:
				fmt.Fprintf(o.Log, "note: the private keys are readable in %s: whoever has the file reads every contract for this image\n",
					filepath.Join(o.Out, initramfs.InitrdFile))
			case m.SecureExecution != nil && o.Dev:
				fmt.Fprintln(o.Log, "note: a dev image keeps its test channels open to the host, in Secure Execution too: no real contract belongs in it")
			}
			if m.SecureExecution != nil && o.HostKeyTrust.None {
				fmt.Fprintln(o.Log, "warning: the host key documents were not verified: whoever made them may hold the key that opens this image; give --host-key-cert and --host-key-crl")
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
	f.StringArrayVar(&o.HostKeyDocuments, "host-key-document", nil, "host key document of a machine that may run the image; may be repeated")
	f.StringArrayVar(&o.HostKeyTrust.Certs, "host-key-cert", nil, "certificate to verify host key documents with: IBM's signing certificate, the CA's; may be repeated")
	f.StringArrayVar(&o.HostKeyTrust.CRLs, "host-key-crl", nil, "revocation list of the signing key, the CA or the root; may be repeated")
	f.StringVar(&o.HostKeyTrust.Root, "host-key-root", "", "root certificate of the chain (default: the system's)")
	f.StringVar(&o.Out, "out", "", "image folder to make or replace")
	f.StringVar(&o.Source, "source", "", "source tree (default: found from the working folder)")
	return cmd
}

func verifies(t seimage.Trust) bool { return len(t.Certs)+len(t.CRLs) > 0 || t.Root != "" }

// checkHostKeys finds flags that would have no effect, or not the meant one.
func checkHostKeys(o initramfs.BuildOptions) error {
	t := o.HostKeyTrust
	switch {
	case len(o.HostKeyDocuments) == 0 && verifies(t):
		return usage("--host-key-document is missing: there is nothing to verify")
	case len(o.HostKeyDocuments) == 0:
		return nil
	case o.Arch != "s390x":
		return usage("--host-key-document: only s390x has Secure Execution images")
	case verifies(t) && len(t.Certs) == 0:
		return usage("--host-key-cert is missing: IBM Z's host key signing certificate and the CA's")
	}
	return nil
}

func newImageVerifyCmd() *cobra.Command {
	var image, manifest string
	cmd := &cobra.Command{
		Use:   "verify --image DIR",
		Short: "Compare an image with its manifest, and with that of another builder",
		Long: `Hash the parts of an image folder and compare them with its manifest; unpack its
initrd, and do the same with the keyless base, init, agent, runc, policy and
modules in it; check that nothing stands behind the base but the keys whose
public halves the manifest names. (A Secure Execution image is encrypted: its
files are hashed, and machines, tags and flags of its header compared.)

That proves the image to be what its own manifest says. --manifest names one that
you trust, of somebody who built the same source: kernel, command line and base
must be equal, whatever keys are in the two images. Where they are not, the
inputs that differ are named. With equal keys the initrds must be equal too.

Exit 0: all is equal; 1: something is not; 2: no manifest can be read.`,
		Example: `  hpcrctl image verify --image image
  hpcrctl image verify --image image --manifest theirs/manifest.json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if image == "" {
				return usage("--image DIR is missing")
			}
			m, other, err := readManifests(image, manifest)
			if err != nil {
				return environment(err)
			}
			if err := initramfs.Verify(image, m); err != nil {
				return err
			}
			if err := initramfs.SameBase(m, other); err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, "kernel %s\nbase   %s\ninit   %s\nagent  %s\ndisk   %s\nrunc   %s\ninputs %s\n", m.Parts[initramfs.KernelFile].SHA256,
				m.Base.SHA256, m.Init.SHA256, m.Agent.SHA256, m.Disk.SHA256, m.Runc.SHA256, m.Inputs)
			if m.SecureExecution != nil {
				fmt.Fprintf(out, "%s: its files are as its manifest says, machines and tags of %s too; what it holds only those machines can read\n", image, initramfs.SecureImageFile)
			} else {
				fmt.Fprintf(out, "%s: is what its manifest says, and behind the base it holds the manifest's keys and no other file\n", image)
			}
			if manifest != "" {
				fmt.Fprintf(out, "%s: speaks of the same kernel, command line and base\n", manifest)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&image, "image", "", "image folder")
	cmd.Flags().StringVar(&manifest, "manifest", "", "manifest of another builder to compare with")
	return cmd
}

// readManifests gives the manifest of an image folder and the one to compare
// it with; either stands for the other where that is missing.
func readManifests(image, file string) (own, other *initramfs.Manifest, err error) {
	own, err = initramfs.ReadManifest(filepath.Join(image, initramfs.ManifestFile))
	if file == "" {
		return own, own, err
	}
	other, err2 := initramfs.ReadManifest(file)
	if errors.Is(err, fs.ErrNotExist) {
		return other, other, err2
	}
	return own, other, errors.Join(err, err2)
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
