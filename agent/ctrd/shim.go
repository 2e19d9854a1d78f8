package ctrd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/manager"
	"github.com/containerd/containerd/v2/pkg/shim"
	"golang.org/x/sys/unix"
)

// ShimName is the runtime's name, and the base of the shim's file name.
const ShimName = "io.containerd.runc.v2"

// GroupAnnotation with the value Group makes a container share the one shim
// process. Every container of ours has it.
const (
	GroupAnnotation = "io.containerd.runc.v2.group"
	Group           = "hpcr"
)

// Shim is the containerd-shim-runc-v2 applet. It reads os.Args itself, as
// containerd starts it, and exits the process when it fails.
func Shim() {
	// What our own processes go without, containers inherit from the shim.
	if err := unix.Prctl(unix.PR_SET_THP_DISABLE, 0, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "shim: huge pages:", err)
		os.Exit(1)
	}
	only(shimTask)
	shim.RunShim(context.Background(), grouped{manager.NewShimManager(ShimName)})
}

// grouped looks for the running shim with more patience than containerd's own
// 100 ms. On a busy machine those pass by, and containerd then takes the
// socket away from a shim that is well, whose containers the next daemon would
// not find again.
type grouped struct{ shim.Shim }

const patience = 10 * time.Second

func (g grouped) Start(ctx context.Context, p *bootapi.BootstrapParams) (*bootapi.BootstrapResult, error) {
	dir := p.GetSocketDir()
	if dir == "" {
		dir = filepath.Join(State, "s")
	}
	address, err := shim.CreateSocketAddress(ctx, dir, p.GetContainerdGrpcAddress(), Group, false)
	if err != nil {
		return nil, err
	}
	// A socket that nobody serves refuses at once.
	if conn, err := shim.AnonDialer(address, patience); err == nil {
		conn.Close()
		return &bootapi.BootstrapResult{Version: 3, Protocol: "ttrpc", Address: address}, nil
	}
	return g.Shim.Start(ctx, p)
}
