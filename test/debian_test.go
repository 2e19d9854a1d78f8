//go:build vm

package test

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hpcr/initramfs"
	"hpcr/initramfs/qemu"
	"hpcr/test/peers"
	"hpcr/test/scenario"
)

// debianPackages are a plain Debian system as far as opening a volume needs
// one: cryptsetup with its libraries, and a shell.
var debianPackages = []string{
	"cryptsetup-bin", "libcryptsetup12", "libdevmapper1.02.1", "libpopt0", "libuuid1", "libblkid1", "libssl3", "libjson-c5",
	"libargon2-1", "libselinux1", "libpcre2-8-0", "libudev1", "libcap2", "libc6", "busybox-static",
}

// debianInit opens the volume as its owner would, with stock commands only.
const debianInit = `#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /run /mnt /bin /sbin
/bin/busybox --install -s /bin
export PATH=/bin:/sbin:/usr/sbin DM_DISABLE_UDEV=1
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev; mount -t tmpfs run /run
exec >/dev/console 2>&1
for pass in 1 2 3; do
  for m in $(grep -o '"/lib/modules[^"]*"' /etc/hpcr/modules.json | tr -d '"'); do insmod $m 2>/dev/null; done
done
for i in 1 2 3 4 5 6 7 8 9; do [ -e /dev/vda2 ] && break; sleep 1; done
cryptsetup open --key-file /passphrase /dev/vda2 data && mount -t ext4 /dev/mapper/data /mnt && echo "DEBIAN READS $(wc -l < /mnt/visits)"
umount /mnt && cryptsetup close data && echo "DEBIAN CLOSED"
poweroff -f
`

// debianOpens boots a guest of Debian's own programs with the disk.
func debianOpens(t *testing.T, lab *scenario.Lab, disk string, c peers.Contract, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	tree := initramfs.NewTree()
	addDebian(t, ctx, tree, lab.Arch)
	tree.File("init", 0o755, []byte(debianInit))
	tree.File("passphrase", 0o600, lab.Hpcrctl(t, "volume", "passphrase", "--contract", lab.Sign(t, c), "--key", filepath.Join(lab.Keys, "contract.key"), "--volume", scenario.Volume))

	// The kernel lays one archive over the other: its modules and our lists of
	// them come from the image, everything that runs from Debian.
	image, dir := lab.Image(t), filepath.Join(lab.Dir, "debian")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{initramfs.KernelFile, initramfs.ParmFile, initramfs.ManifestFile} {
		if err := os.Symlink(filepath.Join(image, name), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	initrd, err := os.ReadFile(filepath.Join(image, initramfs.InitrdFile))
	if err != nil {
		t.Fatal(err)
	}
	all := bytes.NewBuffer(append(initrd, make([]byte, -len(initrd)&511)...))
	if err := tree.Write(all, time.Unix(0, 0)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, initramfs.InitrdFile), all.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	sockets, err := os.MkdirTemp("", "vm")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(sockets)
	vm, err := qemu.Start(ctx, qemu.Options{Image: dir, Dir: sockets, Memory: 1024, Disks: []qemu.Disk{{File: disk}}})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for range vm.Events() { // it has none
		}
	}()
	<-vm.Done() // by its power-off, or by the context
	console, err := os.ReadFile(vm.Console())
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"DEBIAN READS " + want, "DEBIAN CLOSED"} {
		if !strings.Contains(string(console), line) {
			t.Errorf("a plain Debian does not say %q:\n%s", line, console)
		}
	}
}

// addDebian unpacks the packages' programs and libraries into the tree.
func addDebian(t *testing.T, ctx context.Context, tree *initramfs.Tree, arch string) {
	t.Helper()
	debian, err := initramfs.NewDebian(arch, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	var wants []initramfs.Want
	for _, name := range debianPackages {
		wants = append(wants, initramfs.Want{Name: name})
	}
	packages, err := debian.Fetch(ctx, "test-debian", wants)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range packages {
		root, err := debian.Unpack(ctx, p)
		if err != nil {
			t.Fatal(err)
		}
		err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			name := strings.TrimPrefix(strings.TrimPrefix(path, root), "/")
			if err != nil || name == "" || strings.HasPrefix(name, "usr/share") || strings.HasPrefix(name, "etc") {
				return err
			}
			switch d.Type() {
			case fs.ModeDir:
				tree.Dir(name, 0o755)
			case fs.ModeSymlink:
				target, err := os.Readlink(path)
				if err != nil {
					return err
				}
				tree.Symlink(name, target)
			case 0:
				data, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				tree.File(name, 0o755, data)
			default:
				return fmt.Errorf("%s is no file", name)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
