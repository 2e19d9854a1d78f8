package luks2

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"hpcr/agent/secret"
)

// Device is what a volume is written to; Sync makes it durable.
type Device interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// FormatOptions say how to make a volume.
type FormatOptions struct {
	Passphrase *secret.Secret // borrowed
	Name       string         // the volume's name in the contract; bound by the seal, not stored
	KDF        KDF
	Integrity  bool // each sector gets a tag
}

// MinSize is the smallest device that Format takes.
const MinSize = dataOffset + 16<<20

// Mark writes the sign that a volume is being created on a blank device.
func Mark(dev Device) error { return writeSync(dev, marker, 0) }

// Format makes a volume in state Formatting on a device of size bytes, whose
// content it does not look at: that it may be overwritten is the caller's
// decision. Order of writes, each made durable: key material, secondary
// header, primary header.
func Format(dev Device, size int64, o FormatOptions) (*Opened, error) {
	if err := o.KDF.Check(); err != nil {
		return nil, err
	}
	if size < MinSize {
		return nil, errors.New("the device is too small for a volume")
	}
	if o.Passphrase.Len() == 0 {
		return nil, errors.New("no passphrase")
	}
	key := make([]byte, volumeKeySize(o.Integrity))
	rand.Read(key)
	mark(key)
	op := &Opened{Key: secret.New(key), DataOffset: dataOffset, SectorSize: sectorSize, Integrity: o.Integrity, areas: map[region][]byte{}}
	if err := op.create(dev, o); err != nil {
		op.Key.Wipe()
		return nil, err
	}
	return op, nil
}

func (op *Opened) create(dev Device, o FormatOptions) error {
	d := digest{hash: "sha256", iterations: digestRounds, salt: random(saltSize)}
	var err error
	if d.value, err = d.compute(op.Key.Bytes(), sha256.Size); err != nil {
		return fmt.Errorf("digest: %w", err)
	}
	s, area, err := newSlot(0, slotStart, op.Key, o.Passphrase, o.KDF)
	if err != nil {
		return err
	}
	if err := writeSync(dev, area, s.area.offset); err != nil {
		return fmt.Errorf("write key slot: %w", err)
	}
	op.areas[s.area] = area
	op.h = &header{uuid: newUUID(), meta: &metadata{
		slots: []keyslot{s}, dataOffset: dataOffset, sectorSize: op.SectorSize, integrity: o.Integrity, digest: d, keyslotsSize: slotsSize(o.Integrity),
	}}
	return op.write(dev, o.Name, Formatting, 1)
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func newUUID() string {
	b := random(16)
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func writeSync(dev Device, b []byte, at int64) error {
	if _, err := dev.WriteAt(b, at); err != nil {
		return err
	}
	return dev.Sync()
}
