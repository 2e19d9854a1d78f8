package workload

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// The tests run real containers, so the test binary runs itself again in fresh
// mount and network namespaces, with a cgroup v2 tree as in the guest.
const inside = "HPCR_WORKLOAD_TEST_INSIDE"

func TestMain(m *testing.M) {
	if fuzzing() {
		os.Exit(m.Run())
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

// fuzzing says whether this is a fuzz run or one of its workers: they talk over
// descriptors that would not survive the second start, and parsers need no
// namespaces.
func fuzzing() bool {
	return slices.ContainsFunc(os.Args, func(a string) bool {
		return strings.HasPrefix(a, "-test.fuzz=") || strings.HasPrefix(a, "-test.fuzzworker")
	})
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

const (
	runcTags = "seccomp,runc_nocriu,netgo,osusergo,urfave_cli_no_docs"
	ctrdTags = "no_btrfs,no_devmapper,no_zfs,no_cri,no_systemd,no_tracing,no_rdt,netgo,osusergo,urfave_cli_no_docs"
)

func prepare() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil { // for ip netns
		return fmt.Errorf("/run: %w", err)
	}
	if err := os.Mkdir("/run/netns", 0o755); err != nil {
		return err
	}
	if err := unix.Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, ""); err != nil {
		return fmt.Errorf("cgroup v2: %w", err)
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("loopback: %w: %s (install the test tools with 'make deps')", err, out)
	}
	var err error
	if lab, err = os.MkdirTemp("/tmp", "wl"); err != nil {
		return err
	}
	// containerd and the probe are built apart: without the race detector, which
	// makes the daemon ten times slower, and without the C library, which a
	// container does not have.
	for out, from := range map[string]string{"containerd": "./testdata/ctrd", "probe": "./testdata/probe"} {
		if err := goBuild(out, "0", ctrdTags, from); err != nil {
			return err
		}
	}
	if err := os.Link(filepath.Join(lab, "containerd"), filepath.Join(lab, "containerd-shim-runc-v2")); err != nil {
		return err
	}
	if err := goBuild("runc", "1", runcTags, "github.com/opencontainers/runc"); err != nil {
		return fmt.Errorf("%w (libseccomp-dev comes with 'make deps')", err)
	}
	return nil
}

func goBuild(out, cgo, tags, from string) error {
	build := exec.Command("go", "build", "-tags", tags, "-o", filepath.Join(lab, out), from)
	build.Env = append(os.Environ(), "CGO_ENABLED="+cgo)
	if text, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", out, err, text)
	}
	return nil
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
