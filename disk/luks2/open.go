package luks2

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"errors"
	"fmt"

	"hpcr/agent/secret"
)

var (
	// ErrPassphrase: no key slot opens with this passphrase.
	ErrPassphrase = errors.New("no key slot opens with this passphrase")
	// ErrSeal: the passphrase is right, the seal is not.
	ErrSeal = errors.New("the volume's seal does not fit: its header was changed, or it belongs to another volume name")
)

// Opened is an unlocked volume of our make.
type Opened struct {
	Key        *secret.Secret // 64 bytes, with Integrity 96; the caller wipes it
	DataOffset int64          // bytes from the device's start
	SectorSize int
	Integrity  bool
	Generation uint64
	State      State
	Fresh      bool // both header copies are valid and equal

	h     *header
	areas map[region][]byte
}

// Unlock opens an image of our make: gate, key slot, digest, mark, seal, in
// this order. Each derivation runs to its end; ctx is asked before each.
func (im *Image) Unlock(ctx context.Context, passphrase *secret.Secret, name string) (*Opened, error) {
	if len(im.candidates) == 0 {
		return nil, fmt.Errorf("no volume of our make: %s", im.kind)
	}
	for _, h := range im.candidates {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		key, err := openSlot(h, im.areas, passphrase.Bytes())
		if errors.Is(err, ErrPassphrase) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := checkSeal(key.Bytes(), name, h, im.areas); err != nil {
			key.Wipe()
			return nil, err
		}
		return &Opened{
			Key: key, DataOffset: h.meta.dataOffset, SectorSize: h.meta.sectorSize, Integrity: h.meta.integrity,
			Generation: h.meta.seal.generation, State: h.meta.seal.state, Fresh: im.fresh,
			h: h, areas: im.areas,
		}, nil
	}
	return nil, ErrPassphrase
}

func openSlot(h *header, areas map[region][]byte, passphrase []byte) (*secret.Secret, error) {
	for _, s := range h.meta.slots {
		slotKey, err := s.kdf.slotKey(passphrase)
		if err != nil {
			return nil, fmt.Errorf("derive: %w", err)
		}
		stripes := append([]byte(nil), areas[s.area][:volumeKeySize(h.meta.integrity)*afStripes]...)
		err = cryptArea(slotKey, stripes, false)
		clear(slotKey)
		if err != nil {
			return nil, err
		}
		key := secret.New(afMerge(stripes, volumeKeySize(h.meta.integrity), hashes[s.afHash]))
		clear(stripes)
		ok, err := h.meta.digest.matches(key.Bytes())
		if ok && err == nil {
			return key, nil
		}
		key.Wipe()
		if err != nil {
			return nil, fmt.Errorf("digest: %w", err)
		}
	}
	return nil, ErrPassphrase
}

func checkSeal(key []byte, name string, h *header, areas map[region][]byte) error {
	want, err := sealMAC(key, name, h, areas)
	if err != nil {
		return err
	}
	if !hmac.Equal(want, h.meta.seal.mac) || !Marked(key) {
		return ErrSeal
	}
	return nil
}

// Commit writes the header anew with the next generation and the given
// state: a power cut at any write leaves a copy that opens.
func (o *Opened) Commit(dev Device, name string, state State) error {
	return o.write(dev, name, state, o.Generation+1)
}

// Repair writes both copies anew as they were read, after one was lost.
func (o *Opened) Repair(dev Device, name string) error {
	return o.write(dev, name, o.State, o.Generation)
}

func (o *Opened) write(dev Device, name string, state State, generation uint64) error {
	m := *o.h.meta
	m.seal = &seal{generation: generation, state: state}
	h := &header{uuid: o.h.uuid, seq: generation, meta: &m}
	var err error
	if m.seal.mac, err = sealMAC(o.Key.Bytes(), name, h, o.areas); err != nil {
		return err
	}
	h.secondary = o.h.secondary
	if err := h.writeBoth(dev); err != nil {
		return err
	}
	o.h, o.Generation, o.State, o.Fresh = h, generation, state, true
	return nil
}

// writeBoth writes the two copies. The one that h was read from may be the
// only one that holds: it is overwritten last.
func (h *header) writeBoth(dev Device) error {
	for _, h.secondary = range []bool{!h.secondary, h.secondary} {
		at := int64(0)
		if h.secondary {
			at = headerSize
		}
		rand.Read(h.salt[:])
		if err := writeSync(dev, h.encode(), at); err != nil {
			return fmt.Errorf("write header: %w", err)
		}
	}
	h.secondary = false // both hold now
	return nil
}
