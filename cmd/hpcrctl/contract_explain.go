package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"hpcr/contract"
)

func newExplainCmd() *cobra.Command {
	var (
		keys   []string
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "explain [--key KEY]… [--json] FILE",
		Short: "Say what a contract would make a guest do, without a secret value",
		Long: `Say in plain words what a contract asks for: services and what vouches for
their images, published ports, volumes, names of variables, where the log goes,
who signed; then all that contract lint would say.

No value of a variable, seed, password or key is ever shown, so the output can
be passed on. Encrypted sections are looked into with the image's contract.key;
without it the output says what was not looked at. The SHA-256 of a token is the
one that the attestation record has for it ("contract:workload").

Exit status 0: explained, whether or not a guest would accept it; 1: something
could not be read, or no key given opens it.`,
		Example: `  hpcrctl contract explain contract.yaml
  hpcrctl contract explain --key keys/contract.key --json user-data`,
		Args: oneFile,
		RunE: func(cmd *cobra.Command, args []string) error {
			in := contract.LintInput{Policy: contract.DefaultPolicy(false), Now: time.Now()}
			var err error
			if in.Keys, err = readKeys(cmd, keys); err != nil {
				return err
			}
			defer wipe(in.Keys)
			if in.UserData, err = readInput(cmd, args[0]); err != nil {
				return err
			}
			x, err := contract.Explain(in)
			if err != nil {
				return usage("%w", err)
			}
			if asJSON {
				err = emitJSON(cmd, x)
			} else if err = printExplanation(cmd.OutOrStdout(), x); err != nil {
				err = usage("write the result: %w", err)
			}
			if err != nil {
				return err
			}
			if !x.Readable {
				return &exitError{code: 1}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&keys, "key", nil, "the image's contract.key, to look into encrypted sections (several allowed)")
	f.BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// printExplanation writes tables for people.
func printExplanation(out io.Writer, x *contract.Explanation) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	heading := func(s string) { fmt.Fprintf(w, "%s\n", s) }
	none := func(n int) {
		switch {
		case n > 0:
		case slices.ContainsFunc(x.Sections, func(s contract.ExplainedSection) bool { return !s.Looked }):
			heading("  none seen")
		default:
			heading("  none")
		}
	}
	row := func(cells ...string) {
		for i := range cells {
			cells[i] = shown(cells[i])
		}
		fmt.Fprintf(w, "  %s\n", strings.Join(cells, "\t"))
	}
	heading("Contract")
	for _, s := range x.Sections {
		form := map[string]string{"token": "encrypted (" + s.Prefix + ")", "text": "plain", "mapping": "a plain mapping"}[s.Form]
		if !s.Looked {
			form += ", not looked at: give the key that opens it with --key"
		}
		row(s.Name, form)
		if s.SHA256 != "" {
			row("", "sha256 "+s.SHA256)
		}
	}
	row("signature", signatureWords(x.Signature))
	heading("Services")
	for _, s := range x.Services {
		row(s.Name, s.Image, verifiedWords(s.VerifiedBy))
		if len(s.Powers) > 0 {
			row("", "has power over the guest: "+strings.Join(s.Powers, ", "))
		}
	}
	none(len(x.Services))
	heading("Published ports")
	for _, p := range x.Ports {
		where := p.HostPort + "/" + p.Protocol
		if p.HostIP != "" {
			where = p.HostIP + ":" + where
		}
		row(where, "to "+p.Service+", port "+p.ContainerPort)
	}
	none(len(x.Ports))
	if len(x.Endpoints) > 0 {
		heading("TLS endpoints")
	}
	for _, e := range x.Endpoints {
		what := fmt.Sprintf("%s, port %d, to %s", e.Kind, e.Listen, e.To)
		switch {
		case e.Authority != "":
			what += ", for peers of the authority " + e.Authority
		case e.Kind == "ingress":
			what += ", for any client"
		}
		row(e.Name, what)
	}
	heading("Volumes")
	for _, v := range x.Volumes {
		what := "mount not seen"
		if v.Mount != "" {
			what = v.Filesystem + " at " + v.Mount
		}
		if v.Rolled {
			what += ", its seed is being changed"
		}
		if v.Existing {
			what += ", an empty disk is refused"
		}
		row(v.Name, what)
	}
	none(len(x.Volumes))
	heading("Variables (names only)")
	for _, name := range x.Environment {
		row(name)
	}
	none(len(x.Environment))
	heading("Log")
	if l := x.Logging; l.Kind != "" {
		to := l.Hostname
		if to == "" {
			to = "an unknown host"
		}
		if l.Port != 0 {
			to += ":" + strconv.Itoa(l.Port)
		}
		row(l.Kind, to)
	} else {
		none(0)
	}
	heading("Registries with a login")
	for _, r := range x.Registries {
		row(r)
	}
	none(len(x.Registries))
	heading("What lint says")
	for _, f := range x.Warnings {
		row(string(f.Severity), string(f.Code), f.Path, f.Message+": "+f.Fix)
	}
	if len(x.Warnings) == 0 {
		row("nothing")
	}
	return w.Flush()
}

func signatureWords(s contract.ExplainedSignature) string {
	switch {
	case s.State == "none":
		return "none: anybody may have put the two sections together"
	case s.State == "valid" && s.NotAfter != nil:
		return "valid; the certificate ends on " + s.NotAfter.Format(time.RFC3339)
	case s.State == "valid":
		return "valid: the holder of env's signingKey put the sections together"
	case s.State == "unchecked":
		return "there is one; the key to check it with is in env, which was not looked at"
	default:
		return "NOT VALID"
	}
}

func verifiedWords(by string) string {
	switch by {
	case contract.ByDigest:
		return "pinned by its digest"
	case contract.ByRHS:
		return "must be signed, by the key in images.rhs"
	case contract.ByCosign:
		return "must be signed, by the key in x-hpcr.images.cosign"
	case contract.ByRHS + ", " + contract.ByCosign:
		return "must be signed, by the keys in images.rhs and in x-hpcr.images.cosign"
	default:
		return "NOT VERIFIED: neither digest nor signature"
	}
}

// shown keeps what a contract's author wrote from moving a terminal's cursor.
func shown(s string) string {
	if strings.ContainsFunc(s, func(c rune) bool { return !unicode.IsPrint(c) }) {
		return strconv.Quote(s)
	}
	return s
}
