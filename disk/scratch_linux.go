package disk

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"

	"hpcr/agent/hpl"
	"hpcr/agent/secret"
)

// A scratch disk holds what lasts as long as a boot: its key is random and
// nowhere but in the kernel. It is made anew at each boot, on a blank disk or
// one that carries our mark, and closed with the volumes.

// ScratchSerial names the disk that the host means for it.
const ScratchSerial = "scratch"

const (
	scratchMapping = mappingPrefix + "scratch"
	scratchStart   = 1 * mib
	scratchMinSize = 64 * mib
)

// ScratchOptions of OpenScratch.
type ScratchOptions struct {
	Mount   string
	Exclude []string // as in Options
	Log     *slog.Logger
}

func isScratch(mapping string) bool { return strings.HasPrefix(mapping, scratchMapping) }

// OpenScratch makes, maps and mounts the scratch disk. An error is a *hpl.Error;
// nothing stays open then.
func OpenScratch(ctx context.Context, o ScratchOptions) (*Volume, error) {
	v, err := openScratch(ctx, o)
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeLimit)
		defer cancel()
		if cerr := closeThose(undo, undoPatience, isScratch); cerr != nil {
			o.Log.Error("closing after a failure", "error", cerr)
		}
		return nil, hpl.From(err)
	}
	return v, nil
}

func openScratch(ctx context.Context, o ScratchOptions) (*Volume, error) {
	disks, err := scan(o.Exclude)
	if err != nil {
		return nil, hpl.Wrap(err, "HPL02120E", "", "the guest cannot list its disks")
	}
	disks = slices.DeleteFunc(disks, func(d blockDevice) bool { return d.serial != ScratchSerial })
	switch len(disks) {
	case 1:
	case 0:
		return nil, hpl.New("HPL02122E", "", "the scratch disk is gone: attach it before the guest starts")
	default:
		return nil, hpl.New("HPL02121E", "", "more than one disk has the serial scratch: attach one")
	}
	d := &found{blockDevice: disks[0]}
	f, p, err := openDisk(d)
	if err != nil {
		return nil, hpl.Wrap(err, "HPL02120E", "", "the scratch disk cannot be opened for writing: check it on the host")
	}
	defer f.Close()
	if err := scratchUsable(f, d.size, d.block); err != nil {
		return nil, err
	}
	o.Log.Info("the scratch disk is made anew", "disk", d.name, "bytes", d.size)
	if err := writeScratch(f, d.size, d.block); err != nil {
		return nil, hpl.Wrap(err, "HPL07003E", "", "the scratch disk cannot be written to: check it on the host")
	}
	p.start, p.size, p.sectorSize = scratchStart, scratchSize(d.size), integrityBlock
	v := &Volume{Name: ScratchSerial, Mount: o.Mount, Kind: Scratch, Created: true, Integrity: true, Filesystem: "ext4", log: o.Log}
	if err := v.mapScratch(f, p); err != nil {
		return nil, hpl.Wrap(err, "HPL02120E", "", "the kernel does not map the scratch disk")
	}
	if err := errors.Join(touchGroups(v.Device), scratchFilesystem.create(ctx, v.Device)); err != nil {
		return nil, hpl.Wrap(err, "HPL02005E", "", "the scratch disk's file system cannot be made")
	}
	at, err := makeFolder(o.Mount)
	if err != nil {
		return nil, hpl.Wrap(err, "HPL07002E", "", "the scratch disk's mount path cannot be made")
	}
	defer at.Close()
	if err := mountOn(v.Device, at, "ext4", scratchFilesystem.options); err != nil {
		return nil, hpl.Wrap(err, "HPL02007E", "", "the kernel does not mount the scratch disk")
	}
	if v.Header, err = headerOf(d.name, 0, scratchStart); err != nil {
		return nil, hpl.Wrap(err, "HPL02120E", "", "the scratch disk cannot be read")
	}
	return v, nil
}

// scratchUsable refuses a disk on which something may be lost.
func scratchUsable(r io.ReaderAt, size, block int64) error {
	marked, err := scratchMarked(r, size, block)
	var c Content
	if err == nil && !marked {
		c, err = Probe(r, size, block)
	}
	switch {
	case err != nil:
		return hpl.Wrap(err, "HPL02120E", "", "the scratch disk cannot be read: check it on the host")
	case !marked && c.Kind != Blank:
		return hpl.Wrap(errors.Join(fmt.Errorf("content: %s", c.Kind), c.Reason), "HPL02003E", "",
			"the disk with the serial scratch is neither empty nor a scratch disk of before; it was left as it is: attach an empty disk, or give this one another serial")
	case size < scratchMinSize:
		return hpl.New("HPL07003E", "", fmt.Sprintf("the scratch disk is too small: it needs at least %d MiB", scratchMinSize/mib))
	}
	return nil
}

// scratchMarked: the partition table has our scratch partition alone, or is one
// whose writing was cut off. The first sector of its entries is what
// writeScratch writes first, and all that the mark needs.
func scratchMarked(r io.ReaderAt, size, block int64) (bool, error) {
	if block != 512 && block != 4096 || size < 2*mib || size%block != 0 {
		return false, nil
	}
	b := make([]byte, 2*block+gptTable)
	if _, err := r.ReadAt(b, 0); err != nil {
		return false, fmt.Errorf("read partition table: %w", err)
	}
	boot, header, entries := b[:block], b[block:2*block], b[2*block:]
	return [16]byte(entries) == typeScratch && !nonzero(entries[gptEntrySize:]) &&
		(!nonzero(boot) || protective(boot)) &&
		(!nonzero(header) || string(header[:len(gptMagic)]) == gptMagic && binary.LittleEndian.Uint64(header[72:]) == 2), nil
}

func scratchSize(size int64) int64 { return (size-tailSize)/mib*mib - scratchStart }

// scratchDisk is what writeScratch needs of a disk.
type scratchDisk interface {
	io.ReaderAt
	syncWriter
}

// writeScratch writes the mark, and when that is durable, all of the table.
func writeScratch(f scratchDisk, size, block int64) error {
	mark := make([]byte, block)
	copy(mark, typeScratch[:])
	if _, err := f.WriteAt(mark, 2*block); err != nil {
		return fmt.Errorf("write partition table: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("write partition table: %w", err)
	}
	parts := []partition{{"scratch", typeScratch, scratchStart, scratchSize(size), 0}}
	return errors.Join(writeGPT(f, size, block, parts), f.Sync())
}

// mapScratch maps p under a key that this boot alone has.
func (v *Volume) mapScratch(f *os.File, p place) error {
	upper, lower, err := mapIntegrity(scratchMapping, f, p, direct, true)
	if err != nil {
		return err
	}
	b := make([]byte, integrityKey)
	rand.Read(b)
	key := secret.New(b)
	defer key.Wipe()
	m, t, err := mapVolume(scratchMapping, upper, key)
	if err != nil {
		return err
	}
	v.mapping, v.Device, v.Lower = m, m.node, lower
	v.Table = Table{Mapping: scratchMapping, Target: "crypt", Sectors: t.sectors, Params: t.params()}
	return nil
}

// scratchFilesystem needs no journal: nobody mounts it twice. A sector cannot
// be read before it is written, so nothing may be read ahead; inode tables are
// never read before, and so never need zeros.
var scratchFilesystem = filesystem{
	make: []string{"mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-O", "^has_journal,^resize_inode",
		"-E", "nodiscard,lazy_itable_init=1"},
	makeLimit: filesystems["ext4"].makeLimit,
	options:   "errors=remount-ro,noinit_itable,inode_readahead_blks=0,no_prefetch_block_bitmaps,nobarrier",
}

// touchGroups writes the blocks that mke2fs changes in part, and so reads: the
// first of each group of ext4 and both ends of the device.
func touchGroups(node string) error {
	const group, ends = 128 * mib, 64 << 10
	f, err := os.OpenFile(node, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	zeros := make([]byte, ends)
	write := func(n, at int64) {
		if err == nil {
			_, err = f.WriteAt(zeros[:n], at)
		}
	}
	write(ends, 0)
	write(ends, size-ends)
	for at := int64(group); at+integrityBlock <= size; at += group {
		write(integrityBlock, at)
	}
	if err != nil {
		return fmt.Errorf("write the scratch disk's first blocks: %w", err)
	}
	return f.Sync()
}
