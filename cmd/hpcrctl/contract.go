package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"hpcr/agent/secret"
	"hpcr/contract"
)

func init() { commands = append(commands, newContractCmd) }

func newContractCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "contract",
		Short: "Begin, check, explain, encrypt, sign and open contracts",
		Long: `A contract is a YAML mapping with two texts, workload and env. Each may be
plain or a token, encrypted for one image with that image's contract.crt.

A contract of one person:
  hpcrctl contract init compose --out contract.yaml    then fill it in
  hpcrctl contract lint contract.yaml
  hpcrctl contract encrypt --cert contract.crt contract.yaml > user-data

A contract of two people who show each other nothing:
  provider   hpcrctl contract encrypt --cert contract.crt --section workload workload.yaml > workload.token
  deployer   { printf 'workload: '; cat workload.token; printf '\nenv: |\n'; sed 's/^/  /' env.yaml; } > contract.yaml
  deployer   hpcrctl contract sign --signing-key sign.key --cert contract.crt contract.yaml > user-data
workload.yaml and env.yaml are the texts below "workload: |" and "env: |" of a
starter, moved to the left.

FILE may be - for standard input. Results go to stdout, notes to stderr.`,
		Args: cobra.NoArgs,
		RunE: needsSubcommand,
	}
	cmd.AddCommand(newInitCmd(), newLintCmd(), newExplainCmd(), newEncryptCmd(), newSignCmd(), newOpenCmd())
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

// emit writes a result byte for byte.
func emit(cmd *cobra.Command, b []byte) error {
	if _, err := cmd.OutOrStdout().Write(b); err != nil {
		return usage("write the result: %w", err)
	}
	return nil
}

// emitJSON writes a result as one JSON object. Messages have HPCR's "->", which
// stays readable.
func emitJSON(cmd *cobra.Command, v any) error {
	e := json.NewEncoder(cmd.OutOrStdout())
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
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
