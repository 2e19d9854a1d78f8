package disk

import (
	"context"
	"errors"
	"fmt"
	"strings"

	luks "github.com/anatol/luks.go"

	"hpcr/agent/secret"
	"hpcr/disk/luks2"
)

// errStripped: the key says that the volume was sealed, the header does not.
var errStripped = errors.New("the volume's seal was removed")

// liftForeign opens a volume that cryptsetup or HPCR made and returns its
// key. luks.go reads a copy in RAM whose every field the gate has checked and
// rewritten. It keeps the key to itself and gives it only to the device
// mapper: so it maps the volume with our constants under a name of its own,
// the key is taken from the live table, and that mapping goes again. slot is
// the key slot that opened.
func liftForeign(ctx context.Context, f *luks2.Foreign, passphrase *secret.Secret, node, name string, p place) (key *secret.Secret, slot int, err error) {
	mem, err := memoryFile("luks-header")
	if err != nil {
		return nil, 0, err
	}
	defer mem.Close()
	for _, s := range f.Sections {
		if _, err := mem.WriteAt(s.Data, s.Offset); err != nil {
			return nil, 0, fmt.Errorf("copy header: %w", err)
		}
	}
	if err := mem.Truncate(f.DataOffset + int64(f.SectorSize)); err != nil {
		return nil, 0, fmt.Errorf("copy header: %w", err)
	}
	dev, err := luks.Open(fmt.Sprintf("/proc/self/fd/%d", mem.Fd()))
	if err != nil {
		return nil, 0, fmt.Errorf("luks.go: %w", err)
	}
	defer dev.Close()
	volume, slot, err := unseal(ctx, dev, f.Slots, passphrase)
	if err != nil {
		return nil, 0, err
	}

	t, err := p.table()
	if err != nil {
		return nil, 0, err
	}
	volume.BackingDevice = node
	volume.Flags = nil
	volume.UUID = "hpcr"
	volume.LuksType = fmt.Sprintf("LUKS%d", f.Version)
	volume.StorageEncryption = cipher
	volume.StorageIvTweak = 0
	volume.StorageSectorSize = uint64(p.sectorSize)
	volume.StorageOffset = uint64(p.start)
	volume.StorageSize = t.sectors * sector
	if err := volume.SetupMapper(name); err != nil {
		return nil, 0, errors.Join(fmt.Errorf("luks.go: %w", err), removeMapping(name))
	}
	key, err = liftKey(name, p)
	if err = errors.Join(err, removeMapping(name)); err != nil {
		key.Wipe()
		return nil, 0, err
	}
	if luks2.Marked(key.Bytes()) {
		key.Wipe()
		return nil, 0, errStripped
	}
	return key, slot, nil
}

func unseal(ctx context.Context, dev luks.Device, slots []luks2.Slot, passphrase *secret.Secret) (v *luks.Volume, id int, err error) {
	for _, slot := range slots {
		if err := ctx.Err(); err != nil {
			return nil, 0, err
		}
		luks2.Derive(slot.MemoryKiB, func() { v, err = dev.UnsealVolume(slot.ID, passphrase.Bytes()) })
		switch {
		case err == nil:
			return v, slot.ID, nil
		case errors.Is(err, luks.ErrPassphraseDoesNotMatch):
		default:
			return nil, 0, fmt.Errorf("luks.go: %s", strings.ToValidUTF8(err.Error(), "?"))
		}
	}
	return nil, 0, luks2.ErrPassphrase
}
