//go:build !dev

package agent

import (
	"io"
	"os"
	"strings"

	"hpcr/agent/hpl"
)

// Flavour is that of this build.
const Flavour = "release"

// guestFile is 1 in a Secure Execution guest (arch/s390/kernel/uv.c). The
// measured kernel fills it: a safety interlock, not evidence.
const guestFile = "/sys/firmware/uv/prot_virt_guest"

// interlock refuses to touch a contract outside Secure Execution.
func interlock() error { return protected(guestFile) }

func protected(file string) error {
	refuse := func(err error) error {
		return hpl.Wrap(err, "HPL11000E", "", "not in Secure Execution: start this image with its SE header on a host with prot_virt=1")
	}
	f, err := os.Open(file)
	if err != nil {
		return refuse(err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 16))
	if err != nil || strings.TrimSuffix(string(b), "\n") != "1" {
		return refuse(err)
	}
	return nil
}
