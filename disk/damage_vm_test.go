//go:build vm

package disk

import (
	"bytes"
	"crypto/aes"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/crypto/xts"

	"hpcr/agent/secret"
	"hpcr/disk/luks2"
	"hpcr/initramfs/qemu"
)

// damaged boots with copies of volumes whose file systems are damaged inside
// the encryption, as a bug of a kernel or a broken disk does it: a host without
// the key only makes noise of sectors, which looks the same to the guest.
func (d disks) damaged(g *guest, kinds []qemu.Disk) {
	d.t.Helper()
	noise := func(at int64) func(string) {
		return func(plain string) {
			d.edit(qemu.Disk{File: plain}, func(f *os.File) {
				_, err := f.WriteAt([]byte("noise"), at)
				must(d.t, err)
			})
		}
	}
	debugfs := func(commands ...string) func(string) {
		return func(plain string) {
			for _, c := range append(commands, "ssv state 2") { // errors were seen: e2fsck looks at all
				run(d.t, "debugfs", "-w", "-R", c, plain)
			}
		}
	}
	var all []qemu.Disk
	before := map[string]string{}
	for i, damage := range []func(string){debugfs("sif file links_count 5"), noise(0x300), noise(0x10000 + 0x300), debugfs("clri <2>")} {
		v := qemu.Disk{Serial: kinds[i].Serial, File: d.path("damaged-" + kinds[i].Serial)}
		run(d.t, "cp", "--sparse=always", kinds[i].File, v.File)
		d.replain(v, damage)
		all = append(all, v)
		if i == 1 || i == 2 {
			before[v.File] = sum(d.t, v.File)
		}
	}
	whole := d.stock("stock-whole", false, "--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "20000")
	must(d.t, os.Truncate(whole.File, 24*mib)) // of 96, with a header of 16 and a file system of 16
	none := d.ready("no-fs")
	before[whole.File], before[none.File] = sum(d.t, whole.File), sum(d.t, none.File)
	root := d.plainAs(all[3].File, "no-root", vmPass)
	old, err := os.ReadFile(root)
	must(d.t, err)

	g.boot(d.t, "^TestDamaged$", append(all, whole, none)...)
	for file, want := range before {
		if got := sum(d.t, file); got != want {
			d.t.Errorf("%s: the guest changed a volume that it refused", filepath.Base(file))
		}
	}
	run(d.t, "e2fsck", "-fn", d.plainAs(all[0].File, "fs-ext4", vmPass))
	now, err := os.ReadFile(d.plainAs(all[3].File, "no-root", vmPass))
	must(d.t, err)
	// e2fsck notes in the superblock that it was there.
	if !bytes.Equal(now[:1024], old[:1024]) || !bytes.Equal(now[2048:], old[2048:]) {
		d.t.Error("no-root: e2fsck changed more than the superblock of a file system that it gave up")
	}
}

// replain changes what a volume of our make holds inside of its encryption.
func (d disks) replain(v qemu.Disk, change func(plain string)) {
	d.t.Helper()
	name := d.plainAs(v.File, v.Serial, vmPass)
	old, err := os.ReadFile(name)
	must(d.t, err)
	change(name)
	now, err := os.ReadFile(name)
	must(d.t, err)
	d.edit(v, func(f *os.File) {
		start, _, key := d.unlock(f, v.Serial, vmPass)
		changed := 0
		for at := 0; at < len(now); at += 4096 {
			if s := now[at : at+4096]; !bytes.Equal(s, old[at:at+4096]) {
				key.Encrypt(s, s, uint64(at/512))
				_, err := f.WriteAt(s, start+int64(at))
				must(d.t, err)
				changed++
			}
		}
		if changed == 0 || len(now) != len(old) {
			d.t.Fatal("nothing was damaged")
		}
	})
}

// unlock says where a volume's data lies, in bytes, and how it is encrypted.
func (d disks) unlock(f *os.File, name, passphrase string) (start, length int64, key *xts.Cipher) {
	d.t.Helper()
	size, err := f.Seek(0, io.SeekEnd)
	must(d.t, err)
	c, err := Probe(f, size, 512)
	must(d.t, err)
	o, err := c.Image.Unlock(d.t.Context(), secret.FromString(passphrase), name)
	must(d.t, err)
	key, err = xts.NewCipher(aes.NewCipher, o.Key.Bytes())
	must(d.t, err)
	return c.Start + o.DataOffset, (c.Size - o.DataOffset) / 4096 * 4096, key
}

// ready is a volume whose seal says that it has a file system, which it has not.
func (d disks) ready(name string) qemu.Disk {
	d.t.Helper()
	return d.edit(d.blank(name, vmSize), func(f *os.File) {
		o, err := luks2.Format(f, vmSize, luks2.FormatOptions{Passphrase: secret.FromString(vmPass), Name: name, KDF: luks2.KDF{MemoryKiB: 32 << 10, Time: 4, Parallel: 1}})
		must(d.t, err)
		must(d.t, o.Commit(f, name, luks2.Ready))
		o.Key.Wipe()
	})
}
