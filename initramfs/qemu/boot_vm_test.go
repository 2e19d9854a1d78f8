//go:build vm

package qemu

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"hpcr/initramfs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func archs() []string {
	if v := os.Getenv("HPCR_ARCHS"); v != "" {
		return strings.Fields(v)
	}
	return []string{"amd64", "s390x"}
}

// build makes an image around the smallest init.
func build(t *testing.T, o initramfs.BuildOptions) string {
	t.Helper()
	keys := t.TempDir()
	for _, name := range []string{"contract", "attestation"} {
		out, err := exec.Command("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=t",
			"-keyout", filepath.Join(keys, name+".key"), "-out", filepath.Join(keys, name+".crt")).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s (openssl missing? run make deps)", err, out)
		}
	}
	o.Keys, o.Dev, o.Agent, o.Log = []string{keys}, true, "./initramfs/testdata/init", os.Stderr
	o.Out = filepath.Join(t.TempDir(), "image")
	if _, err := initramfs.Build(context.Background(), o); err != nil {
		t.Fatal(err)
	}
	return o.Out
}

// image is one that can be booted; add goes to its command line.
func image(t *testing.T, arch, add string) string {
	t.Helper()
	dir := build(t, initramfs.BuildOptions{Arch: arch})
	parm := filepath.Join(dir, initramfs.ParmFile)
	line, err := os.ReadFile(parm)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(parm, []byte(strings.ReplaceAll(string(line), "quiet ", "")+" "+add), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// guest starts an image; its end within the limit is the test's own concern.
func guest(t *testing.T, ctx context.Context, dir string) *VM {
	t.Helper()
	short, err := os.MkdirTemp("/tmp", "vm")
	if err != nil {
		t.Fatal(err)
	}
	vm, err := Start(ctx, Options{Image: dir, Dir: short, Memory: 512})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		vm.Kill()
		<-vm.Done()
		for range vm.Events() { // drained, so that nothing waits for a reader
		}
		if err := os.RemoveAll(short); err != nil {
			t.Error(err)
		}
	})
	return vm
}

// end waits for the machine to be off.
func end(t *testing.T, vm *VM) string {
	t.Helper()
	select {
	case <-vm.Done():
	case <-time.After(2 * time.Minute):
		t.Error("the machine is still on")
	}
	text, err := os.ReadFile(vm.Console())
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// The event port carries JSON both ways, and the machine ends by itself with
// all events delivered.
func TestGuestTalksAndPowersOff(t *testing.T) {
	for _, arch := range archs() {
		t.Run(arch, func(t *testing.T) {
			t.Parallel()
			vm := guest(t, context.Background(), image(t, arch, ""))
			var got []string
			for raw := range vm.Events() {
				var e struct{ T string }
				if err := json.Unmarshal(raw, &e); err != nil {
					t.Fatal(err)
				}
				got = append(got, e.T)
				switch e.T {
				case "hello":
					if err := vm.Send(map[string]any{"cmd": "go"}); err != nil {
						t.Fatal(err)
					}
				case "verdict":
					if err := vm.Send(map[string]any{"cmd": "stop"}); err != nil {
						t.Fatal(err)
					}
				}
			}
			console := end(t, vm)
			if want := "hello phase verdict off"; strings.Join(got, " ") != want {
				t.Errorf("events %q, want %q\n%s", got, want, console)
			}
			if !strings.Contains(console, `GOT "{\"cmd\":\"go\"}`) || !strings.Contains(console, "OFF") {
				t.Errorf("console:\n%s", console)
			}
			if err := vm.Err(); err != nil {
				t.Error(err)
			}
			if how := vm.End(); how != EndPowerOff {
				t.Errorf("the machine ended by %q, want %q", how, EndPowerOff)
			}
		})
	}
}

// A kernel that panics must end the machine: neither a loop of boots nor a
// guest that looks alive.
func TestPanicEndsTheMachine(t *testing.T) {
	for _, arch := range archs() {
		t.Run(arch, func(t *testing.T) {
			t.Parallel()
			vm := guest(t, context.Background(), image(t, arch, "hpcr.test=panic"))
			console := end(t, vm)
			if n := strings.Count(console, "INIT at"); n != 1 || !strings.Contains(console, "Attempted to kill init") {
				t.Errorf("booted %d times:\n%s", n, console)
			}
			want := map[string]End{"amd64": EndReset, "s390x": EndPanic}[arch]
			if how := vm.End(); how != want {
				t.Errorf("the machine ended by %q, want %q", how, want)
			}
		})
	}
}

// A guest that does nothing dies with its context, without a zombie.
func TestHungGuestDiesWithItsContext(t *testing.T) {
	arch := archs()[0]
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	vm := guest(t, ctx, image(t, arch, "hpcr.test=hang"))
	var seen bytes.Buffer
	for limit := time.Now().Add(2 * time.Minute); !strings.Contains(seen.String(), "INIT at"); time.Sleep(100 * time.Millisecond) {
		text, err := os.ReadFile(vm.Console())
		if err != nil {
			t.Fatal(err)
		}
		seen.Reset()
		seen.Write(text)
		if time.Now().After(limit) {
			t.Fatalf("never came up:\n%s", text)
		}
	}
	cancel()
	select {
	case <-vm.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("still alive")
	}
	if err := vm.Err(); err == nil {
		t.Error("a killed machine looks like a power-off")
	}
	if how := vm.End(); how != EndUnknown {
		t.Errorf("a killed machine ended by %q", how)
	}
}

// What QEMU does not take is said with QEMU's own words.
func TestBadArgumentIsExplained(t *testing.T) {
	dir := image(t, archs()[0], "")
	short, err := os.MkdirTemp("/tmp", "vm")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(short)
	_, err = Start(context.Background(), Options{Image: dir, Dir: short, Args: []string{"-no-such-option"}})
	if err == nil || !strings.Contains(err.Error(), "no-such-option") {
		t.Errorf("got %v", err)
	}
}
