package luks2

import "errors"

// Section is a part of a foreign header, to be written to a scratch file for
// another reader.
type Section struct {
	Offset int64
	Data   []byte
}

// Foreign describes an accepted volume of another make. Everything in it was
// rebuilt from checked values: the reader it is given to sees no byte of the
// device but salts, digests and key material.
type Foreign struct {
	Version    int
	Sections   []Section
	Slots      []Slot // to be tried in this order
	DataOffset int64
	SectorSize int
}

// Slot is a key slot of a foreign volume.
type Slot struct {
	ID        int
	MemoryKiB uint32 // that its derivation takes, for Derive
}

// Foreign returns the description of a ForeignLUKS image.
func (im *Image) Foreign() (*Foreign, error) {
	if im.kind != ForeignLUKS {
		return nil, errors.New("not an accepted volume of a foreign make")
	}
	f := &Foreign{Version: 1, SectorSize: 512}
	if l := im.luks1; l != nil {
		f.Sections = []Section{{0, l.raw}}
		for _, id := range l.slots {
			f.Slots = append(f.Slots, Slot{ID: id})
		}
		f.DataOffset = l.payload
	} else {
		h := *im.foreign
		h.salt, h.uuid, h.binary, h.secondary = [64]byte{}, "00000000-0000-0000-0000-000000000000", nil, false
		f.Version, f.Sections = 2, []Section{{0, h.encode()}}
		f.DataOffset, f.SectorSize = h.meta.dataOffset, h.meta.sectorSize
		for _, s := range h.meta.slots {
			if !s.unused() {
				f.Slots = append(f.Slots, Slot{s.id, s.kdf.cost.MemoryKiB})
			}
		}
	}
	for a, b := range im.areas {
		f.Sections = append(f.Sections, Section{a.offset, b})
	}
	return f, nil
}
