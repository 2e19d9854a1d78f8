package network

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

var update = flag.Bool("update", false, "rewrite golden files")

// The tests need links, routes and a firewall of their own, so the test binary
// runs itself again in fresh network and mount namespaces. Without root it
// does so as root of a user namespace.
const inside = "HPCR_NETWORK_TEST_INSIDE"

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
	goleak.VerifyTestMain(m)
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
	runtime.LockOSThread() // Pdeathsig is the thread's
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	if err := cmd.Run(); err != nil {
		if cmd.ProcessState != nil && cmd.ProcessState.ExitCode() > 0 {
			return cmd.ProcessState.ExitCode()
		}
		fmt.Fprintln(os.Stderr, "run the tests in their own namespaces:", err)
		return 1
	}
	return 0
}

// prepare: /run is ours for "ip netns", /sys shows our cards.
func prepare() error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := syscall.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("/run: %w", err)
	}
	// This kernel may filter bridged frames as routed ones; the guest's, without
	// br_netfilter, does not.
	if err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-iptables", []byte("0"), 0o644); err != nil && !os.IsNotExist(err) {
		return err
	}
	for _, tool := range []string{"ip", "nft", "dnsmasq", "chronyd"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%w: install the test tools with 'make deps'", err)
		}
	}
	return nil
}
