package ctrd

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
)

// The test binary is also the applets, so that real processes are tested.
func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case "containerd":
		os.Exit(Daemon(os.Args[1:]))
	case "containerd-shim-runc-v2":
		Shim()
		return
	}
	os.Exit(m.Run())
}

// applet starts the test binary under another name.
func applet(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Args[0] = name
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

func TestDaemonServesAndStops(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("containerd mounts file systems: run this test as root")
	}
	dir, err := os.MkdirTemp("/tmp", "ctrd") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	sock := filepath.Join(dir, "state", "c.sock")
	cmd := applet(t, "containerd", "--root", filepath.Join(dir, "root"), "--state", filepath.Join(dir, "state"), "--address", sock)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill() }() // already gone when all went well

	client := dial(t, sock, &stderr)
	defer client.Close()
	ctx := namespaces.WithNamespace(t.Context(), "test")
	info, err := client.IntrospectionService().Plugins(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range info.Plugins {
		uri := p.Type + "." + p.ID
		if !slices.Contains(daemonPlugins, uri) {
			t.Errorf("%s runs, but nobody asked for it", uri)
		}
		if p.InitErr != nil {
			t.Errorf("%s: %s", uri, p.InitErr.Message)
		}
	}
	if len(info.Plugins) != len(daemonPlugins) {
		t.Errorf("%d plugins run, %d are listed", len(info.Plugins), len(daemonPlugins))
	}
	for _, path := range []string{sock, sock + ".ttrpc"} {
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if fi.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %o", filepath.Base(path), fi.Mode().Perm())
		}
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("did not stop in order: %v\n%s", err, stderr.String())
	}
}

func dial(t *testing.T, sock string, stderr *strings.Builder) *containerd.Client {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Log(stderr.String())
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for ctx.Err() == nil {
		if _, err := os.Stat(sock); err != nil {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		c, err := containerd.New(sock, containerd.WithTimeout(5*time.Second))
		if err == nil {
			return c
		}
	}
	t.Fatal("containerd does not answer")
	return nil
}

func TestDaemonRefusesWrongArguments(t *testing.T) {
	for name, args := range map[string][]string{
		"unknown flag":   {"--debug-address", "/x"},
		"unknown level":  {"--log-level", "loud"},
		"missing folder": {"--root", "", "--state", "/x"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := applet(t, "containerd", args...).Run(); err == nil {
				t.Error("accepted")
			}
		})
	}
}

// The shim's process sees its own plugin only: one of the daemon's would open
// the daemon's database.
func TestShimKeepsOnePlugin(t *testing.T) {
	all := registry.Graph(func(*plugin.Registration) bool { return false })
	defer func() {
		registry.Reset()
		for i := range all {
			registry.Register(&all[i])
		}
	}()
	only(shimTask)
	left := registry.Graph(func(*plugin.Registration) bool { return false })
	if len(left) != 1 || left[0].URI() != shimTask {
		t.Errorf("left: %v", left)
	}
}
