//go:build vm

package disk

import (
	"fmt"
	"testing"

	"hpcr/initramfs/qemu"
)

// TestBenchInGuest is make bench's part that needs a device mapper. The guest's
// clock counts instructions (2 ns each) while it works, as for the hardening's
// figure: the machine's load does not blur the ratios.
func TestBenchInGuest(t *testing.T) {
	g := newGuest(t, "amd64")
	g.args = []string{"-icount", "shift=1,sleep=on"}
	d := disks{t: t, dir: t.TempDir()}
	all := []qemu.Disk{d.blank("table", vmSize)}
	for _, name := range []string{"plain", "stock", "new"} {
		for i := range benchTurns {
			all = append(all, d.blank(fmt.Sprint(name, i), 64<<30))
		}
	}
	g.boot(t, "^(TestBenchTable|TestBenchFormat)$", all...)
}
