package ctrd

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/containerd/containerd/v2/cmd/containerd/server"
	srvconfig "github.com/containerd/containerd/v2/cmd/containerd/server/config"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/version"
	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
)

// The guest's places.
const (
	Root    = "/var/lib/containerd"
	State   = "/run/containerd"
	Address = "/run/containerd/containerd.sock"
)

// Daemon is the containerd applet. It serves until SIGTERM or SIGINT and
// returns the process's exit status: 0 in order, 1 failed, 2 wrong usage.
func Daemon(args []string) int {
	fs := flag.NewFlagSet("containerd", flag.ContinueOnError)
	root := fs.String("root", Root, "folder of images, snapshots and metadata")
	state := fs.String("state", State, "folder of running tasks")
	address := fs.String("address", Address, "socket to serve on")
	level := fs.String("log-level", "warn", "trace, debug, info, warn or error")
	if err := fs.Parse(args); err != nil {
		return 2
	}
	logrus.SetOutput(os.Stderr)
	if os.Getenv("PATH") == "" { // the shim's -info call looks for runc in it
		os.Setenv("PATH", "/bin:/sbin")
	}
	if err := log.SetLevel(*level); err != nil {
		fmt.Fprintln(os.Stderr, "containerd:", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	signal.Ignore(syscall.SIGPIPE)
	if err := serve(ctx, config(*root, *state, *address)); err != nil {
		fmt.Fprintln(os.Stderr, "containerd:", err)
		return 1
	}
	return 0
}

// config is all of containerd's configuration; no file is read.
func config(root, state, address string) *srvconfig.Config {
	return &srvconfig.Config{
		Version:         version.ConfigVersion,
		Root:            root,
		State:           state,
		OOMScore:        -900,
		RequiredPlugins: daemonPlugins,
		DisabledPlugins: others(daemonPlugins),
		Plugins: map[string]any{
			"io.containerd.server.v1.grpc":  map[string]any{"address": address},
			"io.containerd.server.v1.ttrpc": map[string]any{"address": address + ".ttrpc"},
			"io.containerd.shim.v1.manager": map[string]any{"socket_dir": filepath.Join(state, "s")},
		},
	}
}

func serve(ctx context.Context, cfg *srvconfig.Config) error {
	if err := server.CreateTopLevelDirectories(cfg); err != nil {
		return fmt.Errorf("folders: %w", err)
	}
	if err := mount.SetTempMountLocation(filepath.Join(cfg.Root, "tmpmounts")); err != nil {
		return fmt.Errorf("temporary mounts: %w", err)
	}
	// Left over from a daemon that was killed while it unpacked.
	if warnings, err := mount.CleanupTempMounts(0); err != nil || len(warnings) > 0 {
		log.G(ctx).WithError(err).Warn("temporary mounts of an earlier run could not all be removed")
	}
	srv, err := server.New(ctx, cfg)
	if err != nil {
		return err
	}
	defer srv.Stop()
	if err := srv.Start(ctx); err != nil {
		return err
	}
	// containerd's listener leaves 0660, for group root; nobody but root.
	for _, address := range []string{"io.containerd.server.v1.grpc", "io.containerd.server.v1.ttrpc"} {
		path := cfg.Plugins[address].(map[string]any)["address"].(string)
		if err := os.Chmod(path, 0o600); err != nil {
			return err
		}
	}
	srv.Wait()
	<-ctx.Done()
	return nil
}
