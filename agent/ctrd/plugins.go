package ctrd

import (
	"slices"

	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"

	// The task service of the shim registers itself on import, as do the
	// daemon's plugins below. Both applets live in one binary, so each one
	// picks its own by URI.
	_ "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/task/plugin"

	_ "github.com/containerd/containerd/v2/core/runtime/v2"
	_ "github.com/containerd/containerd/v2/plugins/content/local/plugin"
	_ "github.com/containerd/containerd/v2/plugins/diff/walking/plugin"
	_ "github.com/containerd/containerd/v2/plugins/events"
	_ "github.com/containerd/containerd/v2/plugins/gc"
	_ "github.com/containerd/containerd/v2/plugins/leases"
	_ "github.com/containerd/containerd/v2/plugins/metadata"
	_ "github.com/containerd/containerd/v2/plugins/mount"
	_ "github.com/containerd/containerd/v2/plugins/server/grpc"
	_ "github.com/containerd/containerd/v2/plugins/server/ttrpc"
	_ "github.com/containerd/containerd/v2/plugins/services/containers"
	_ "github.com/containerd/containerd/v2/plugins/services/content"
	_ "github.com/containerd/containerd/v2/plugins/services/diff"
	_ "github.com/containerd/containerd/v2/plugins/services/events"
	_ "github.com/containerd/containerd/v2/plugins/services/images"
	_ "github.com/containerd/containerd/v2/plugins/services/introspection"
	_ "github.com/containerd/containerd/v2/plugins/services/leases"
	_ "github.com/containerd/containerd/v2/plugins/services/namespaces"
	_ "github.com/containerd/containerd/v2/plugins/services/snapshots"
	_ "github.com/containerd/containerd/v2/plugins/services/tasks"
	_ "github.com/containerd/containerd/v2/plugins/services/version"
	_ "github.com/containerd/containerd/v2/plugins/services/warning"
	_ "github.com/containerd/containerd/v2/plugins/snapshots/overlay/plugin"
)

// daemonPlugins is everything that the containerd applet runs. A plugin that
// is not listed here does not exist for it, even if an import brings it along.
var daemonPlugins = []string{
	"io.containerd.content.v1.content",
	"io.containerd.differ.v1.walking",
	"io.containerd.event.v1.exchange",
	"io.containerd.gc.v1.scheduler",
	"io.containerd.grpc.v1.containers",
	"io.containerd.grpc.v1.content",
	"io.containerd.grpc.v1.diff",
	"io.containerd.grpc.v1.events",
	"io.containerd.grpc.v1.images",
	"io.containerd.grpc.v1.introspection",
	"io.containerd.grpc.v1.leases",
	"io.containerd.grpc.v1.namespaces",
	"io.containerd.grpc.v1.snapshots",
	"io.containerd.grpc.v1.tasks",
	"io.containerd.grpc.v1.version",
	"io.containerd.lease.v1.manager",
	"io.containerd.metadata.v1.bolt",
	"io.containerd.mount-manager.v1.bolt",
	"io.containerd.runtime.v2.task",
	"io.containerd.server.v1.grpc",
	"io.containerd.server.v1.ttrpc",
	"io.containerd.service.v1.containers-service",
	"io.containerd.service.v1.content-service",
	"io.containerd.service.v1.diff-service",
	"io.containerd.service.v1.images-service",
	"io.containerd.service.v1.introspection-service",
	"io.containerd.service.v1.namespaces-service",
	"io.containerd.service.v1.snapshots-service",
	"io.containerd.service.v1.tasks-service",
	"io.containerd.shim.v1.manager",
	"io.containerd.snapshotter.v1.overlayfs",
	"io.containerd.warning.v1.deprecations",
}

const shimTask = "io.containerd.ttrpc.v1.task"

// others lists the registered plugins that are not in keep.
func others(keep []string) []string {
	var out []string
	for _, r := range registry.Graph(func(*plugin.Registration) bool { return false }) {
		if uri := r.URI(); !slices.Contains(keep, uri) {
			out = append(out, uri)
		}
	}
	return out
}

// only drops every registered plugin that is not in keep.
func only(keep ...string) {
	all := registry.Graph(func(*plugin.Registration) bool { return false })
	registry.Reset()
	for i := range all {
		if slices.Contains(keep, all[i].URI()) {
			registry.Register(&all[i])
		}
	}
}
