//go:build vm

package disk

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"

	"hpcr/agent/secret"
	"hpcr/disk/luks2"
	"hpcr/initramfs/qemu"
)

// TestPowerCutsInGuests records all that guests write to disks while they make
// volumes, grow and roll them, cuts power somewhere in that, and has the next
// boot, and the file systems' own checks, say what is left.
func TestPowerCutsInGuests(t *testing.T) {
	for _, arch := range archs() {
		if beside(arch) {
			continue // nothing in it depends on the machine: one is enough for tier core
		}
		t.Run(arch, func(t *testing.T) {
			t.Parallel()
			g := newGuest(t, arch)
			d := disks{t: t, dir: t.TempDir()}
			all := []qemu.Disk{d.blank("ext4", vmSize), d.blank("xfs", 448*mib), d.blank("btrfs", vmSize)}
			tagged := d.blank("integrity", integritySize)
			made := d.record("make", append(all, tagged), func(v []qemu.Disk) { g.boot(t, "^TestRecordMaking$", v...) })
			for _, v := range all {
				must(t, os.Truncate(v.File, grownSize))
			}
			grown := d.record("grow", all, func(v []qemu.Disk) { d.growing(g, v, tagged) })
			d.powerCuts(g, phases(made, grown))
		})
	}
}

const integritySize = 128 * mib

// growing boots with disks that have grown. One of a volume with integrity has
// grown as well: what stands before the volume is the same afterwards.
func (d disks) growing(g *guest, all []qemu.Disk, tagged qemu.Disk) {
	d.t.Helper()
	must(d.t, os.Truncate(tagged.File, integritySize+64*mib))
	head := func() []byte {
		b := make([]byte, keptMark)
		d.edit(tagged, func(f *os.File) {
			_, err := f.ReadAt(b, 0)
			must(d.t, err)
		})
		return b
	}
	before := head()
	g.boot(d.t, "^TestRecordGrowing$", append(all, tagged)...)
	if !bytes.Equal(head(), before) {
		d.t.Error("the partition table of a volume with integrity was changed")
	}
}

func inTier(core, all int) int {
	if full() {
		return all
	}
	return core
}

// phase is one piece of work that power may be cut in.
type phase struct {
	name     string
	of       *recording
	from, to int  // writes
	grows    bool // the next boot grows the file system
	host     int  // cuts that are judged here: by our reader and, of ext4, by e2fsck and debugfs
	guest    int  // cuts that a guest boots with; then their file system's own check judges
}

// phases are: making (table, LUKS, file system or integrity, first file),
// growing (table, file system), rolling.
func phases(made, grown []*recording) []phase {
	var all []phase
	for _, r := range made {
		p := phase{name: "make " + r.kind, of: r, to: len(r.writes), host: inTier(1, 6), guest: inTier(1, 10)}
		if r.kind == "ext4" {
			p.host = inTier(8, 60)
		}
		all = append(all, p)
	}
	for _, r := range grown {
		p := phase{name: "grow " + r.kind, of: r, to: r.marks["grown"], grows: true, host: inTier(1, 6), guest: inTier(2, 10)}
		if r.kind == "ext4" {
			p.host = inTier(8, 60)
			roll := p
			roll.name, roll.from, roll.to, roll.host, roll.guest = "roll", p.to, len(r.writes), inTier(6, 40), inTier(2, 10)
			all = append(all, roll)
		}
		all = append(all, p)
	}
	return all
}

// powerCuts makes the disks of all phases' cuts and has them judged.
func (d disks) powerCuts(g *guest, phases []phase) {
	d.t.Helper()
	var booted []cutDisk
	judged := 0
	for _, p := range phases {
		for i, c := range p.of.cuts(p.from, p.to, p.host+p.guest) {
			img := p.of.image(fmt.Sprintf("cut%d", judged), c)
			judged++
			what, pass := d.readable(img, p, c)
			// Spread both ways of judging over the phase alike.
			if (i+1)*p.guest/(p.host+p.guest) > i*p.guest/(p.host+p.guest) {
				booted = append(booted, cutDisk{qemu.Disk{Serial: fmt.Sprintf("%d-%s-%s", judged, p.of.kind, what), File: img}, p, c})
				continue
			}
			if p.of.kind == "ext4" && !strings.Contains(what, cutMade) {
				d.checked(d.plainAs(img, p.volume(), pass), p, c, what)
			}
			must(d.t, os.Remove(img))
		}
	}
	for some := range slices.Chunk(booted, 20) {
		var boot []qemu.Disk
		for _, b := range some {
			boot = append(boot, b.disk)
		}
		g.boot(d.t, "^TestCut$", boot...)
		for _, b := range some {
			d.afterwards(b)
			must(d.t, os.Remove(b.disk.File))
		}
	}
	if want := inTier(20, 200); judged < want {
		d.t.Errorf("%d power cuts, want %d at least", judged, want)
	}
	d.t.Logf("%d power cuts, %d of them judged by the next boot", judged, len(booted))
}

type cutDisk struct {
	disk qemu.Disk
	p    phase
	c    cut
}

// volume is the name that the volume was sealed with.
func (p phase) volume() string { return "rec-" + p.of.kind }

// readable: the disk is one that the next boot opens or goes on to create,
// never one that it refuses. It returns what that boot must find, in the
// letters of the disk's serial, and the passphrase that opens it now.
func (d disks) readable(img string, p phase, c cut) (what, pass string) {
	d.t.Helper()
	d.edit(qemu.Disk{File: img}, func(f *os.File) {
		content, err := Probe(f, p.of.size, 512)
		must(d.t, err)
		if content.Creatable() {
			what += cutMade
			return
		}
		if !content.Openable() {
			d.t.Fatalf("%s %s: unreadable: %+v", p.name, c, content)
		}
		pass = vmPass
		o, err := content.Image.Unlock(d.t.Context(), secret.FromString(pass), p.volume())
		if errors.Is(err, luks2.ErrPassphrase) {
			pass = rolledPass
			o, err = content.Image.Unlock(d.t.Context(), secret.FromString(pass), p.volume())
		}
		if err != nil {
			d.t.Fatalf("%s %s: unreadable: %v", p.name, c, err)
		}
		if o.State != luks2.Ready {
			what += cutMade
		}
	})
	data := false
	for name, mark := range cutNames {
		if p.of.durable(c, name) || p.grows && name == "kept" {
			what, data = what+mark, true
		}
	}
	if p.grows {
		what += cutGrows
	}
	if data && strings.Contains(what, cutMade) {
		d.t.Errorf("%s %s: the next boot would make a volume that has data anew", p.name, c)
	}
	return what, pass
}

// checked does to an ext4 volume what the next boot does first, with the
// owner's tools, and reads the files that must be there.
func (d disks) checked(plain string, p phase, c cut, what string) {
	d.t.Helper()
	defer os.Remove(plain)
	f, err := os.Open(plain)
	must(d.t, err)
	super, err := readSuperblock(f)
	must(d.t, errors.Join(err, f.Close()))
	if err := filesystems["ext4"].repair(d.t.Context(), plain, super, slog.New(slog.NewTextHandler(d.t.Output(), nil))); err != nil {
		d.t.Fatalf("%s %s: %v", p.name, c, err)
	}
	run(d.t, "e2fsck", "-fn", plain)
	for name, mark := range cutNames {
		if !strings.Contains(what, mark) {
			continue
		}
		if got := run(d.t, "debugfs", "-R", "cat "+name, plain); !strings.Contains(got, string(keptContent(name))) {
			d.t.Errorf("%s %s: %s is not what was written", p.name, c, name)
		}
	}
}

// afterwards judges what the next boot left.
func (d disks) afterwards(b cutDisk) {
	d.t.Helper()
	if out := run(d.t, "sgdisk", "--verify", b.disk.File); !strings.Contains(out, "No problems found") {
		d.t.Errorf("%s %s: sgdisk: %s", b.p.name, b.c, out)
	}
	pass := vmPass
	if b.p.of.kind == "ext4" {
		pass = rolledPass
		d.edit(b.disk, func(f *os.File) {
			c, err := Probe(f, b.p.of.size, 512)
			must(d.t, err)
			if _, err = c.Image.Unlock(d.t.Context(), secret.FromString(vmPass), b.p.volume()); !errors.Is(err, luks2.ErrPassphrase) {
				d.t.Errorf("%s %s: the seeds of before the roll: %v", b.p.name, b.c, err)
			}
		})
	}
	if judge, ok := fsJudges[b.p.of.kind]; ok {
		plain := d.plainAs(b.disk.File, b.p.volume(), pass)
		run(d.t, judge[0], append(judge[1:len(judge):len(judge)], plain)...)
		must(d.t, os.Remove(plain))
	}
}

var fsJudges = map[string][]string{"ext4": {"e2fsck", "-fn"}, "xfs": {"xfs_repair", "-n", "-f"}, "btrfs": {"btrfs", "check", "--readonly"}}
