// Command ctrd is containerd and its shim, by the name that it is called by,
// as cmd/hpcr has them.
package main

import (
	"os"
	"path/filepath"

	"hpcr/agent/ctrd"
)

func main() {
	if filepath.Base(os.Args[0]) == "containerd" {
		os.Exit(ctrd.Daemon(os.Args[1:]))
	}
	ctrd.Shim()
}
