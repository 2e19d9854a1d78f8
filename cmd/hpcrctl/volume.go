package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v4"

	"hpcr/agent/secret"
	"hpcr/contract"
)

func init() { commands = append(commands, newVolumeCmd) }

func newVolumeCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "volume",
		Short: "Work with a guest's data volumes from outside, as their owner",
		Long: `A data volume is LUKS2 with an ordinary passphrase: whoever has the seeds of
both contract sections can open it with stock cryptsetup, without this project.`,
		Args: cobra.NoArgs,
		RunE: needsSubcommand,
	}
	cmd.AddCommand(newVolumePassphraseCmd(), newVolumeInspectCmd(), newVolumeCheckCmd(), newVolumeResealCmd())
	return cmd
}

func newVolumePassphraseCmd() *cobra.Command {
	var contractFile, volume, envSeed, workloadSeed string
	var keys []string
	cmd := &cobra.Command{
		Use:   "passphrase (--contract F [--key KEY]… --volume NAME | --env-seed-file F --workload-seed-file F)",
		Short: "Print the passphrase of a volume: 64 hex digits, without a line's end",
		Long: `The passphrase is the SHA-256 of env's seed followed by workload's, in lower-case
hex. It is printed without a line's end, as LUKS takes it:

  hpcrctl volume passphrase --contract user-data --key keys/contract.key --volume data > pass
  losetup --find --show --partscan data.img                         gives, say, /dev/loop0
  cryptsetup open --key-file pass /dev/loop0p2 data && mount /dev/mapper/data /mnt

A contract for which you hold no key: give the two seeds in files, which hold
nothing but the seed (one line's end behind it is ignored).`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			byContract := contractFile != "" && volume != "" && envSeed == "" && workloadSeed == ""
			bySeeds := envSeed != "" && workloadSeed != "" && contractFile == "" && volume == "" && len(keys) == 0
			if !byContract && !bySeeds {
				return usage("give either --contract and --volume, or --env-seed-file and --workload-seed-file")
			}
			seeds := func() (*secret.Secret, *secret.Secret, error) {
				return seedsOfContract(cmd, contractFile, keys, volume)
			}
			if bySeeds {
				seeds = func() (*secret.Secret, *secret.Secret, error) { return seedsOfFiles(cmd, envSeed, workloadSeed) }
			}
			env, workload, err := seeds()
			if err != nil {
				return err
			}
			defer env.Wipe()
			defer workload.Wipe()
			pass := contract.VolumePassphrase(env.Bytes(), workload.Bytes())
			defer pass.Wipe()
			return emit(cmd, pass.Bytes())
		},
	}
	f := cmd.Flags()
	f.StringVar(&contractFile, "contract", "", "user-data of the contract (- = standard input)")
	f.StringArrayVar(&keys, "key", nil, "private key of the image; may be given several times")
	f.StringVar(&volume, "volume", "", "the volume's key in the contract")
	f.StringVar(&envSeed, "env-seed-file", "", "file that holds the deployer's seed")
	f.StringVar(&workloadSeed, "workload-seed-file", "", "file that holds the workload provider's seed")
	return cmd
}

// seedsOfFiles: the caller wipes both.
func seedsOfFiles(cmd *cobra.Command, envFile, workloadFile string) (env, workload *secret.Secret, err error) {
	if envFile == "-" && workloadFile == "-" {
		return nil, nil, usage("only one seed can come from standard input")
	}
	if env, err = readSeed(cmd, envFile); err != nil {
		return nil, nil, err
	}
	if workload, err = readSeed(cmd, workloadFile); err != nil {
		env.Wipe()
		return nil, nil, err
	}
	return env, workload, nil
}

func readSeed(cmd *cobra.Command, name string) (*secret.Secret, error) {
	b, err := readInput(cmd, name)
	if err != nil {
		return nil, err
	}
	defer clear(b)
	end := len(b)
	if end > 0 && b[end-1] == '\n' {
		end--
		if end > 0 && b[end-1] == '\r' {
			end--
		}
	}
	if end == 0 {
		return nil, fmt.Errorf("%s is empty", name)
	}
	return secret.New(b[:end]), nil
}

// seedsOfContract: the caller wipes both. It does not ask whether a guest
// would take the contract: data of an expired one is still its owner's.
func seedsOfContract(cmd *cobra.Command, file string, keyFiles []string, volume string) (env, workload *secret.Secret, err error) {
	userData, err := readInput(cmd, file)
	if err != nil {
		return nil, nil, err
	}
	keys, err := readKeys(cmd, keyFiles)
	defer wipe(keys)
	if err != nil {
		return nil, nil, err
	}
	opened, err := contract.Open(userData, keys)
	if err != nil {
		return nil, nil, err
	}
	defer opened.Wipe()
	if env, err = seedOf(opened.Sections["env"], "env", volume); err != nil {
		return nil, nil, err
	}
	if workload, err = seedOf(opened.Sections["workload"], "workload", volume); err != nil {
		env.Wipe()
		return nil, nil, err
	}
	return env, workload, nil
}

// errNoSeed has the words for a section whose volume has no seed.
var errNoSeed = errors.New("no such volume with a seed")

func seedOf(section *secret.Secret, name, volume string) (*secret.Secret, error) {
	if section.Len() == 0 {
		return nil, fmt.Errorf("the contract has no section %s", name)
	}
	var content struct {
		Volumes map[string]map[string]any `yaml:"volumes"`
	}
	if err := yaml.Unmarshal(section.Bytes(), &content); err != nil {
		return nil, fmt.Errorf("section %s cannot be read as YAML", name) // the library's error quotes the section
	}
	seed, ok := content.Volumes[volume]["seed"].(string)
	if !ok || seed == "" {
		return nil, fmt.Errorf("section %s, volume %q: %w (a seed is a text; quote one that looks like a number)", name, volume, errNoSeed)
	}
	return secret.FromString(seed), nil
}
