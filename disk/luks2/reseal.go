package luks2

import (
	"errors"
	"fmt"
	"io"

	"hpcr/agent/secret"
)

// ErrNotOurs: the volume's key carries no mark. It was not made by this
// project, and is not changed.
var ErrNotOurs = errors.New("this volume was not made by hpcr: it has no seal, and opens without one")

// Resealed says what Reseal did.
type Resealed struct {
	Generation uint64
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
	h, newest, err := lenient(dev, length)
	if err != nil {
		return nil, err
	}
	o := &Opened{DataOffset: h.meta.dataOffset, SectorSize: h.meta.sectorSize, Integrity: h.meta.integrity, State: Ready, h: h, areas: map[region][]byte{}}
	size := areaSize(h.meta.integrity)
	var opening keyslot
	for _, s := range h.meta.slots {
		b := make([]byte, s.area.size)
		if _, err := dev.ReadAt(b, s.area.offset); err != nil {
			return nil, fmt.Errorf("read key slot: %w", err)
		}
		one := *h
		meta := *h.meta
		meta.slots = []keyslot{s}
		one.meta = &meta
		key, err := openSlot(&one, map[region][]byte{s.area: b}, passphrase.Bytes())
		if errors.Is(err, ErrPassphrase) {
			continue
		}
		if err != nil {
			return nil, err
		}
		o.Key, o.areas[s.area], opening = key, b, s
		break
	}
	if o.Key == nil {
		return nil, ErrPassphrase
	}
	defer o.Key.Wipe()
	if !Marked(o.Key.Bytes()) {
		return nil, ErrNotOurs
	}
	// The header's own word for its state is not taken: a host that could write
	// "formatting" there would have the next boot make a file system over data.
	// Nor is a sector size that a guest would not have chosen.
	if length%4096 == 0 && h.meta.sectorSize != 4096 {
		return nil, errors.New("the header's sector size is not the one that the volume was made with")
	}
	r := &Resealed{Slot: opening.id, Dropped: len(h.meta.slots) - 1, Generation: newest + 1}
	meta := *h.meta
	sealed := *h
	sealed.meta, sealed.binary = &meta, nil
	meta.slots, meta.seal = []keyslot{canonical(opening, size)}, &seal{}
	if checkProfile(&meta) != nil {
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
		s, area, err := newSlot(id, at, o.Key, passphrase, cost)
		if err != nil {
			return nil, err
		}
		meta.slots = []keyslot{s}
		if err := checkProfile(&meta); err != nil {
			return nil, err // what no key slot is the cause of
		}
		if err := writeSync(dev, area, at); err != nil {
			return nil, fmt.Errorf("write key slot: %w", err)
		}
		o.areas = map[region][]byte{s.area: area}
	}
	o.h = &sealed
	if err := o.write(dev, name, o.State, r.Generation); err != nil {
		return nil, err
	}
	return r, o.Tidy(dev)
}

// canonical numbers a key slot by its place, as the profile does.
func canonical(s keyslot, size int64) keyslot {
	s.priority = -1
	if s.area.offset == slotStart+size {
		s.id = 1
	} else {
		s.id = 0
	}
	return s
}

// lenient reads the newer copy that passes the gate, whatever its form, and
// the highest number that any copy says of itself.
func lenient(dev io.ReaderAt, size int64) (*header, uint64, error) {
	head := make([]byte, 2*headerSize)
	if _, err := dev.ReadAt(head, 0); err != nil {
		return nil, 0, fmt.Errorf("read header: %w", err)
	}
	var best *header
	var newest uint64
	var reason error
	for i, secondary := range []bool{false, true} {
		h, err := gateHeader(head[i*headerSize:(i+1)*headerSize], secondary, size)
		if err != nil {
			if !errors.Is(err, errTorn) || reason == nil {
				reason = err
			}
			continue
		}
		if best == nil || h.seq > best.seq {
			best = h
		}
		newest = max(newest, h.seq)
		if h.meta.seal != nil {
			newest = max(newest, h.meta.seal.generation)
		}
	}
	if best == nil {
		return nil, 0, fmt.Errorf("no header that may be opened: %w", reason)
	}
	if newest >= 1<<62 {
		return nil, 0, errors.New("the header's sequence number is out of bounds")
	}
	return best, newest, nil
}
