// Package ctrd holds two applets of the guest's binary: containerd and its
// runc shim, built from containerd's own packages with no more plugins than
// agent/workload needs.
//
// The daemon trusts whoever can open its socket, which is root in the guest's
// own namespaces: the socket has mode 0600, there is no TCP, debug or metrics
// listener, and no container may mount the folder that it lies in.
//
// Not promised: a stable embedding. containerd keeps only its client, defaults
// and version packages stable; what this package imports beyond those may
// change with a minor release and is pinned by go.mod.
package ctrd
