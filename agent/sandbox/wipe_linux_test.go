package sandbox

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A canary is half of the needle twice, so that no process holds it by chance.
const half = "canary-in-a-child "

var held [][]byte

// hold fills heap and stack with canaries and waits for the end.
func hold() {
	for range 1000 {
		held = append(held, bytes.Repeat([]byte(half), 100))
	}
	var stack [512]byte
	copy(stack[:], half+half)
	fmt.Println("holding")
	time.Sleep(time.Hour)
	fmt.Println(string(stack[:]))
}

// TestWipeProcess leaves nothing of a child that has stopped.
func TestWipeProcess(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "SANDBOX_CHILD=hold")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }() // killed below
	defer func() { _ = cmd.Process.Kill() }()
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "holding\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if err := cmd.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for stat := ""; !strings.Contains(stat, ") T "); time.Sleep(time.Millisecond) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		stat = string(b)
	}
	if n := canaries(t, cmd.Process.Pid); n < 1000 {
		t.Fatalf("only %d canaries before: the search cannot fail", n)
	}
	if err := wipeProcess(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if n := canaries(t, cmd.Process.Pid); n != 0 {
		t.Errorf("%d canaries are left", n)
	}
}

// canaries counts them in the memory of a process that it could write to.
func canaries(t *testing.T, pid int) int {
	t.Helper()
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	n, buf := 0, make([]byte, step)
	err = eachPresent(pid, func(at, size int64) error {
		_, err := mem.ReadAt(buf[:size], at)
		n += bytes.Count(buf[:size], []byte(half+half))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}
