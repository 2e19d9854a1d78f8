package workload

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"hpcr/agent/ctrd"
)

// The tests run real containers, so the test binary runs itself again in fresh
// mount and network namespaces, with a cgroup v2 tree as in the guest. It is
// also the containerd and shim that the tests talk to.
const inside = "HPCR_WORKLOAD_TEST_INSIDE"

func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case "containerd":
		os.Exit(ctrd.Daemon(os.Args[1:]))
	case "containerd-shim-runc-v2":
		ctrd.Shim()
		return
	}
	if os.Getenv(inside) == "" {
		os.Exit(reexec())
	}
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, "prepare the test's namespaces:", err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		os.RemoveAll(lab)
		os.Exit(code)
	}))
}

func reexec() int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "containers need root: run this package's tests as root")
		return 1
	}
	runtime.LockOSThread() // Pdeathsig is the thread's
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		if cmd.ProcessState != nil && cmd.ProcessState.ExitCode() > 0 {
			return cmd.ProcessState.ExitCode()
		}
		fmt.Fprintln(os.Stderr, "run the tests in their own namespaces:", err)
		return 1
	}
	return 0
}

// lab holds the binaries and folders of all tests; its name is short because
// sockets lie in it.
var lab string

const runcTags = "seccomp,runc_nocriu,netgo,osusergo,urfave_cli_no_docs"

func prepare() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := unix.Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, ""); err != nil {
		return fmt.Errorf("cgroup v2: %w", err)
	}
	// Orphaned containers come back to us, as they do to init in the guest.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0); err != nil {
		return err
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("loopback: %w: %s (install the test tools with 'make deps')", err, out)
	}
	var err error
	if lab, err = os.MkdirTemp("/tmp", "wl"); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for _, applet := range []string{"containerd", "containerd-shim-runc-v2"} {
		if err := copyFile(self, filepath.Join(lab, applet)); err != nil {
			return err
		}
	}
	// A container has no libraries: the probe is built without cgo, which the
	// race detector's test binary is not.
	probe := exec.Command("go", "build", "-o", filepath.Join(lab, "probe"), "./testdata/probe")
	probe.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := probe.CombinedOutput(); err != nil {
		return fmt.Errorf("build the probe: %w\n%s", err, out)
	}
	if runc := os.Getenv("HPCR_TEST_RUNC"); runc != "" {
		return copyFile(runc, filepath.Join(lab, "runc"))
	}
	build := exec.Command("go", "build", "-tags", runcTags, "-o", filepath.Join(lab, "runc"), "github.com/opencontainers/runc")
	build.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build runc (libseccomp-dev comes with 'make deps'): %w\n%s", err, out)
	}
	return nil
}

func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o755)
}

// processes lists command lines of processes that hold word.
func processes(t *testing.T, word string) []string {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, d := range dirs {
		if line, err := os.ReadFile(d); err == nil && strings.Contains(string(line), word) {
			out = append(out, filepath.Base(filepath.Dir(d))+": "+strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return out
}
