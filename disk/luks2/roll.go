package luks2

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"hpcr/agent/secret"
)

// Roll gives the volume another passphrase, and only that one. Order of
// writes, each made durable: the free key slot, the header copies with the next
// generation, zeros over the old slot. The header that names the old slot and
// the slot itself stand until one that names the new slot does: a power cut at
// any write leaves a volume that the old or the new passphrase opens.
func (o *Opened) Roll(dev Device, name string, passphrase *secret.Secret, cost KDF) error {
	if err := cost.Check(); err != nil {
		return err
	}
	id := 1 - o.h.meta.slots[0].id
	s, area, err := newSlot(id, slotStart+int64(id)*areaSize(o.Integrity), o.Key, passphrase, cost)
	if err != nil {
		return err
	}
	if err := writeSync(dev, area, s.area.offset); err != nil {
		return fmt.Errorf("write key slot: %w", err)
	}
	m := *o.h.meta
	m.slots = []keyslot{s}
	h := *o.h
	h.meta = &m
	o.h, o.areas = &h, map[region][]byte{s.area: area}
	if err := o.write(dev, name, o.State, o.Generation+1); err != nil {
		return err
	}
	return o.Tidy(dev)
}

// Tidy ends a roll that was cut off after its header was written: the area
// that no header names goes back to zeros. Both header copies must be Fresh.
func (o *Opened) Tidy(dev Device) error {
	if !o.Fresh {
		return errors.New("a header copy that may name the other key slot is still there")
	}
	size := areaSize(o.Integrity)
	return wipeArea(dev, region{slotStart + int64(1-o.h.meta.slots[0].id)*size, size})
}

// ErrNoRoll is a foreign volume whose key slot we do not change.
var ErrNoRoll = errors.New("the passphrase of this volume can be changed only by cryptsetup")

// Roll replaces one key slot of a foreign LUKS2 volume, as cryptsetup
// luksChangeKey does, in the same order of writes as for a volume of ours. Its
// other slots stay. LUKS1, and a header without room, are ErrNoRoll.
func (im *Image) Roll(dev Device, slot int, key, passphrase *secret.Secret, cost KDF) error {
	if im.foreign == nil {
		return ErrNoRoll
	}
	if err := cost.Check(); err != nil {
		return err
	}
	old := slices.IndexFunc(im.foreign.meta.slots, func(s keyslot) bool { return s.id == slot })
	id, at, ok := im.foreign.meta.room()
	if old < 0 || !ok {
		return ErrNoRoll
	}
	s, area, err := newSlot(id, at, key, passphrase, cost)
	if err != nil {
		return err
	}
	if err := writeSync(dev, area, at); err != nil {
		return fmt.Errorf("write key slot: %w", err)
	}
	m := *im.foreign.meta
	gone := m.slots[old].area
	m.slots = slices.Delete(slices.Clone(m.slots), old, old+1)
	m.slots = append(m.slots, s)
	slices.SortFunc(m.slots, func(a, b keyslot) int { return a.id - b.id })
	h := *im.foreign
	h.meta, h.seq = &m, h.seq+1
	if err := h.writeBoth(dev); err != nil {
		return err
	}
	areas := maps.Clone(im.areas)
	delete(areas, gone)
	areas[s.area] = area
	im.foreign, im.areas, im.fresh = &h, areas, true
	return wipeArea(dev, gone)
}

// Tidy ends a roll of a foreign LUKS2 volume that was cut off after its first
// header copy: both copies become the newer one, then the key slot areas that
// it does not name go to zeros. Power may be cut at any write; the next Tidy
// goes on. To be called once the volume has opened with its new passphrase.
func (im *Image) Tidy(dev Device) error {
	if im.foreign == nil {
		return nil // LUKS1 is never rolled
	}
	if !im.fresh {
		h := *im.foreign
		if err := h.writeBoth(dev); err != nil {
			return err
		}
		im.foreign, im.fresh = &h, true
	}
	for _, free := range im.foreign.meta.unnamed() {
		if err := wipeArea(dev, free); err != nil {
			return err
		}
	}
	return nil
}

// unnamed are the parts of the key slots' room that no slot takes.
func (m *metadata) unnamed() []region {
	at, end := int64(foreignSlotsStart), int64(foreignSlotsStart)+m.keyslotsSize
	var all []region
	for _, s := range slices.SortedFunc(slices.Values(m.slots), func(a, b keyslot) int { return cmp.Compare(a.area.offset, b.area.offset) }) {
		if s.area.offset > at {
			all = append(all, region{at, s.area.offset - at})
		}
		at = s.area.end()
	}
	if at < end {
		all = append(all, region{at, end - at})
	}
	return all
}

// room finds an id and a place for one more key slot where cryptsetup would
// look for it.
func (m *metadata) room() (id int, at int64, ok bool) {
	if len(m.slots) >= maxSlots {
		return 0, 0, false
	}
	for slices.ContainsFunc(m.slots, func(s keyslot) bool { return s.id == id }) {
		id++
	}
	at = foreignSlotsStart
	end := min(foreignSlotsStart+m.keyslotsSize, m.dataOffset)
	for size := areaSize(m.integrity); at+size <= end; at += size {
		if !slices.ContainsFunc(m.slots, func(s keyslot) bool { return s.area.overlaps(region{at, size}) }) {
			return id, at, true
		}
	}
	return 0, 0, false
}

func (m *metadata) slotIDs() []string {
	ids := make([]string, len(m.slots))
	for i, s := range m.slots {
		ids[i] = strconv.Itoa(s.id)
	}
	return ids
}
