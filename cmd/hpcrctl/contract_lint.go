package main

import (
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"hpcr/contract"
)

func newLintCmd() *cobra.Command {
	var (
		keys   []string
		policy string
		now    string
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "lint [--key KEY]… [--policy F] [--now RFC3339] [--json] FILE",
		Short: "Say whether a guest would accept a contract, and if not, where and why",
		Long: `Run the guest's own checks over a contract, with the places and names that a
guest must not show on its console.

Give the image's contract.key to look into encrypted sections; without it they
are only seen from outside. --policy is the file of image build; without it the
defaults of a release image hold, which ask for logging. --now checks the dates
of a signing certificate against another moment.

Each finding is one line, as compilers write them:
  FILE:LINE:COLUMN: SEVERITY CODE: PATH: what is wrong: what to do [DOCUMENT:LINE:COLUMN]
LINE and COLUMN are the place in FILE, or of the token or archive that holds it.
DOCUMENT is what the finding is about: workload, env, compose (the compose file
in the archive) or play; in --json, line and column count in it.

Exit status 0: the guest would accept it, perhaps with warnings; 1: it would
not; 2: wrong usage, or a file cannot be read.`,
		Example: `  hpcrctl contract lint contract.yaml
  hpcrctl contract lint --key keys/contract.key --json user-data
  hpcrctl contract lint --key old.key --key new.key --policy policy.yaml --now 2027-01-01T00:00:00Z user-data
  vim -q <(hpcrctl contract lint contract.yaml)`,
		Args: oneFile,
		RunE: func(cmd *cobra.Command, args []string) error {
			in := contract.LintInput{Policy: contract.DefaultPolicy(false), Now: time.Now()}
			var err error
			if now != "" {
				if in.Now, err = time.Parse(time.RFC3339, now); err != nil {
					return usage("--now: give a moment like 2026-12-31T23:59:59Z")
				}
			}
			if policy != "" {
				text, err := readInput(cmd, policy)
				if err != nil {
					return err
				}
				if in.Policy, err = contract.ParsePolicy(text, false); err != nil {
					return usage("%s: %w", policy, err)
				}
			}
			if in.Keys, err = readKeys(cmd, keys); err != nil {
				return err
			}
			defer wipe(in.Keys)
			if in.UserData, err = readInput(cmd, args[0]); err != nil {
				return err
			}
			rep, err := contract.Lint(in)
			if err != nil {
				return usage("%w", err)
			}
			if err := printReport(cmd.OutOrStdout(), args[0], rep, asJSON); err != nil {
				return usage("write the result: %w", err)
			}
			if !rep.OK {
				return &exitError{code: 1}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&keys, "key", nil, "the image's contract.key, to look into encrypted sections (several allowed)")
	f.StringVar(&policy, "policy", "", "policy file of the image")
	f.StringVar(&now, "now", "", "moment to check dates against (default: this machine's clock)")
	f.BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func printReport(w io.Writer, file string, rep contract.Report, asJSON bool) error {
	if asJSON {
		e := json.NewEncoder(w)
		e.SetEscapeHTML(false)
		return e.Encode(rep)
	}
	if file == "-" {
		file = "<stdin>"
	}
	for _, f := range rep.Findings {
		if _, err := fmt.Fprintln(w, findingLine(file, f)); err != nil {
			return err
		}
	}
	verdict := "ok: the guest would accept this contract"
	if !rep.OK {
		verdict = "refused: the guest would not accept this contract"
	}
	_, err := fmt.Fprintln(w, verdict)
	return err
}

// findingLine is a compiler's line, so that editors can jump to it. What lies
// inside a token or an archive has its own place behind.
func findingLine(file string, f contract.Finding) string {
	code := ""
	if f.Code != "" {
		code = " " + string(f.Code)
	}
	line := fmt.Sprintf("%s:%d:%d: %s%s: %s: %s", file, f.File.Line, f.File.Column, f.Severity, code, shown(f.Path), f.Message)
	if f.Fix != "" {
		line += ": " + f.Fix
	}
	if f.Document != "user-data" {
		line += fmt.Sprintf(" [%s:%d:%d]", f.Document, f.Line, f.Column)
	}
	return line
}
