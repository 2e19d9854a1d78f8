// Command hpcr-init is PID 1. It is a binary of its own, apart from cmd/hpcr:
// a package of four hundred that fails to initialise would otherwise take the
// kernel down with it, and PID 1 would carry all their memory.
package main

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"hpcr/agent/pid1"
)

func main() {
	if filepath.Base(os.Args[0]) == "sync" {
		unix.Sync()
		return
	}
	// PID 1 lives without it as well, and has no console yet to say so on.
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	pid1.Main()
}
