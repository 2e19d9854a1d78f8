// Command hpcr is the guest's binary for all but PID 1. Its hard links in the
// initrd are its applets; the name it is called by chooses.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"hpcr/agent"
	"hpcr/agent/attest"
	"hpcr/agent/boot"
	"hpcr/agent/ctrd"
	"hpcr/agent/sandbox"
)

func main() {
	if err := sandbox.Keep(); err != nil {
		fmt.Fprintln(os.Stderr, "hpcr:", err)
		os.Exit(2)
	}
	switch name := filepath.Base(os.Args[0]); name {
	case "agent":
		os.Exit(agent.Main())
	case "contract":
		boot.ContractMain()
	case "signer":
		attest.SignerMain()
	case "containerd":
		os.Exit(ctrd.Daemon(os.Args[1:]))
	case "containerd-shim-runc-v2":
		ctrd.Shim()
	default:
		fmt.Fprintf(os.Stderr, "hpcr: no applet %q\n", name)
		os.Exit(2)
	}
}
