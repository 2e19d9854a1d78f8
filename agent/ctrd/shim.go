package ctrd

import (
	"context"

	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/manager"
	"github.com/containerd/containerd/v2/pkg/shim"
)

// ShimName is the runtime's name, and the base of the shim's file name.
const ShimName = "io.containerd.runc.v2"

// GroupAnnotation makes all containers of a spec with the same value share
// one shim process.
const GroupAnnotation = "io.containerd.runc.v2.group"

// Shim is the containerd-shim-runc-v2 applet. It reads os.Args itself, as
// containerd starts it, and exits the process when it fails.
func Shim() {
	only(shimTask)
	shim.RunShim(context.Background(), manager.NewShimManager(ShimName))
}
