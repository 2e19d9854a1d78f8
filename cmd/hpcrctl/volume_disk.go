package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"hpcr/agent/secret"
	"hpcr/disk"
	"hpcr/disk/luks2"
)

// openedDisk is a disk or an image of one, with what a guest would see in it.
// Nothing of it is mapped or mounted.
type openedDisk struct {
	*os.File
	disk.Content
}

func openDisk(name string, flag int) (*openedDisk, error) {
	// Before it is opened: a FIFO's other end may never come.
	st, err := os.Stat(name)
	if err != nil {
		return nil, usage("%w", err)
	}
	if kind := st.Mode().Type(); kind != 0 && kind != os.ModeDevice {
		return nil, usage("%s is neither a disk nor a file: give the disk, or an image of it", name)
	}
	f, err := os.OpenFile(name, flag, 0)
	if err != nil {
		return nil, usage("%w", err)
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		f.Close()
		return nil, usage("%s: %w", name, err)
	}
	block := int64(512)
	magic := make([]byte, 8)
	if n, err := f.ReadAt(magic, 4096); err == nil && n == len(magic) && string(magic) == "EFI PART" {
		block = 4096 // a table made for blocks of 4 KiB
	}
	c, err := disk.Probe(f, size/block*block, block)
	if err != nil {
		f.Close()
		return nil, usage("%s: %w", name, err)
	}
	return &openedDisk{f, c}, nil
}

// section is the volume's place on the disk.
type section struct {
	*io.SectionReader
	f     *os.File
	start int64
}

func (d *openedDisk) volume() section {
	return section{io.NewSectionReader(d.File, d.Start, d.Size), d.File, d.Start}
}

func (s section) WriteAt(b []byte, at int64) (int, error) {
	if at < 0 || at+int64(len(b)) > s.Size() {
		return 0, errors.New("write outside of the volume")
	}
	return s.f.WriteAt(b, s.start+at)
}

func (s section) Sync() error { return s.f.Sync() }

// volumeFacts is what inspect prints.
type volumeFacts struct {
	Kind       string `json:"kind"`
	Layout     string `json:"layout"`
	Profile    int    `json:"profile"`
	Generation uint64 `json:"generation"`
	Sealed     bool   `json:"sealed"`
	Verified   bool   `json:"verified"` // the seal holds, and so does the generation
	Reason     string `json:"reason,omitempty"`
}

func (d *openedDisk) facts() volumeFacts {
	v := volumeFacts{Kind: string(d.Kind), Layout: string(d.Layout)}
	if v.Layout == "" {
		v.Layout = string(disk.WholeDisk)
	}
	if d.Reason != nil {
		v.Reason = d.Reason.Error()
		if d.Size > 0 {
			v.Kind = "unknown" // LUKS that a guest refuses
		}
	}
	if d.Image != nil {
		v.Profile, v.Generation = d.Image.Profile(), d.Image.Generation()
		v.Sealed = v.Profile > 0
	}
	return v
}

// sentences for the kinds, as their owner sees them.
var kindText = map[string]string{
	"blank":        "The disk is empty: a guest makes a new volume on it, unless the contract says existing: true or minGeneration.",
	"ours":         "A volume made by an hpcr guest.",
	"foreign-luks": "A LUKS volume of another make: a guest opens it, without the protection of a seal.",
	"interrupted":  "The making of a volume, or a write of its header, was cut off: a guest goes on with it.",
	"foreign":      "Something else is on this disk: a guest leaves it as it is and refuses to boot with it.",
	"unknown":      "A LUKS header that a guest refuses: a hostile, a damaged or an altered one. After a change by cryptsetup, see hpcrctl volume reseal.",
}

func newVolumeInspectCmd() *cobra.Command {
	var asJSON bool
	var passFile, name string
	cmd := &cobra.Command{
		Use:   "inspect DISK [--passphrase-file F --volume NAME]",
		Short: "Say what is on a disk or a disk image, as a guest would see it",
		Long: `Reads headers only, and writes nothing. Without a passphrase the generation is
what the header says of itself: whoever can write to the disk can write another
one. With it, the seal is checked first, and the generation is what the guest
sealed; a minGeneration of a contract should come from there, or from its log.
A whole disk put back to an earlier state has an earlier generation, and a seal
that holds.

  hpcrctl volume inspect data.img
  hpcrctl volume inspect --json /dev/vdb
  hpcrctl volume inspect data.img --passphrase-file pass --volume data

Exit status: 0 inspected; 1 the volume does not open with this passphrase, or
its seal does not hold; 2 the disk cannot be read.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (passFile == "") != (name == "") {
				return errTogether
			}
			d, err := openDisk(args[0], os.O_RDONLY)
			if err != nil {
				return err
			}
			defer d.Close()
			v := d.facts()
			var verdict error
			if passFile != "" {
				if verdict, err = v.verify(cmd, d, passFile, name); err != nil {
					return err
				}
			}
			if asJSON {
				err = emitJSON(cmd, v)
			} else {
				err = v.print(cmd.OutOrStdout())
			}
			return errors.Join(err, verdict)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	addSecretFlags(cmd, &passFile, &name)
	return cmd
}

// verify has the volume's seal stand for the generation. verdict says why it
// does not; err is one of the passphrase's file.
func (v *volumeFacts) verify(cmd *cobra.Command, d *openedDisk, passFile, name string) (verdict, err error) {
	pass, err := readSeed(cmd, passFile)
	if err != nil {
		return nil, err
	}
	defer pass.Wipe()
	if !d.Openable() {
		return errors.New("there is no volume that a guest would open: no passphrase was tried"), nil
	}
	fmt.Fprintln(cmd.ErrOrStderr(), deriving)
	if d.Kind == disk.ForeignLUKS {
		return d.Image.Opens(pass), nil // without a seal there is no generation
	}
	o, verdict := d.Image.Unlock(cmd.Context(), pass, name)
	if verdict == nil {
		o.Key.Wipe()
		v.Generation, v.Verified = o.Generation, true
	}
	return verdict, nil
}

func (v *volumeFacts) print(w io.Writer) error {
	text := kindText[v.Kind] + "\n"
	if v.Reason != "" {
		text += fmt.Sprintf("reason      %s\n", v.Reason)
	}
	text += fmt.Sprintf("kind        %s\nlayout      %s\n", v.Kind, v.Layout)
	if v.Profile > 0 {
		origin := "not verified: what the header says; give --passphrase-file and --volume"
		if v.Verified {
			origin = "verified: the seal holds"
		}
		text += fmt.Sprintf("profile     %d\ngeneration  %d (%s)\n", v.Profile, v.Generation, origin)
	}
	_, err := io.WriteString(w, text)
	return err
}

// volumeCheck is what check prints.
type volumeCheck struct {
	OK bool `json:"ok"`
	volumeFacts
	Checks []volumeChecked `json:"checks"`
}

type volumeChecked struct {
	Name   string `json:"name"` // header, copies, passphrase, seal
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
}

func (c *volumeCheck) add(name string, ok bool, detail string) {
	c.Checks = append(c.Checks, volumeChecked{name, ok, detail})
	c.OK = c.OK && ok
}

func newVolumeCheckCmd() *cobra.Command {
	var asJSON bool
	var passFile, name string
	cmd := &cobra.Command{
		Use:   "check DISK [--passphrase-file F --volume NAME]",
		Short: "Check a volume's header, and with the passphrase its seal",
		Long: `Without a passphrase only the header's form is judged. With it the seal shows
whether anybody else changed the header or swapped the disk for another
volume's. Nothing is written, and no root is needed for an image file.

  hpcrctl volume passphrase --contract user-data --key contract.key --volume data > pass
  hpcrctl volume check data.img --passphrase-file pass --volume data

Exit status: 0 all checks hold; 1 one does not; 2 the disk cannot be read.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (passFile == "") != (name == "") {
				return errTogether
			}
			d, err := openDisk(args[0], os.O_RDONLY)
			if err != nil {
				return err
			}
			defer d.Close()
			c := &volumeCheck{OK: true, volumeFacts: d.facts()}
			c.header(d)
			if passFile != "" && d.Openable() {
				pass, err := readSeed(cmd, passFile)
				if err != nil {
					return err
				}
				defer pass.Wipe()
				fmt.Fprintln(cmd.ErrOrStderr(), deriving)
				c.secrets(cmd.Context(), d, pass, name)
			}
			if asJSON {
				if err := emitJSON(cmd, c); err != nil {
					return err
				}
			} else {
				for _, k := range c.Checks {
					fmt.Fprintf(cmd.OutOrStdout(), "%-4s  %-10s  %s\n", map[bool]string{true: "ok", false: "FAIL"}[k.OK], k.Name, k.Detail)
				}
			}
			if !c.OK {
				return &exitError{1, nil}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	addSecretFlags(cmd, &passFile, &name)
	return cmd
}

var errTogether = usage("give --passphrase-file and --volume together: the seal binds the volume's name")

const deriving = "deriving the key: this takes a second or more for each key slot"

func addSecretFlags(cmd *cobra.Command, passFile, name *string) {
	cmd.Flags().StringVar(passFile, "passphrase-file", "", "file with the volume's passphrase, as hpcrctl volume passphrase prints it (- = standard input)")
	cmd.Flags().StringVar(name, "volume", "", "the volume's key in the contract")
}

func (c *volumeCheck) header(d *openedDisk) {
	detail := kindText[c.Kind]
	if c.Reason != "" {
		detail += " Reason: " + c.Reason + "."
	}
	c.add("header", d.Openable(), detail)
	if d.Kind == disk.Ours || d.Kind == disk.Interrupted {
		detail := "Both copies of the header hold and agree."
		if !d.Image.Fresh() {
			detail = "One copy of the header was lost or is older: the next boot writes it anew."
		}
		c.add("copies", d.Image.Fresh(), detail)
	}
}

func (c *volumeCheck) secrets(ctx context.Context, d *openedDisk, pass *secret.Secret, name string) {
	const wrong = "No key slot opens with this passphrase."
	if d.Kind == disk.ForeignLUKS {
		err := d.Image.Opens(pass)
		switch {
		case err == nil:
			c.add("passphrase", true, "A key slot opens. A volume of another make has no seal.")
		case errors.Is(err, luks2.ErrPassphrase):
			c.add("passphrase", false, wrong)
		case errors.Is(err, luks2.ErrSeal):
			c.add("passphrase", true, "A key slot opens.")
			c.add("seal", false, "The seal was taken off this volume, and a guest refuses it. If you did that yourself, run hpcrctl volume reseal.")
		default:
			c.add("passphrase", false, "The passphrase could not be tried: "+err.Error()+".")
		}
		return
	}
	o, err := d.Image.Unlock(ctx, pass, name)
	switch {
	case errors.Is(err, luks2.ErrPassphrase):
		c.add("passphrase", false, wrong)
	case errors.Is(err, luks2.ErrSeal):
		c.add("passphrase", true, "A key slot opens.")
		c.add("seal", false, "The header was changed by somebody without the volume's key, or this is another volume's disk.")
	case err != nil:
		c.add("passphrase", false, "The volume could not be opened: "+err.Error()+".")
	default:
		o.Key.Wipe()
		c.add("passphrase", true, "A key slot opens.")
		c.add("seal", true, fmt.Sprintf("The seal holds for this volume, at generation %d.", o.Generation))
	}
}

// resealCost is what a guest's default policy uses.
var resealCost = luks2.KDF{MemoryKiB: 256 << 10, Time: 4, Parallel: 2}

func newVolumeResealCmd() *cobra.Command {
	var asJSON bool
	var passFile, name string
	cmd := &cobra.Command{
		Use:   "reseal DISK --passphrase-file F --volume NAME",
		Short: "Seal a volume anew after its owner changed a key slot with cryptsetup",
		Long: `A guest opens its own volumes only with the seal that it put on their header, so
after cryptsetup luksAddKey, luksChangeKey or luksConvertKey it refuses them.
This brings the header back into the guest's form and seals it.

The key slot that the passphrase opens stays, as the only one: a guest's volume
has one key slot. Others are removed; keep a luksHeaderBackup if you need them.
Only a volume that an hpcr guest made is ever written to, and power may fail
at any moment of it.

Where the sealed key slot is still there (after luksAddKey, config --label), the
last seal is checked first, and the generation is one more than what it proves.
Where it is not (luksChangeKey, luksConvertKey), the generation is one more than
what the header says of itself, and you are told so.

  hpcrctl volume reseal data.img --passphrase-file pass --volume data`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if passFile == "" || name == "" {
				return usage("give --passphrase-file and --volume: only the volume's owner can seal it")
			}
			pass, err := readSeed(cmd, passFile)
			if err != nil {
				return err
			}
			defer pass.Wipe()
			d, err := openDisk(args[0], os.O_RDWR)
			if err != nil {
				return err
			}
			defer d.Close()
			before := d.facts()
			if d.Size == 0 || before.Kind == "blank" || d.Kind == disk.Interrupted && d.Image.Resumable() {
				return fmt.Errorf("there is no volume on this disk: %s", kindText[before.Kind])
			}
			fmt.Fprintln(cmd.ErrOrStderr(), deriving)
			r, err := luks2.Reseal(d.volume(), d.Size, pass, name, resealCost)
			if err != nil {
				return err
			}
			if !r.Proven {
				fmt.Fprintf(cmd.ErrOrStderr(), "nothing proves the generation any more, %d is one more than the header said: compare it with the last one in the guest's log\n", r.Generation)
			}
			if asJSON {
				return emitJSON(cmd, map[string]any{"generation": r.Generation, "proven": r.Proven, "slot": r.Slot, "removed": r.Dropped, "rederived": r.Rederived})
			}
			fmt.Fprintf(cmd.OutOrStdout(), "sealed volume %q at generation %d; kept key slot %d, removed %d\n", name, r.Generation, r.Slot, r.Dropped)
			if r.Rederived {
				fmt.Fprintf(cmd.ErrOrStderr(), "the key slot was written anew with argon2id, %d MiB, %d passes: cryptsetup's settings were not a guest's\n",
					resealCost.MemoryKiB>>10, resealCost.Time)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	addSecretFlags(cmd, &passFile, &name)
	return cmd
}
