// Command hpcr-init is PID 1. It is a binary of its own, apart from cmd/hpcr:
// a package of four hundred that fails to initialise would otherwise take the
// kernel down with it, and PID 1 would carry all their memory.
package main

import (
	"golang.org/x/sys/unix"

	"hpcr/agent/pid1"
)

func main() {
	// PID 1 lives without it as well, and has no console yet to say so on.
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	pid1.Main()
}
