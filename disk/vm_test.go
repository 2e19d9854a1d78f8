//go:build vm

package disk

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/xts"

	"hpcr/disk/luks2"
	"hpcr/initramfs"
	"hpcr/initramfs/qemu"
)

const (
	vmPass  = "5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8" // guestPass of guest_test.go
	vmLimit = 20 * time.Minute
	vmSize  = 256 * mib

	grownSize = 640 * mib
	wholeSize = 160 * mib // vmDisk of second_guest_test.go: each of its sectors is written at creation
)

// TestInGuests runs the tests of *_guest_test.go in guests of our image: a first boot that
// makes volumes; one with disks of a hostile host, whose bytes must be the
// same afterwards; one more after the owner visited with cryptsetup.
func TestInGuests(t *testing.T) {
	for _, arch := range archs() {
		t.Run(arch, func(t *testing.T) {
			t.Parallel()
			g := newGuest(t, arch)
			d := disks{t: t, dir: t.TempDir()}

			data, kept := d.blank("data", vmSize), d.blank("kept", vmSize)
			kinds := []qemu.Disk{d.blank("fs-ext4", vmSize), d.blank("fs-xfs", 448*mib), d.blank("fs-btrfs", vmSize), d.blank("no-root", vmSize)}
			stock := []qemu.Disk{
				d.stock("stock-argon", false, "--type", "luks2", "--pbkdf", "argon2id", "--pbkdf-memory", "32768", "--pbkdf-parallel", "1", "--pbkdf-force-iterations", "4"),
				d.stock("stock-pbkdf", false, "--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "20000", "--sector-size", "512"),
				d.stock("stock-luks1", false, "--type", "luks1", "--pbkdf-force-iterations", "20000"),
				d.stock("stock-part", true, "--type", "luks2", "--pbkdf", "argon2id", "--pbkdf-memory", "32768", "--pbkdf-parallel", "2", "--pbkdf-force-iterations", "4"),
			}
			g.boot(t, "^(TestFirstBoot|TestPlantedLink|TestCloseBesideHung|TestMakeKept|TestCidata|TestFilesystems|TestUevents)$", append([]qemu.Disk{data, kept, d.blank("spare", vmSize), d.cut("cut"),
				d.iso("one", "cidata"), d.fat("two", "DOUBLE"), d.fat("three", "double")}, kinds...)...)

			d.owner(data.File)
			d.damaged(g, kinds)
			kinds = kinds[:3]
			for _, v := range kinds {
				must(t, os.Truncate(v.File, grownSize))
			}
			g.boot(t, "^(TestSecondBoot|TestHeaderChanged|TestIntegrity|TestGrown|TestForeign|TestRoll)$", slices.Concat([]qemu.Disk{data, d.blank("whole", wholeSize)}, kinds, stock)...)
			if out := run(t, "sgdisk", "--verify", d.path("whole")); !strings.Contains(out, "No problems found") {
				t.Errorf("sgdisk: the volume with integrity reaches into the backup table: %s", out)
			}
			for i, judge := range [][]string{{"e2fsck", "-fn"}, {"xfs_repair", "-n", "-f"}, {"btrfs", "check", "--readonly"}} {
				if out := run(t, "sgdisk", "--verify", kinds[i].File); !strings.Contains(out, "No problems found") {
					t.Errorf("%s: sgdisk: %s", kinds[i].Serial, out)
				}
				pass := vmPass
				if i == 0 {
					pass = rolledPass // it was rolled
				}
				run(t, judge[0], append(judge[1:], d.plain(kinds[i].File, pass))...)
			}

			hostile := []qemu.Disk{kept, d.blank("short", vmSize), d.blank("small", 64*mib),
				d.shrunk("shrunk"), d.blank("twin", vmSize), {Serial: "twin", File: d.blank("twin2", vmSize).File}}
			before := map[string]string{}
			hostile = append(hostile, stock[1], stock[2]) // whose seeds the contract wants rolled
			for _, v := range hostile {
				before[v.File] = sum(t, v.File)
			}
			g.boot(t, "^TestRefused$", append(hostile, stock[0])...)
			for file, want := range before {
				if got := sum(t, file); got != want {
					t.Errorf("%s: the guest changed a disk that it refused", filepath.Base(file))
				}
			}
		})
	}
}

func full() bool { return os.Getenv("HPCR_TIER") == "full" }

// beside says whether tier core leaves an architecture to amd64: never one that
// was asked for by itself.
func beside(arch string) bool { return arch != "amd64" && !full() && len(archs()) > 1 }

func archs() []string {
	if v := os.Getenv("HPCR_ARCHS"); v != "" {
		return strings.Fields(v)
	}
	return []string{"amd64", "s390x"}
}

// guest is an image of ours whose init is this package's test binary.
type guest struct {
	image string
	parm  []byte
	args  []string // of QEMU, besides its own
}

func newGuest(t *testing.T, arch string) *guest {
	t.Helper()
	ctx, dir := t.Context(), t.TempDir()
	g := &guest{image: filepath.Join(dir, "image")}
	keys := filepath.Join(dir, "keys")
	must(t, initramfs.NewKeys(keys, initramfs.KeyOptions{Flavour: initramfs.FlavourDev}))
	_, err := initramfs.Build(ctx, initramfs.BuildOptions{Arch: arch, Keys: []string{keys}, Dev: true, Out: g.image,
		Agent: "./disk/internal/idle", Log: os.Stderr})
	must(t, err)
	g.parm, err = os.ReadFile(filepath.Join(g.image, initramfs.ParmFile))
	must(t, err)

	binary := filepath.Join(dir, "disktest")
	build := exec.CommandContext(ctx, "go", "test", "-c", "-tags", "guest", "-o", binary, ".")
	build.Env = append(os.Environ(), "GOARCH="+arch, "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	program, err := os.ReadFile(binary)
	must(t, err)
	initrd, err := os.ReadFile(filepath.Join(g.image, initramfs.InitrdFile))
	must(t, err)
	tree := initramfs.NewTree()
	tree.File("disktest", 0o755, program)
	more := bytes.NewBuffer(append(initrd, make([]byte, -len(initrd)&3)...)) // archives begin at multiples of 4
	must(t, tree.Write(more, time.Unix(0, 0)))
	must(t, os.WriteFile(filepath.Join(g.image, initramfs.InitrdFile), more.Bytes(), 0o600))
	return g
}

// boot runs the tests that run matches and takes over their verdict. The
// channel is the event port: a guest that dies without a word has failed.
func (g *guest) boot(t *testing.T, run string, disks ...qemu.Disk) {
	t.Helper()
	vm, end := g.start(t, run, disks...)
	defer end()
	code, passed := -1, false
	for raw := range vm.Events() {
		var e struct {
			T, Line string
			Code    int
		}
		must(t, json.Unmarshal(raw, &e))
		if e.T == "end" {
			code = e.Code
			continue
		}
		t.Log(e.Line)
		passed = passed || strings.HasPrefix(e.Line, "--- PASS")
	}
	<-vm.Done()
	if err := vm.Err(); err != nil || code != 0 || !passed {
		text, rerr := os.ReadFile(vm.Console())
		t.Fatalf("guest: %v %v, tests' status %d\n%s", err, rerr, code, text)
	}
}

// start boots the image into the tests that run matches.
func (g *guest) start(t *testing.T, run string, disks ...qemu.Disk) (vm *qemu.VM, end func()) {
	t.Helper()
	parm := fmt.Sprintf("%s rdinit=/disktest -- -test.v -test.run=%s\n", bytes.TrimSpace(g.parm), run)
	must(t, os.WriteFile(filepath.Join(g.image, initramfs.ParmFile), []byte(parm), 0o600))
	dir, err := os.MkdirTemp("", "disk") // sockets want a short path
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), vmLimit)
	vm, err = qemu.Start(ctx, qemu.Options{Image: g.image, Disks: disks, Memory: 768, Dir: dir, Args: g.args})
	must(t, err)
	return vm, func() {
		cancel() // which kills a machine that is not off
		<-vm.Done()
		must(t, os.RemoveAll(dir))
	}
}

// disks makes what a host attaches.
type disks struct {
	t   *testing.T
	dir string
}

func (d disks) path(name string) string { return filepath.Join(d.dir, name) }

func (d disks) blank(name string, size int64) qemu.Disk {
	d.t.Helper()
	f, err := os.Create(d.path(name))
	must(d.t, err)
	must(d.t, f.Truncate(size))
	must(d.t, f.Close())
	return qemu.Disk{Serial: name, File: d.path(name)}
}

func (d disks) edit(v qemu.Disk, do func(f *os.File)) qemu.Disk {
	d.t.Helper()
	f, err := os.OpenFile(v.File, os.O_RDWR, 0)
	must(d.t, err)
	defer f.Close()
	do(f)
	return v
}

// cut is a disk on which a creation lost power in the middle of its tables.
func (d disks) cut(name string) qemu.Disk {
	d.t.Helper()
	return d.edit(d.blank(name, vmSize), func(f *os.File) {
		must(d.t, luks2.Mark(part{f, dataStart, vmSize - dataStart}))
		_, err := f.WriteAt([]byte("half a table"), vmSize-33*512)
		must(d.t, err)
	})
}

func (d disks) iso(name, label string) qemu.Disk {
	d.t.Helper()
	must(d.t, os.MkdirAll(d.path("tree"), 0o755))
	must(d.t, os.WriteFile(d.path("tree/user-data"), []byte("x"), 0o644))
	run(d.t, "genisoimage", "-quiet", "-V", label, "-r", "-J", "-o", d.path(name), d.path("tree"))
	return qemu.Disk{Serial: name, File: d.path(name)}
}

func (d disks) fat(name, label string) qemu.Disk {
	d.t.Helper()
	v := d.blank(name, 16*mib)
	run(d.t, "mkfs.vfat", "-n", label, v.File)
	return v
}

// shrunk is a volume's disk of which the host shows only the first part.
func (d disks) shrunk(name string) qemu.Disk {
	d.t.Helper()
	v := d.blank(name, vmSize)
	run(d.t, "sgdisk", "-n", "1:0:+100M", "-n", "2:0:0", v.File)
	must(d.t, os.Truncate(v.File, vmSize-16*mib))
	return v
}

// plain is plainAs for a volume that is named like its file.
func (d disks) plain(file, passphrase string) string {
	d.t.Helper()
	return d.plainAs(file, filepath.Base(file), passphrase)
}

// plainAs decrypts a volume of our make and returns the file with its file
// system: the machine of the test has no device mapper.
func (d disks) plainAs(file, name, passphrase string) string {
	d.t.Helper()
	f, err := os.Open(file)
	must(d.t, err)
	defer f.Close()
	start, length, key := d.unlock(f, name, passphrase)
	out, err := os.Create(file + ".plain")
	must(d.t, err)
	defer out.Close()
	must(d.t, out.Truncate(length))
	chunk := make([]byte, mib)
	for at := int64(0); at < length; at += mib {
		chunk := chunk[:min(mib, length-at)]
		_, err := f.ReadAt(chunk, start+at)
		must(d.t, err)
		if !nonzero(chunk) {
			continue // never written: what it decrypts to is nobody's business
		}
		for i := 0; i < len(chunk); i += 4096 {
			if s := chunk[i : i+4096]; nonzero(s) {
				key.Decrypt(s, s, uint64((at+int64(i))/512))
			}
		}
		_, err = out.WriteAt(chunk, at)
		must(d.t, err)
	}
	return out.Name()
}

// filesystem is an ext4 with a file in it.
func (d disks) filesystem(name string) []byte {
	d.t.Helper()
	must(d.t, os.MkdirAll(d.path("content"), 0o755))
	must(d.t, os.WriteFile(d.path("content/file"), []byte("from the host"), 0o644))
	fs := d.blank(name+".fs", 16*mib)
	run(d.t, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-d", d.path("content"), fs.File)
	b, err := os.ReadFile(fs.File)
	must(d.t, err)
	return b
}

// stock makes a volume as cryptsetup or HPCR does, with a file in it. The
// machine of the test has no device mapper: the content is encrypted here,
// with the volume key that cryptsetup was given.
func (d disks) stock(name string, partitioned bool, args ...string) qemu.Disk {
	d.t.Helper()
	key := bytes.Repeat([]byte(name[6:8]), 32)
	key[0]++
	must(d.t, os.WriteFile(d.path("key"), key, 0o600))
	must(d.t, os.WriteFile(d.path("pass"), []byte(vmPass), 0o600))
	v := d.blank(name+".volume", 96*mib)
	run(d.t, "cryptsetup", append(append([]string{"luksFormat", "-q", "--key-size", "512", "--cipher", cipher, "--volume-key-file", d.path("key")}, args...), v.File, d.path("pass"))...)

	plain := d.filesystem(name)
	d.edit(v, func(f *os.File) {
		im, err := luks2.Read(f, 96*mib)
		must(d.t, err)
		foreign, err := im.Foreign()
		must(d.t, err)
		c, err := xts.NewCipher(aes.NewCipher, key)
		must(d.t, err)
		for at := 0; at < len(plain); at += foreign.SectorSize {
			s := plain[at : at+foreign.SectorSize]
			c.Encrypt(s, s, uint64(at/512))
		}
		_, err = f.WriteAt(plain, foreign.DataOffset)
		must(d.t, err)
	})
	if !partitioned {
		return qemu.Disk{Serial: name, File: v.File}
	}
	disk := d.blank(name, vmSize)
	run(d.t, "sgdisk", "-n", "1:0:+100M", "-n", "2:0:+96M", disk.File)
	volume, err := os.ReadFile(v.File)
	must(d.t, err)
	return d.edit(disk, func(f *os.File) {
		parts, err := partsOf(f, vmSize, 512)
		must(d.t, err)
		_, err = f.WriteAt(volume, parts[1].start)
		must(d.t, err)
	})
}

// owner opens the volume as its owner does, with nothing of ours.
func (d disks) owner(file string) {
	d.t.Helper()
	if out := run(d.t, "sgdisk", "--verify", file); !strings.Contains(out, "No problems found") {
		d.t.Errorf("sgdisk: %s", out)
	}
	if out := run(d.t, "sfdisk", "--dump", file); !strings.Contains(out, `name="metadata"`) || !strings.Contains(out, `name="data"`) {
		d.t.Errorf("sfdisk: %s", out)
	}
	must(d.t, os.WriteFile(d.path("pass"), []byte(vmPass), 0o600))
	cut := func(name string, start, size int64) string {
		in, err := os.Open(file)
		must(d.t, err)
		defer in.Close()
		out, err := os.Create(d.path(name))
		must(d.t, err)
		_, err = io.Copy(out, io.NewSectionReader(in, start, size))
		must(d.t, err)
		must(d.t, out.Close())
		return out.Name()
	}
	parts, err := layout(vmSize)
	must(d.t, err)
	meta := cut("metadata.img", parts[0].start, parts[0].size)
	run(d.t, "e2fsck", "-fn", meta)
	if out := run(d.t, "dumpe2fs", "-h", meta); !strings.Contains(out, "Filesystem volume name:   metadata") {
		d.t.Errorf("metadata: %s", out)
	}
	volume := cut("data.img", parts[1].start, parts[1].size)
	run(d.t, "cryptsetup", "open", "--test-passphrase", "--key-file", d.path("pass"), volume)
	run(d.t, "cryptsetup", "luksDump", volume)
}

func sum(t *testing.T, file string) string {
	t.Helper()
	f, err := os.Open(file)
	must(t, err)
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	must(t, err)
	return fmt.Sprintf("%x", h.Sum(nil))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
