// Command hpcrctl is the host's tool: keys, contracts, cidata, images, runs,
// health and volumes. Each file of this package adds its commands in init.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// commands collects the constructors that the other files register.
var commands []func() *cobra.Command

// Exit codes: 0 yes, 1 no (refused, failed), 2 wrong usage or environment.
// An exitError sets one; any other error of a command's RunE is a 1.
type exitError struct {
	code int
	err  error // nil: everything was said already
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// usage marks wrong usage or environment: a missing tool, an unreadable file.
func usage(format string, args ...any) error {
	return &exitError{2, fmt.Errorf(format, args...)}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:]))
}

func run(ctx context.Context, args []string) int {
	started := false
	root := &cobra.Command{
		Use:           "hpcrctl",
		Short:         "Make keys, contracts and images for hpcr guests, run them and ask for their health",
		Long:          rootHelp,
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRun: func(*cobra.Command, []string) {
			started = true // flags and arguments parsed: errors from here on are the command's own
		},
	}
	for _, make := range commands {
		root.AddCommand(make())
	}
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var exit *exitError
	if !errors.As(err, &exit) {
		exit = &exitError{1, err}
		if !started {
			exit.code = 2
		}
	}
	if exit.err != nil {
		fmt.Fprintln(os.Stderr, "hpcrctl:", err)
	}
	if !started {
		fmt.Fprintln(os.Stderr, "hpcrctl: see 'hpcrctl --help'")
	}
	return exit.code
}

const rootHelp = `hpcrctl makes what an hpcr guest boots from, and talks to running guests.

A first boot, from nothing:
  hpcrctl keys new --out keys                                   keys of your own image
  hpcrctl image build --arch amd64 --keys keys --dev --out image
  hpcrctl contract encrypt --cert keys/contract.crt contract.yaml > user-data
  hpcrctl run --image image --user-data user-data --until ready

Results go to stdout, everything else to stderr. Exit status: 0 yes, done;
1 no, refused, failed; 2 wrong usage or environment.`
