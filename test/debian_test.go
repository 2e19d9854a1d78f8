//go:build vm

package test

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
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
	"e2fsprogs", "libext2fs2", "libcom-err2",
}

// debianInit brings the guest up and runs /script; device finds a disk by its
// serial.
const debianInit = `#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /run /mnt /bin /sbin
/bin/busybox --install -s /bin
export PATH=/sbin:/usr/sbin:/bin DM_DISABLE_UDEV=1
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev; mount -t tmpfs run /run
exec >/dev/console 2>&1
for pass in 1 2 3; do
  for m in $(grep -o '"/lib/modules[^"]*"' /etc/hpcr/modules.json | tr -d '"'); do insmod $m 2>/dev/null; done
done
for i in 1 2 3 4 5 6 7 8 9; do ls /dev/vd* >/dev/null 2>&1 && break; sleep 1; done
device() { grep -lx "$1" /sys/block/vd*/serial | sed 's,/sys/block/\(.*\)/serial,/dev/\1,'; }
. /script
poweroff -f
`

// debianScript opens the volume as its owner would, with stock commands only.
const debianScript = `
cryptsetup open --key-file /passphrase /dev/vda2 data && mount -t ext4 /dev/mapper/data /mnt && echo "DEBIAN READS $(wc -l < /mnt/visits)"
umount /mnt && cryptsetup close data && echo "DEBIAN CLOSED"
`

// debianOpens boots a guest of Debian's own programs with the disk.
func debianOpens(t *testing.T, lab *scenario.Lab, disk string, c peers.Contract, want string) {
	t.Helper()
	debian(t, lab, c, debianScript, []qemu.Disk{{File: disk}}, "DEBIAN READS "+want, "DEBIAN CLOSED")
}

// debianMakes formats and fills a volume for each line of formats, with the
// defaults of Debian's cryptsetup but for what the line says.
const debianMakes = `
while read name args; do
  disk=$(device $name); [ -e ${disk}2 ] && disk=${disk}2
  cryptsetup luksFormat -q --key-file /passphrase $args $disk && cryptsetup open --key-file /passphrase $disk $name &&
  /sbin/mke2fs -q -t ext4 /dev/mapper/$name && mount -t ext4 /dev/mapper/$name /mnt && echo "made by Debian" > /mnt/visits &&
  umount /mnt && cryptsetup close $name && echo "DEBIAN MADE $name"
done < /formats
`

// debianReads opens them all again.
const debianReads = `
while read name args; do
  disk=$(device $name); [ -e ${disk}2 ] && disk=${disk}2
  cryptsetup open --key-file /passphrase $disk $name && /sbin/e2fsck -fn /dev/mapper/$name && mount -t ext4 -o ro /dev/mapper/$name /mnt &&
  echo "DEBIAN READS $name $(head -n 1 /mnt/visits), $(wc -l < /mnt/visits) lines" && umount /mnt && cryptsetup close $name
done < /formats
`

// debianFormats are volumes by name; the last one's disk has two partitions.
var debianFormats = [][2]string{
	{"defaults", ""}, {"luks1", "--type luks1 --iter-time 100"}, {"pbkdf2", "--pbkdf pbkdf2 --iter-time 100"},
	{"sectors", "--sector-size 4096 --iter-time 100"}, {"partition", "--iter-time 100"}, // an emulated processor is slow
}

var debianScenarios = []scenario.Scenario{{
	Name:     "volumes that a plain Debian made open in the guest, and Debian reads what the guest wrote",
	Attacker: "nobody: an owner who brings volumes of cryptsetup's defaults, of LUKS1, of PBKDF2, of sectors of 4096 bytes, in a partition",
	Claim:    "A container counts its start in the file that Debian left on each; Debian opens each again, finds a clean file system and both lines. Judge is Debian's own cryptsetup.",
	Tier:     scenario.Full,
	Archs:    scenario.Both,
	Cost:     150 * time.Second,
	Run:      debianVolumes,
}}

func debianVolumes(t *testing.T, lab *scenario.Lab) {
	c := lab.Contract(t)
	c.Workload.Volumes, c.Env.Volumes = map[string]peers.WorkloadVolume{}, map[string]peers.EnvVolume{}
	var services strings.Builder
	services.WriteString("services:\n")
	var disks []qemu.Disk
	var attach, made, reads []string
	var ports []int
	exist := map[string]any{}
	for i, f := range debianFormats {
		name, port := f[0], 8081+i
		file := sparse(t, lab, name+".img", 160<<20)
		if name == "partition" {
			lab.Command(t, "sh", "-c", "echo 'label: gpt\nsize=100M\n' | sfdisk -q '"+file+"' && echo ',' | sfdisk -q --append '"+file+"'")
		}
		disks = append(disks, qemu.Disk{Serial: name, File: file})
		attach = append(attach, name+"="+file)
		made = append(made, "DEBIAN MADE "+name)
		reads = append(reads, "DEBIAN READS "+name+" made by Debian, 2 lines")
		ports = append(ports, port)
		exist[name] = map[string]any{"existing": true}
		c.Workload.Volumes[name] = peers.WorkloadVolume{Mount: "/mnt/" + name, Seed: scenario.WorkloadSeed}
		c.Env.Volumes[name] = peers.EnvVolume{Seed: scenario.EnvSeed}
		fmt.Fprintf(&services, "  %[1]s:\n    image: %[2]s\n    environment: {DATA: /mnt/%[1]s}\n    volumes: [\"/mnt/%[1]s:/mnt/%[1]s\"]\n    ports: [\"%[3]d:8080\"]\n",
			name, lab.Web(t), port)
	}
	c.Workload.XHPCR = map[string]any{"volumes": exist}
	c.Workload.Compose = lab.Compose(t, services.String())
	debian(t, lab, c, debianMakes, disks, made...)
	if t.Failed() {
		return
	}
	lab.Boot(t, scenario.Boot{
		UserData: lab.Encrypt(t, c), Disks: attach, Publish: ports, Limit: 6 * time.Minute,
		While: func(g *scenario.Guest) {
			for i, port := range ports {
				if page := fetch(t, "http://"+g.Address(port)+"/"); !strings.HasPrefix(page, "starts: 2\n") {
					t.Errorf("%s: the page is %q", debianFormats[i][0], page)
				}
			}
		},
	}).Ready(t)
	debian(t, lab, c, debianReads, disks, reads...)
}

// debian boots a guest of Debian's own programs that runs a script with the
// passphrase of the contract's first volume, and expects lines of it.
func debian(t *testing.T, lab *scenario.Lab, c peers.Contract, script string, disks []qemu.Disk, want ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	tree := initramfs.NewTree()
	addDebian(t, ctx, tree, lab.Arch)
	tree.File("init", 0o755, []byte(debianInit))
	tree.File("script", 0o644, []byte(script))
	var formats strings.Builder
	for _, f := range debianFormats {
		fmt.Fprintf(&formats, "%s %s\n", f[0], f[1])
	}
	tree.File("formats", 0o644, []byte(formats.String()))
	volume := slices.Min(slices.Collect(maps.Keys(c.Env.Volumes)))
	tree.File("passphrase", 0o600, lab.Hpcrctl(t, "volume", "passphrase", "--contract", lab.Sign(t, c), "--key", filepath.Join(lab.Keys, "contract.key"), "--volume", volume))

	// The kernel lays one archive over the other: its modules and our lists of
	// them come from the image, everything that runs from Debian.
	image := lab.Image(t)
	dir, err := os.MkdirTemp(lab.Dir, "debian")
	if err != nil {
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
	vm, err := qemu.Start(ctx, qemu.Options{Image: dir, Dir: sockets, Memory: 1024, Disks: disks})
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
	for _, line := range want {
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
