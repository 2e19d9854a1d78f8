package sandbox

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain lets the test binary be the confined child.
func TestMain(m *testing.M) {
	switch os.Getenv("SANDBOX_CHILD") {
	case "hold":
		hold()
	case "keep":
		os.Exit(keep())
	case "":
		os.Exit(m.Run())
	}
	os.Exit(confinedChild())
}

// confinedChild works as the contract child does, then tries to get out.
func confinedChild() int {
	if err := errors.Join(Keep(), Confine()); err != nil {
		fmt.Println("confine:", err)
		return 1
	}
	in, err := io.ReadAll(os.Stdin)
	if err != nil || string(in) != "input" {
		fmt.Println("stdin:", err)
		return 1
	}
	var wg sync.WaitGroup // threads, timers and the collector still work
	for range 8 {
		wg.Go(func() {
			b := make([]byte, 4<<20)
			time.Sleep(time.Millisecond)
			runtime.GC()
			runtime.KeepAlive(b)
		})
	}
	wg.Wait()
	attempts := map[string]func() error{
		"open":   func() error { _, err := os.Open("/etc/passwd"); return err },
		"stat":   func() error { _, err := os.Stat("/"); return err },
		"create": func() error { return os.WriteFile("/tmp/x", nil, 0o600) },
		"dial":   func() error { _, err := net.Dial("tcp", "127.0.0.1:1"); return err },
		"vsock":  func() error { _, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0); return err },
		"exec":   func() error { return unix.Exec("/bin/true", []string{"true"}, nil) },
		"kill":   func() error { return unix.Kill(os.Getppid(), 0) },
		"ptrace": func() error { return unix.PtraceAttach(1) },
		"mount":  func() error { return unix.Mount("x", "/tmp", "tmpfs", 0, "") },
		"setuid": func() error { return unix.Setuid(0) },
		"bpf":    func() error { _, _, e := unix.Syscall(unix.SYS_BPF, 0, 0, 0); return e },
	}
	for name, try := range attempts {
		if err := try(); !errors.Is(err, unix.EPERM) {
			fmt.Printf("%s: got %v, want EPERM\n", name, err)
			return 1
		}
	}
	fmt.Println("confined")
	return 0
}

// TestKeep reads back what a process of ours has done to itself, by way of a
// child: it holds for good.
func TestKeep(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "SANDBOX_CHILD=keep")
	out, err := cmd.CombinedOutput()
	if err != nil || string(out) != "before: 1 0\nafter: 0 1\n" {
		t.Errorf("%v: %q", err, out)
	}
}

// keep shows whether this process may be dumped and does without huge pages.
func keep() int {
	show := func(when string) {
		dumpable, err1 := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
		disabled, err2 := unix.PrctlRetInt(unix.PR_GET_THP_DISABLE, 0, 0, 0, 0)
		if err := errors.Join(err1, err2); err != nil {
			fmt.Println(err)
		}
		fmt.Printf("%s: %d %d\n", when, dumpable, disabled)
	}
	show("before")
	if err := Keep(); err != nil {
		fmt.Println(err)
	}
	show("after")
	return 0
}

func TestConfine(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "SANDBOX_CHILD=1")
	cmd.Stdin = strings.NewReader("input")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "confined") {
		t.Errorf("%v: %s", err, out)
	}
}

func TestSealedFile(t *testing.T) {
	f, err := SealedFile("x", []byte("key"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("no"), 0); err == nil {
		t.Error("a sealed file took a write")
	}
	if b, err := io.ReadAll(f); err != nil || string(b) != "key" {
		t.Errorf("read %q, %v", b, err)
	}
}
