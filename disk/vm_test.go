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
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/xts"

	"hpcr/agent/secret"
	"hpcr/disk/luks2"
	"hpcr/initramfs"
)

const (
	vmPass  = "5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8" // guestPass of guest_test.go
	vmLimit = 5 * time.Minute
	vmSize  = 256 * mib
)

// TestInGuests runs guest_test.go in guests of our image: a first boot that
// makes volumes; one with disks of a hostile host, whose bytes must be the
// same afterwards; one more after the owner visited with cryptsetup.
func TestInGuests(t *testing.T) {
	for _, arch := range []string{"amd64", "s390x"} {
		t.Run(arch, func(t *testing.T) {
			t.Parallel()
			g := newGuest(t, arch)
			d := disks{t: t, dir: t.TempDir()}

			data, kept := d.blank("data", vmSize), d.blank("kept", vmSize)
			g.boot(t, "^(TestFirstBoot|TestMakeKept|TestCidata)$", data, kept, d.blank("spare", vmSize), d.cut("cut"),
				d.iso("one", "cidata"), d.fat("two", "DOUBLE"), d.fat("three", "double"))

			d.owner(data.file)
			g.boot(t, "^TestSecondBoot$", data)

			hostile := []vmDisk{kept, d.ext4("foreign"), d.parts("onepart", 1), d.parts("twoparts", 2), d.parts("threeparts", 3),
				d.nullCipher("nullcipher", "cipher_null-ecb"), d.nullCipher("injected", "cipher_null-ecb - 0 /dev/vda 32768 1 x"),
				d.stripped("stripped"), d.renamed("renamed"), d.blank("short", vmSize), d.blank("small", 64*mib),
				d.blank("twin", vmSize), {serial: "twin", file: d.blank("twin2", vmSize).file}}
			stock := []vmDisk{
				d.stock("stock-argon", false, "--type", "luks2", "--pbkdf", "argon2id", "--pbkdf-memory", "32768", "--pbkdf-parallel", "1", "--pbkdf-force-iterations", "4"),
				d.stock("stock-pbkdf", false, "--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "20000", "--sector-size", "512"),
				d.stock("stock-luks1", false, "--type", "luks1", "--pbkdf-force-iterations", "20000"),
				d.stock("stock-part", true, "--type", "luks2", "--pbkdf", "argon2id", "--pbkdf-memory", "32768", "--pbkdf-parallel", "2", "--pbkdf-force-iterations", "4"),
			}
			before := map[string]string{}
			for _, v := range hostile {
				before[v.file] = sum(t, v.file)
			}
			g.boot(t, "^(TestRefused|TestForeign)$", append(hostile, stock...)...)
			for file, want := range before {
				if got := sum(t, file); got != want {
					t.Errorf("%s: the guest changed a disk that it refused", filepath.Base(file))
				}
			}
		})
	}
}

type vmDisk struct{ serial, file string }

// guest is an image of ours whose init is this package's test binary.
type guest struct {
	arch, dir string
	qemu      initramfs.Qemu
	runs      int
}

func newGuest(t *testing.T, arch string) *guest {
	t.Helper()
	ctx := t.Context()
	g := &guest{arch: arch, dir: t.TempDir()}
	var err error
	if arch == "s390x" {
		g.qemu, err = initramfs.QemuS390x(ctx, os.Stderr)
	} else {
		g.qemu, err = initramfs.QemuX86(ctx, os.Stderr)
	}
	must(t, err)
	keys := filepath.Join(g.dir, "keys")
	must(t, initramfs.NewKeys(keys, initramfs.KeyOptions{Flavour: initramfs.FlavourDev}))
	image := filepath.Join(g.dir, "image")
	_, err = initramfs.Build(ctx, initramfs.BuildOptions{Arch: arch, Keys: []string{keys}, Dev: true, Out: image, Agent: "./disk/internal/idle", Log: os.Stderr})
	must(t, err)

	binary := filepath.Join(g.dir, "disktest")
	build := exec.CommandContext(ctx, "go", "test", "-c", "-tags", "guest", "-o", binary, ".")
	build.Env = append(os.Environ(), "GOARCH="+arch, "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	program, err := os.ReadFile(binary)
	must(t, err)
	initrd, err := os.ReadFile(filepath.Join(image, initramfs.InitrdFile))
	must(t, err)
	tree := initramfs.NewTree()
	tree.File("disktest", 0o755, program)
	more := bytes.NewBuffer(append(initrd, make([]byte, -len(initrd)&3)...)) // archives begin at multiples of 4
	must(t, tree.Write(more, time.Unix(0, 0)))
	must(t, os.WriteFile(filepath.Join(g.dir, "initrd"), more.Bytes(), 0o600))
	return g
}

// boot runs the tests that run matches and takes over their verdict. The
// channel is the event port: a guest that dies without a word has failed.
func (g *guest) boot(t *testing.T, run string, disks ...vmDisk) {
	t.Helper()
	g.runs++
	events, console := filepath.Join(g.dir, fmt.Sprint("events-", g.runs)), filepath.Join(g.dir, fmt.Sprint("console-", g.runs))
	args := append([]string{}, g.qemu.Args...)
	args = append(args, "-accel", "tcg,thread=single", "-cpu", "max", "-smp", "1", "-m", "768", "-nodefaults", "-no-user-config",
		"-display", "none", "-no-reboot", "-kernel", filepath.Join(g.dir, "image", initramfs.KernelFile), "-initrd", filepath.Join(g.dir, "initrd"),
		"-chardev", "file,id=events,path="+events, "-chardev", "file,id=console,path="+console)
	bus, tty := "pci", "ttyS0"
	if g.arch == "s390x" {
		bus, tty = "ccw", "ttysclp0"
		args = append(args, "-machine", "s390-ccw-virtio", "-device", "sclpconsole,chardev=console")
	} else {
		args = append(args, "-machine", "q35", "-serial", "chardev:console")
	}
	args = append(args, "-append", "rdinit=/disktest panic=-1 quiet console="+tty+" -- -test.v -test.run="+run,
		"-device", "virtio-serial-"+bus, "-device", "virtserialport,chardev=events,name=org.hpcr.events")
	for i, d := range disks {
		args = append(args, "-blockdev", fmt.Sprintf(`{"node-name":"d%d","driver":"raw","file":{"driver":"file","filename":%q}}`, i, d.file),
			"-device", fmt.Sprintf("virtio-blk-%s,drive=d%d,serial=%s", bus, i, d.serial))
	}
	ctx, cancel := context.WithTimeout(t.Context(), vmLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, g.qemu.Path, args...)
	cmd.Env = append(os.Environ(), g.qemu.Env...)
	out, err := cmd.CombinedOutput()
	lines, code := readEvents(t, events)
	for _, l := range lines {
		t.Log(l)
	}
	if err != nil || code != 0 || !strings.Contains(strings.Join(lines, "\n"), "--- PASS") {
		text, rerr := os.ReadFile(console)
		t.Fatalf("guest: %v %v, tests' status %d\n%s\n%s", err, rerr, code, out, text)
	}
}

func readEvents(t *testing.T, file string) (lines []string, code int) {
	t.Helper()
	f, err := os.Open(file)
	must(t, err)
	defer f.Close()
	for dec := json.NewDecoder(f); ; {
		var e struct {
			T, Line string
			Code    int
		}
		if err := dec.Decode(&e); err != nil {
			return lines, -1 // no end event: the guest died
		}
		if e.T == "end" {
			return lines, e.Code
		}
		lines = append(lines, e.Line)
	}
}

// disks makes what a host attaches.
type disks struct {
	t   *testing.T
	dir string
}

func (d disks) path(name string) string { return filepath.Join(d.dir, name) }

func (d disks) blank(name string, size int64) vmDisk {
	d.t.Helper()
	f, err := os.Create(d.path(name))
	must(d.t, err)
	must(d.t, f.Truncate(size))
	must(d.t, f.Close())
	return vmDisk{name, d.path(name)}
}

func (d disks) edit(v vmDisk, do func(f *os.File)) vmDisk {
	d.t.Helper()
	f, err := os.OpenFile(v.file, os.O_RDWR, 0)
	must(d.t, err)
	defer f.Close()
	do(f)
	return v
}

// cut is a disk on which a creation lost power in the middle of its tables.
func (d disks) cut(name string) vmDisk {
	d.t.Helper()
	return d.edit(d.blank(name, vmSize), func(f *os.File) {
		must(d.t, luks2.Mark(part{f, dataStart, vmSize - dataStart}))
		_, err := f.WriteAt([]byte("half a table"), vmSize-33*512)
		must(d.t, err)
	})
}

func (d disks) iso(name, label string) vmDisk {
	d.t.Helper()
	must(d.t, os.MkdirAll(d.path("tree"), 0o755))
	must(d.t, os.WriteFile(d.path("tree/user-data"), []byte("x"), 0o644))
	run(d.t, "genisoimage", "-quiet", "-V", label, "-r", "-J", "-o", d.path(name), d.path("tree"))
	return vmDisk{name, d.path(name)}
}

func (d disks) fat(name, label string) vmDisk {
	d.t.Helper()
	v := d.blank(name, 16*mib)
	run(d.t, "mkfs.vfat", "-n", label, v.file)
	return v
}

func (d disks) ext4(name string) vmDisk {
	d.t.Helper()
	v := d.blank(name, vmSize)
	run(d.t, "mke2fs", "-q", "-F", "-t", "ext4", v.file)
	return v
}

func (d disks) parts(name string, n int) vmDisk {
	d.t.Helper()
	v := d.blank(name, vmSize)
	args := []string{}
	for i := range n {
		args = append(args, "-n", fmt.Sprintf("%d:0:+20M", i+1))
	}
	run(d.t, "sgdisk", append(args, v.file)...)
	return v
}

// stock makes a volume as cryptsetup or HPCR does, with a file in it. The
// machine of the test has no device mapper: the content is encrypted here,
// with the volume key that cryptsetup was given.
func (d disks) stock(name string, partitioned bool, args ...string) vmDisk {
	d.t.Helper()
	key := bytes.Repeat([]byte(name[6:8]), 32)
	key[0]++
	must(d.t, os.WriteFile(d.path("key"), key, 0o600))
	must(d.t, os.WriteFile(d.path("pass"), []byte(vmPass), 0o600))
	v := d.blank(name+".volume", 96*mib)
	run(d.t, "cryptsetup", append(append([]string{"luksFormat", "-q", "--key-size", "512", "--cipher", cipher, "--volume-key-file", d.path("key")}, args...), v.file, d.path("pass"))...)

	must(d.t, os.MkdirAll(d.path("content"), 0o755))
	must(d.t, os.WriteFile(d.path("content/file"), []byte("from the host"), 0o644))
	fs := d.blank(name+".fs", 48*mib)
	run(d.t, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-d", d.path("content"), fs.file)
	plain, err := os.ReadFile(fs.file)
	must(d.t, err)
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
		return vmDisk{name, v.file}
	}
	disk := d.blank(name, vmSize)
	run(d.t, "sgdisk", "-n", "1:0:+100M", "-n", "2:0:+96M", disk.file)
	volume, err := os.ReadFile(v.file)
	must(d.t, err)
	return d.edit(disk, func(f *os.File) {
		parts, err := readGPT(f, vmSize, 512)
		must(d.t, err)
		_, err = f.WriteAt(volume, parts[1].start)
		must(d.t, err)
	})
}

// nullCipher is a stock volume whose segment the host made plaintext.
func (d disks) nullCipher(name, encryption string) vmDisk {
	d.t.Helper()
	v := d.stock("stock-"+name, false, "--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")
	return d.edit(vmDisk{name, v.file}, func(f *os.File) {
		d.headers(f, func(text string) string {
			return strings.Replace(text, `"iv_tweak":"0","encryption":"`+cipher+`"`, `"iv_tweak":"0","encryption":"`+encryption+`"`, 1)
		})
	})
}

// ours is a finished volume of our make, without a file system.
func (d disks) ours(name, sealedAs string) vmDisk {
	d.t.Helper()
	return d.edit(d.blank(name, vmSize), func(f *os.File) {
		dev := part{f, 0, vmSize}
		pass := secret.FromString(vmPass)
		o, err := luks2.Format(dev, vmSize, luks2.FormatOptions{Passphrase: pass, Name: sealedAs, KDF: luks2.KDF{MemoryKiB: 32 << 10, Time: 4, Parallel: 1}})
		must(d.t, err)
		must(d.t, o.Commit(dev, sealedAs, luks2.Ready))
	})
}

func (d disks) renamed(name string) vmDisk { return d.ours(name, "another") }

func (d disks) stripped(name string) vmDisk {
	d.t.Helper()
	return d.edit(d.ours(name, name), func(f *os.File) {
		d.headers(f, func(text string) string {
			from, to := strings.Index(text, `"tokens":{`)+len(`"tokens":{`), strings.Index(text, `},"segments"`)
			return text[:from] + text[to:]
		})
	})
}

// headers rewrites the JSON of both LUKS2 headers and mends their checksums.
func (d disks) headers(f *os.File, change func(string) string) {
	d.t.Helper()
	for _, at := range []int64{0, 16384} {
		b := make([]byte, 16384)
		_, err := f.ReadAt(b, at)
		must(d.t, err)
		text, _, _ := strings.Cut(string(b[4096:]), "\x00")
		changed := change(text)
		if changed == text {
			d.t.Fatal("the header did not change")
		}
		clear(b[4096:])
		copy(b[4096:], changed)
		clear(b[448:512])
		s := sha256.Sum256(b)
		copy(b[448:], s[:])
		_, err = f.WriteAt(b, at)
		must(d.t, err)
	}
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
