package luks2

import (
	"crypto/hmac"
	"errors"
	"fmt"
	"io"

	"hpcr/agent/secret"
)

var (
	// ErrNotOurs: the volume's key carries no mark. It was not made by this
	// project, and is not changed.
	ErrNotOurs = errors.New("this volume was not made by hpcr: it has no seal, and opens without one")
	// ErrUnfinished: the seal holds, and says that there is no file system yet.
	ErrUnfinished = errors.New("the seal says that this volume's making was cut off: start the guest, which ends it and makes its file system; " +
		"if the volume held data, the host has put back an old header: restore yours with cryptsetup luksHeaderRestore")
)

// Resealed says what Reseal did.
type Resealed struct {
	Generation uint64
	Proven     bool // that it is one more than what the last seal says; else than what the header says
	Slot       int  // the key slot that opened, as it was numbered
	Dropped    int  // other key slots, which are gone
	Rederived  bool // the slot was written anew, with the cost given
}

// Reseal brings a volume of ours back into its canonical form after its owner
// changed a key slot with cryptsetup, and seals it anew. Only who has the
// passphrase can: the seal's key comes from the volume's. The key slot that
// opens becomes the only one. Power may be cut at any write.
func Reseal(dev Device, length int64, passphrase *secret.Secret, name string, cost KDF) (*Resealed, error) {
	if err := cost.Check(); err != nil {
		return nil, err
	}
	c, err := readCopies(dev, length)
	if err != nil {
		return nil, err
	}
	h := c.best
	key, opening, err := c.open(passphrase)
	if err != nil {
		return nil, err
	}
	defer key.Wipe()
	if !Marked(key.Bytes()) {
		return nil, ErrNotOurs
	}
	// The header's own word for its state is not taken: a host that could write
	// "formatting" there would have the next boot make a file system over data.
	// Nor is a sector size that no guest chooses.
	r := &Resealed{Slot: opening.id, Dropped: len(h.meta.slots) - 1, Generation: c.newest + 1}
	if last, err := c.lastSeal(key.Bytes(), name); err != nil {
		return nil, err
	} else if last != nil {
		if last.state != Ready {
			return nil, ErrUnfinished
		}
		r.Generation, r.Proven = last.generation+1, true
	}
	if h.meta.sectorSize != sectorSize {
		return nil, errors.New("the header's sector size is not the one that the volume was made with: restore the header with cryptsetup luksHeaderRestore")
	}

	o := &Opened{Key: key, DataOffset: h.meta.dataOffset, SectorSize: h.meta.sectorSize, Integrity: h.meta.integrity, State: Ready,
		areas: map[region][]byte{opening.area: c.areas[opening.area]}}
	size := areaSize(h.meta.integrity)
	meta := h.meta.alone(opening)
	meta.seal = &seal{}
	if checkProfile(meta) != nil {
		// Another derivation, or another place: a slot of our own beside it.
		r.Rederived = true
		id := 0
		if opening.area.overlaps(region{slotStart, size}) {
			id = 1
		}
		at := slotStart + int64(id)*size
		if opening.area.overlaps(region{at, size}) {
			return nil, errors.New("the key slot lies across both places of the profile: move it with cryptsetup luksChangeKey")
		}
		s, area, err := newSlot(id, at, key, passphrase, cost)
		if err != nil {
			return nil, err
		}
		meta.slots = []keyslot{s}
		if err := checkProfile(meta); err != nil {
			return nil, err // what no key slot is the cause of
		}
		if err := writeSync(dev, area, at); err != nil {
			return nil, fmt.Errorf("write key slot: %w", err)
		}
		o.areas = map[region][]byte{s.area: area}
	}
	o.h = &header{secondary: h.secondary, uuid: h.uuid, meta: meta}
	if err := o.write(dev, name, o.State, r.Generation); err != nil {
		return nil, err
	}
	return r, o.Tidy(dev)
}

// alone is m with this key slot as its only one, numbered by its place, as the
// profile does.
func (m *metadata) alone(s keyslot) *metadata {
	s.priority, s.id = -1, 0
	if s.area.offset == slotStart+areaSize(m.integrity) {
		s.id = 1
	}
	one := *m
	one.slots = []keyslot{s}
	return &one
}

// copies are a volume's header copies that pass the gate, whatever their form,
// and their key material.
type copies struct {
	all    []*header
	best   *header // the newer one
	newest uint64  // the highest number that any copy says of itself
	areas  map[region][]byte
}

func readCopies(dev io.ReaderAt, size int64) (*copies, error) {
	head := make([]byte, 2*headerSize)
	if _, err := dev.ReadAt(head, 0); err != nil {
		return nil, fmt.Errorf("read header: %w", err)
	}
	c := &copies{areas: map[region][]byte{}}
	var reason error
	for i, secondary := range []bool{false, true} {
		h, err := gateHeader(head[i*headerSize:(i+1)*headerSize], secondary, size)
		if err != nil {
			if !errors.Is(err, errTorn) || reason == nil {
				reason = err
			}
			continue
		}
		c.all = append(c.all, h)
		if c.best == nil || h.seq > c.best.seq {
			c.best = h
		}
		c.newest = max(c.newest, h.seq)
		if h.meta.seal != nil {
			c.newest = max(c.newest, h.meta.seal.generation)
		}
	}
	if c.best == nil {
		return nil, fmt.Errorf("no header that may be opened: %w", reason)
	}
	if c.newest >= 1<<62 {
		return nil, errors.New("the header's sequence number is out of bounds")
	}
	for _, h := range c.all {
		for _, a := range h.regions() {
			b := make([]byte, a.size)
			if _, err := dev.ReadAt(b, a.offset); err != nil {
				return nil, fmt.Errorf("read key slot: %w", err)
			}
			c.areas[a] = b
		}
	}
	return c, nil
}

// open finds the key slot that opens. The caller wipes the key.
func (c *copies) open(passphrase *secret.Secret) (*secret.Secret, keyslot, error) {
	for _, s := range c.best.meta.slots {
		one := *c.best.meta
		one.slots = []keyslot{s}
		key, err := openSlot(&header{meta: &one}, c.areas, passphrase.Bytes())
		if !errors.Is(err, ErrPassphrase) {
			return key, s, err
		}
	}
	return nil, keyslot{}, ErrPassphrase
}

// lastSeal is the newest seal that holds once what an owner adds with
// cryptsetup is left out again: key slots, their numbers and priorities, label,
// sequence number. nil: cryptsetup took the seal off, or the slot that it was
// made with.
func (c *copies) lastSeal(key []byte, name string) (*seal, error) {
	var last *seal
	for _, h := range c.all {
		if h.meta.seal == nil {
			continue
		}
		for _, s := range h.meta.slots {
			was := &header{uuid: h.uuid, seq: h.meta.seal.generation, meta: h.meta.alone(s)}
			if checkProfile(was.meta) != nil {
				continue
			}
			mac, err := sealMAC(key, name, was, c.areas)
			if err != nil {
				return nil, err
			}
			if hmac.Equal(mac, h.meta.seal.mac) && (last == nil || h.meta.seal.generation > last.generation) {
				last = h.meta.seal
			}
		}
	}
	return last, nil
}
