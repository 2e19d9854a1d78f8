// Command deps installs what this repository's builds and tests need from
// Debian's packages, and does nothing where all is there. Its arguments are the
// architectures of the guests; none means all. `make deps` runs it.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"hpcr/initramfs"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := initramfs.EnsureHostTools(ctx, os.Args[1:], os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "deps:", err)
		os.Exit(2)
	}
}
