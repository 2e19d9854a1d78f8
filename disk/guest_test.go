//go:build guest

package disk

// The tests of this package that carry the tag guest run as PID 1 of a guest: only
// there are a device mapper and disks to lose. vm_test.go builds the guest, makes
// its disks, and compares what is left on them.

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hpcr/agent/hpl"
	"hpcr/agent/secret"
)

const guestPass = "5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8"

var cheap = KDF{MemoryKiB: 32 << 10, Time: 4, Parallel: 1}

// port is the guest's line to its host: events out, commands in.
var port *os.File

func TestMain(m *testing.M) {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "tests with the tag guest run only as a guest's first process: see vm_test.go")
		os.Exit(2)
	}
	var err error
	if port, err = bringUp(); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		powerOff()
	}
	// Each line of the tests' output is one JSON event to the host.
	r, w, err := os.Pipe()
	if err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		powerOff()
	}
	done := make(chan struct{})
	enc := json.NewEncoder(port)
	go func() {
		defer close(done)
		for lines := bufio.NewScanner(r); lines.Scan(); {
			if err := enc.Encode(map[string]any{"t": "line", "line": lines.Text()}); err != nil {
				fmt.Fprintln(os.Stderr, "guest:", err)
			}
			fmt.Fprintln(os.Stderr, lines.Text())
		}
	}()
	os.Stdout = w
	code := m.Run()
	w.Close()
	<-done
	if err := enc.Encode(map[string]any{"t": "end", "code": code}); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
	}
	unix.Sync()
	time.Sleep(100 * time.Millisecond) // the port has no flush
	powerOff()
}

func powerOff() {
	for {
		if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
			fmt.Fprintln(os.Stderr, "guest:", err)
		}
		time.Sleep(time.Second)
	}
}

func bringUp() (*os.File, error) {
	for _, m := range [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/tmp"}} {
		if err := os.MkdirAll(m[1], 0o755); err != nil {
			return nil, err
		}
		if err := unix.Mount(m[0], m[1], m[0], 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("mount %s: %w", m[1], err)
		}
	}
	list, err := os.ReadFile("/etc/hpcr/modules.json")
	if err != nil {
		return nil, err
	}
	var modules struct{ Groups map[string][]string }
	if err := json.Unmarshal(list, &modules); err != nil {
		return nil, err
	}
	for _, path := range slices.Concat(modules.Groups["base"], modules.Groups["disk"], modules.Groups["xfs"], modules.Groups["btrfs"], modules.Groups["integrity"]) {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENODEV) {
			return nil, fmt.Errorf("module %s: %w", path, err)
		}
	}
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			if b, err := os.ReadFile(n); err == nil && strings.TrimSpace(string(b)) == "org.hpcr.events" {
				return os.OpenFile("/dev/"+filepath.Base(filepath.Dir(n)), os.O_RDWR, 0)
			}
		}
	}
	return nil, errors.New("no event port")
}

func spec(name string, pass ...string) Spec {
	s := Spec{Name: name, Path: "/workload/volumes/#1", Mount: "/mnt/" + name, MayCreate: true}
	for _, p := range pass {
		s.Passphrases = append(s.Passphrases, secret.FromString(p))
	}
	return s
}

func options(t *testing.T) Options {
	return Options{KDF: cheap, Wait: time.Second, Log: slog.New(slog.NewTextHandler(os.Stdout, nil))}
}

func open(t *testing.T, o Options, specs ...Spec) []*Volume {
	t.Helper()
	vols, err := OpenAll(t.Context(), specs, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := CloseAll(context.Background(), time.Second); err != nil {
			t.Error(err)
		}
		none(t)
	})
	return vols
}

// none: no mapping and no mount is left.
func none(t *testing.T) {
	t.Helper()
	var left []string
	var err error
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) { // the kernel removes a node after its mapping
		if left, err = filepath.Glob("/sys/block/dm-*"); len(left) == 0 {
			break
		}
	}
	if err != nil || len(left) > 0 {
		t.Errorf("mappings left: %v, %v", left, err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || bytes.Contains(mounts, []byte("/mnt/")) {
		t.Errorf("mounts left: %v\n%s", err, mounts)
	}
}

// refused opens what must not open, soon.
func refused(t *testing.T, o Options, code hpl.Code, specs ...Spec) *hpl.Error {
	t.Helper()
	start := time.Now()
	vols, err := OpenAll(t.Context(), specs, o)
	if err == nil {
		t.Fatalf("opened: %+v", vols[0])
	}
	e := hpl.From(err)
	if e.Code != code {
		t.Errorf("got %v, want %s", err, code)
	}
	if o.Wait > time.Minute && time.Since(start) > time.Minute {
		t.Errorf("took %v: waited for a disk that is there", time.Since(start))
	}
	none(t)
	t.Logf("%v", err)
	return e
}

// patient waits longer than any of these tests may take: a refusal must come
// at once.
func patient(t *testing.T) Options {
	o := options(t)
	o.Wait = time.Hour
	return o
}

// others are all disks but those with the given serials.
func others(t *testing.T, keep ...string) []string {
	t.Helper()
	all, err := scan(nil)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, d := range all {
		if !slices.Contains(keep, d.serial) {
			names = append(names, d.name)
		}
	}
	return names
}
