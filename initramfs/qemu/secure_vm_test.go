//go:build vm

package qemu

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"hpcr/initramfs"
	"hpcr/initramfs/seimage"
	"hpcr/initramfs/seimage/softuv"
)

// Attack: the host starts a Secure Execution image where there is none, or
// gives it an initrd and a command line of its own. Claim: the loader stops; and
// once an Ultravisor (here: a test's) has unpacked it, what runs is the image's
// kernel with the image's initrd and command line.
func TestGuestOfASecureExecutionImage(t *testing.T) {
	if !slices.Contains(archs(), "s390x") {
		t.Skip("s390x only")
	}
	host, document, err := softuv.Machine()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "host.crt")
	if err := os.WriteFile(file, document, 0o644); err != nil {
		t.Fatal(err)
	}
	dir := build(t, initramfs.BuildOptions{Arch: "s390x", HostKeyDocuments: []string{file}, HostKeyTrust: seimage.Trust{None: true}})
	sealed, err := os.ReadFile(filepath.Join(dir, initramfs.SecureImageFile))
	if err != nil {
		t.Fatal(err)
	}

	t.Run("not in Secure Execution", func(t *testing.T) {
		t.Parallel()
		vm := guest(t, context.Background(), asHost(t, sealed))
		for range vm.Events() {
			t.Error("something in it runs")
		}
		if console := end(t, vm); !strings.Contains(console, "Secure unpack facility is not available") {
			t.Errorf("console: %q", console)
		}
	})
	t.Run("unpacked", func(t *testing.T) {
		t.Parallel()
		g, err := softuv.Unpack(sealed, host)
		if err != nil {
			t.Fatal(err)
		}
		vm := guest(t, context.Background(), asHost(t, g.Start()))
		var got []string
		for raw := range vm.Events() {
			var e struct{ T string }
			if err := json.Unmarshal(raw, &e); err != nil {
				t.Fatal(err)
			}
			if got = append(got, e.T); e.T == "hello" || e.T == "verdict" {
				if err := vm.Send(map[string]any{"cmd": "stop"}); err != nil {
					t.Fatal(err)
				}
			}
		}
		if console := end(t, vm); strings.Join(got, " ") != "hello phase verdict off" {
			t.Errorf("events %q\n%s", got, console)
		}
	})
}

// asHost makes an image folder as a host would: kernel, and an initrd and a
// command line that would end the guest.
func asHost(t *testing.T, kernel []byte) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range map[string][]byte{
		initramfs.KernelFile: kernel, initramfs.InitrdFile: []byte("no initrd"),
		initramfs.ParmFile: []byte("rdinit=/nothing hpcr.test=panic"), initramfs.ManifestFile: []byte(`{"arch":"s390x"}`),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
