// Command hpcr-disk works on the guest's disks, in short-lived children of the
// agent and of PID 1. It is a binary of its own: it starts in a fifth of the
// time that cmd/hpcr takes, and links nothing that it does not need with a
// hostile disk in its hands.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"hpcr/agent/sandbox"
	"hpcr/agent/storage"
)

func main() {
	if err := sandbox.Keep(); err != nil {
		fmt.Fprintln(os.Stderr, "hpcr-disk:", err)
		os.Exit(2)
	}
	switch name := filepath.Base(os.Args[0]); name {
	case "disk-open":
		storage.OpenMain()
	case "disk-check":
		storage.CheckMain()
	case "disk-images":
		storage.ImagesMain()
	case "disk-close":
		storage.CloseMain()
	default:
		fmt.Fprintf(os.Stderr, "hpcr-disk: no applet %q\n", name)
		os.Exit(2)
	}
}
