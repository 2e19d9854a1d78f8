package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"hpcr/agent/hpl"
	"hpcr/agent/secret"
	"hpcr/disk/luks2"
)

// part is a volume's place on its disk; it satisfies luks2.Device.
type part struct {
	f           *os.File
	start, size int64
}

func (p part) Sync() error { return p.f.Sync() }

func (p part) ReadAt(b []byte, at int64) (int, error) {
	return io.NewSectionReader(p.f, p.start, p.size).ReadAt(b, at)
}

func (p part) WriteAt(b []byte, at int64) (int, error) {
	if at < 0 || at+int64(len(b)) > p.size {
		return 0, errors.New("write outside the volume")
	}
	return p.f.WriteAt(b, p.start+at)
}

// openDisk opens the node and makes sure that it still is the disk that was
// probed.
func openDisk(d *found) (*os.File, place, error) {
	f, err := os.OpenFile(d.node(), os.O_RDWR, 0)
	if err != nil {
		return nil, place{}, err
	}
	var p place
	size, err := f.Seek(0, io.SeekEnd)
	if err == nil {
		p.major, p.minor, err = deviceNumber(f)
	}
	if err == nil && size != d.size {
		err = errors.New("the disk's size changed")
	}
	if err != nil {
		return nil, place{}, errors.Join(err, f.Close())
	}
	return f, p, nil
}

// create makes the volume on a disk that was found blank, or on which our own
// creation was cut off.
func (op *opener) create(ctx context.Context, s Spec, v *Volume, d *found) error {
	kdf := luks2.KDF(op.KDF)
	fail := func(code hpl.Code, err error, detail string) error { return hpl.Wrap(err, code, s.Path, detail) }
	if !s.MayCreate {
		return hpl.New("HPL02002E", s.Path, "the disk is empty and a new volume needs seeds of at least 15 characters: use longer seeds, or attach the volume's disk")
	}
	if err := kdf.Check(); err != nil {
		return fail("HPL02002E", err, "the key derivation cost of the image's policy is outside what a volume may have")
	}
	if err := op.enoughMemory(kdf.MemoryKiB); err != nil {
		return fail("HPL02002E", err, "the guest has too little memory for the key derivation of the image's policy")
	}
	fs := filesystems[s.Filesystem]
	if _, err := tool(fs.make[0]); err != nil {
		return fail("HPL02005E", err, "this image cannot make a "+s.Filesystem+" file system: use ext4")
	}
	parts, err := layout(d.size)
	if room := fs.room(s.Integrity); err != nil || d.size < room {
		return fail("HPL07003E", err, fmt.Sprintf("the disk is too small: a volume with %s needs at least %d MiB", s.Filesystem, room/mib))
	}

	op.Log.Warn("creating a new volume: everything on this disk is lost", "volume", s.Name, "disk", d.name, "bytes", d.size)
	f, p, err := openDisk(d)
	if err != nil {
		return fail("HPL02120E", err, "the disk "+d.name+" cannot be opened for writing")
	}
	defer f.Close()
	dev := part{f, parts[1].start, parts[1].size}
	if err := luks2.Mark(dev); err != nil {
		return fail("HPL02002E", err, "the disk "+d.name+" cannot be written to")
	}
	if err := errors.Join(writeGPT(f, d.size, d.block, parts), f.Sync()); err != nil {
		return fail("HPL07003E", err, "the partition table cannot be written")
	}
	if err := createMetadata(ctx, d.node()); err != nil {
		return fail("HPL07007E", err, "the metadata partition cannot be made")
	}
	op.Log.Info("partition table and metadata partition made", "volume", s.Name)
	o, err := luks2.Format(dev, dev.size, luks2.FormatOptions{Passphrase: s.Passphrases[0], Name: s.Name, KDF: kdf, Integrity: s.Integrity})
	if err != nil {
		return fail("HPL02002E", err, "the volume cannot be formatted")
	}
	defer o.Key.Wipe()
	v.Kind = Ours
	return op.finish(ctx, s, v, d, dev, p, o)
}

// open unlocks the volume on a disk and maps it. An error that is
// luks2.ErrPassphrase or ErrSeal says that the disk is another volume's.
func (op *opener) open(ctx context.Context, s Spec, v *Volume, d *found) error {
	im := d.content.Image
	if err := op.enoughMemory(im.MaxMemoryKiB()); err != nil {
		return hpl.Wrap(err, "HPL02003E", s.Path, "the guest has too little memory for the volume's key derivation: give it more")
	}
	f, p, err := openDisk(d)
	if err != nil {
		return hpl.Wrap(err, "HPL02120E", s.Path, "the disk "+d.name+" cannot be opened for writing")
	}
	defer f.Close()
	dev := part{f, d.content.Start, d.content.Size}
	if im.Kind() == luks2.ForeignLUKS {
		return op.openForeign(ctx, s, v, d, f, dev, p)
	}
	for i, passphrase := range s.trials() {
		var o *luks2.Opened
		if o, err = im.Unlock(ctx, passphrase, s.Name); errors.Is(err, luks2.ErrPassphrase) {
			continue
		} else if err != nil {
			break
		}
		defer o.Key.Wipe()
		if err := s.checkGeneration(o.Generation); err != nil {
			return err
		}
		switch {
		case s.Integrity && !o.Integrity:
			return s.noIntegrity()
		case o.Integrity && !s.Integrity: // the kernel has loaded nothing for it
			return hpl.New("HPL02003E", s.Path, "this volume has integrity: write integrity: true for it under workload.x-hpcr.volumes")
		}
		if s.mustExist() && o.State != luks2.Ready {
			return absent(s).err // as it was before its first file system: the host may have kept that
		}
		if o.State != luks2.Ready {
			op.Log.Warn("creating the volume goes on where it was cut off: everything on this disk is lost", "volume", s.Name, "disk", d.name)
		}
		if err := op.mend(s, dev, o); err != nil {
			return err
		}
		if s.previous(i) {
			err := op.roll(s, v, func(to *secret.Secret, kdf luks2.KDF) error { return o.Roll(dev, s.Name, to, kdf) })
			if err != nil {
				return err
			}
		}
		if !o.Integrity {
			if dev.size, err = op.grow(s, d, f); err != nil {
				return err
			}
		} else if g := d.content.table; g != nil && g.grow(1, d.size, d.block) { // its room is fixed when it is made
			op.Log.Warn("the disk has grown, but a volume with integrity keeps the size that it was made with", "volume", s.Name, "disk", d.name)
		}
		v.Kind = Ours
		return op.finish(ctx, s, v, d, dev, p, o)
	}
	return err
}

// grow mends and extends the partition table of a disk that has grown, and
// returns the volume's size. It comes after the volume has opened: before, the
// disk may be somebody else's.
func (op *opener) grow(s Spec, d *found, f *os.File) (int64, error) {
	g := d.content.table
	if g == nil {
		return d.content.Size, nil // the whole disk
	}
	if !g.writable(d.size, d.block) {
		return d.content.Size, nil
	}
	if grown := g.grow(1, d.size, d.block); !grown && !g.mended {
		return d.content.Size, nil
	}
	op.Log.Warn("the partition table is written anew", "volume", s.Name, "disk", d.name, "mended", g.mended, "bytes", g.parts[1].size)
	mbr := make([]byte, d.block)
	_, err := f.ReadAt(mbr, 0)
	if err == nil {
		err = g.write(f, d.size, d.block, mbr)
	}
	if err != nil {
		return 0, hpl.Wrap(err, "HPL07004E", s.Path, "the partition could not be extended to the disk's new size")
	}
	return g.parts[1].size, nil
}

// checkGeneration holds a header against the contract's floor, before anything
// is written. A foreign volume has no generation: 0.
func (s Spec) checkGeneration(have uint64) error {
	if have >= s.MinGeneration {
		return nil
	}
	return hpl.Wrap(fmt.Errorf("generation %d, want %d at least", have, s.MinGeneration), "HPL02003E", s.Path,
		"the volume's header is older than the contract's minGeneration allows: the disk was set back to an earlier state, or is another one")
}

func (s Spec) noIntegrity() error {
	return hpl.New("HPL02003E", s.Path, "the contract wants a volume with integrity, and this one has none: it cannot be added to a volume that exists; copy its data to a new one")
}

// mend ends what a power cut broke off: a header copy, or the end of a roll.
func (op *opener) mend(s Spec, dev part, o *luks2.Opened) error {
	var err error
	if !o.Fresh {
		op.Log.Warn("one header copy was lost and is written anew", "volume", s.Name, "generation", o.Generation)
		err = o.Repair(dev, s.Name)
	}
	if err == nil {
		err = o.Tidy(dev)
	}
	if err != nil {
		return hpl.Wrap(err, "HPL02003E", s.Path, "the volume's header cannot be repaired")
	}
	return nil
}

// roll changes the key slot to the contract's new seeds.
func (op *opener) roll(s Spec, v *Volume, do func(to *secret.Secret, kdf luks2.KDF) error) error {
	if !s.MayCreate {
		return hpl.New("HPL02125E", s.Path, "the volume opens with its previous seeds, but rolling needs new ones of at least 15 characters: use longer seeds")
	}
	kdf := luks2.KDF(op.KDF)
	if err := op.enoughMemory(kdf.MemoryKiB); err != nil {
		return hpl.Wrap(err, "HPL02125E", s.Path, "the guest has too little memory for the key derivation of the image's policy")
	}
	op.Log.Info("rolling the volume to its new seeds", "volume", s.Name)
	if err := do(s.Passphrases[0], kdf); errors.Is(err, luks2.ErrNoRoll) {
		return hpl.Wrap(err, "HPL02125E", s.Path,
			"the seeds of this volume cannot be rolled by the guest: change its key slot with cryptsetup luksChangeKey, or go back to the previous seeds")
	} else if err != nil {
		return hpl.Wrap(err, "HPL02125E", s.Path, "the new key slot cannot be written: the volume still opens, with the new or the previous seeds")
	}
	v.Rolled = true
	return nil
}

// finish maps a volume of our make, and makes its file system where creation
// has not come so far.
func (op *opener) finish(ctx context.Context, s Spec, v *Volume, d *found, dev part, p place, o *luks2.Opened) error {
	p.start, p.size, p.sectorSize = dev.start+o.DataOffset, dev.size-o.DataOffset, o.SectorSize
	if v.Integrity = o.Integrity; o.Integrity {
		upper, lower, err := mapIntegrity(v.Table.Mapping, dev.f, p, journalled, o.State != luks2.Ready)
		if err != nil {
			return hpl.Wrap(err, "HPL02003E", s.Path, "the kernel does not map the volume's integrity: the disk was changed, or its making was cut off")
		}
		p, v.Lower = upper, lower
	}
	if err := op.attach(s, v, p, o.Key); err != nil {
		return err
	}
	if o.State != luks2.Ready { // new, or its creation was cut off before
		v.Created = true
		op.Log.Info("making the file system", "volume", s.Name, "filesystem", s.Filesystem)
		if have, err := availableKiB(); err != nil || have < toolRoom {
			luks2.Release()
		}
		if o.Integrity {
			if err := fill(ctx, v.Device); err != nil {
				return hpl.Wrap(err, "HPL02002E", s.Path, "the volume's sectors cannot be written")
			}
		}
		if err := filesystems[s.Filesystem].create(ctx, v.Device); err != nil {
			return hpl.Wrap(err, "HPL02005E", s.Path, "the file system cannot be made")
		}
		if err := o.Commit(dev, s.Name, luks2.Ready); err != nil {
			return hpl.Wrap(err, "HPL02002E", s.Path, "the volume's header cannot be written")
		}
	}
	v.Generation, v.Slots = o.Generation, 1
	return op.opened(s, v, d, dev.start, o.DataOffset)
}

// opened keeps what Check compares with, and tells the owner.
func (op *opener) opened(s Spec, v *Volume, d *found, start, header int64) error {
	var err error
	if v.Header, err = headerOf(d.name, start, header); err != nil {
		return hpl.Wrap(err, "HPL02003E", s.Path, "the volume's header cannot be read again")
	}
	op.Log.Info("volume open", "volume", s.Name, "kind", v.Kind, "generation", v.Generation, "created", v.Created, "rolled", v.Rolled)
	return nil
}

func (op *opener) openForeign(ctx context.Context, s Spec, v *Volume, d *found, f *os.File, dev part, p place) error {
	header, err := d.content.Image.Foreign()
	if err != nil {
		return hpl.Wrap(err, "HPL02003E", s.Path, "the volume cannot be read")
	}
	p.start, p.size, p.sectorSize = dev.start+header.DataOffset, dev.size-header.DataOffset, header.SectorSize
	if err := s.checkGeneration(0); err != nil {
		return err
	}
	if s.Integrity {
		return s.noIntegrity()
	}
	for i, passphrase := range s.trials() {
		key, slot, err := liftForeign(ctx, header, passphrase, d.node(), v.Table.Mapping, p)
		if errors.Is(err, luks2.ErrPassphrase) {
			continue
		}
		if err != nil {
			return hpl.Wrap(err, "HPL02003E", s.Path, "the volume's header is not one that may be opened")
		}
		defer key.Wipe()
		if s.previous(i) {
			err := op.roll(s, v, func(to *secret.Secret, kdf luks2.KDF) error { return d.content.Image.Roll(dev, slot, key, to, kdf) })
			if err != nil {
				return err
			}
		} else if len(s.Previous) > 0 {
			// A roll to these seeds may have been cut off before its end.
			if err := d.content.Image.Tidy(dev); err != nil {
				return hpl.Wrap(err, "HPL02125E", s.Path, "the key slot of the previous seeds cannot be wiped")
			}
		}
		if dev.size, err = op.grow(s, d, f); err != nil {
			return err
		}
		p.size = dev.size - header.DataOffset
		v.Kind, v.Slots = ForeignLUKS, len(header.Slots)
		if err := op.attach(s, v, p, key); err != nil {
			return err
		}
		return op.opened(s, v, d, dev.start, header.DataOffset)
	}
	return luks2.ErrPassphrase
}

func (op *opener) attach(s Spec, v *Volume, p place, key *secret.Secret) error {
	m, table, err := mapVolume(v.Table.Mapping, p, key)
	if err != nil {
		return hpl.Wrap(err, "HPL02003E", s.Path, "the kernel does not map the volume")
	}
	v.mapping, v.Device = m, m.node
	v.Table.Target, v.Table.Sectors, v.Table.Params = "crypt", table.sectors, table.params()
	return nil
}

// enoughMemory keeps a derivation from taking the guest down with it. What the
// last one left is for the next.
func (op *opener) enoughMemory(kib uint32) error {
	have, err := availableKiB()
	if err != nil {
		return err
	}
	have += uint64(luks2.Held())
	if need := uint64(kib) + 32<<10; have < need {
		return fmt.Errorf("%d KiB needed, %d KiB available", need, have)
	}
	return nil
}
