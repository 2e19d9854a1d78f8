package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"hpcr/contract"
)

func newInitCmd() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "init compose|play [--out FILE]",
		Short: "Write a starter contract that explains every field",
		Long: `Write a contract to begin with: every field with what it is for, what is
mandatory, and what is optional.

What has to be filled in says FILL-IN; contract lint lists those places, each
with what belongs there. Optional fields are commented out by a "#" without a
blank behind it. A file that exists is never overwritten.`,
		Example: `  hpcrctl contract init compose --out contract.yaml
  hpcrctl contract lint contract.yaml`,
		ValidArgs: []string{"compose\ta compose project", "play\tKubernetes resources"},
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 || args[0] != "compose" && args[0] != "play" {
				return errors.New("name the kind of workload: compose or play")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			text, known := contract.Starter(args[0])
			if !known {
				return fmt.Errorf("there is no starter for %s", args[0])
			}
			if out == "" || out == "-" {
				return emit(cmd, text)
			}
			// Seeds and keys are going to stand in it.
			f, err := os.OpenFile(out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			switch {
			case errors.Is(err, fs.ErrExist):
				return fmt.Errorf("%s exists, and is not overwritten: choose another name for --out", out)
			case err != nil:
				return &exitError{2, err}
			}
			if _, err = f.Write(text); err == nil {
				err = f.Sync()
			}
			if err = errors.Join(err, f.Close()); err != nil {
				return usage("write %s: %w", out, err)
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "wrote %s: replace each FILL-IN, then ask hpcrctl contract lint %s\n", out, out)
			return nil
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "file to make, mode 0600 (default: standard output)")
	return cmd
}
