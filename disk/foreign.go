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
// the key is taken from the live table, and that mapping goes again.
func liftForeign(ctx context.Context, f *luks2.Foreign, passphrase *secret.Secret, node, name string, p place) (*secret.Secret, error) {
	mem, err := memoryFile("luks-header")
	if err != nil {
		return nil, err
	}
	defer mem.Close()
	for _, s := range f.Sections {
		if _, err := mem.WriteAt(s.Data, s.Offset); err != nil {
			return nil, fmt.Errorf("copy header: %w", err)
		}
	}
	if err := mem.Truncate(f.DataOffset + int64(f.SectorSize)); err != nil {
		return nil, fmt.Errorf("copy header: %w", err)
	}
	dev, err := luks.Open(fmt.Sprintf("/proc/self/fd/%d", mem.Fd()))
	if err != nil {
		return nil, fmt.Errorf("luks.go: %w", err)
	}
	defer dev.Close()
	volume, err := unseal(ctx, dev, f.Slots, passphrase)
	if err != nil {
		return nil, err
	}

	t, err := p.table()
	if err != nil {
		return nil, err
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
		return nil, errors.Join(fmt.Errorf("luks.go: %w", err), removeMapping(name))
	}
	key, err := liftKey(name, p)
	if err = errors.Join(err, removeMapping(name)); err != nil {
		key.Wipe()
		return nil, err
	}
	if luks2.Marked(key.Bytes()) {
		key.Wipe()
		return nil, errStripped
	}
	return key, nil
}

func unseal(ctx context.Context, dev luks.Device, slots []int, passphrase *secret.Secret) (*luks.Volume, error) {
	for _, slot := range slots {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		v, err := dev.UnsealVolume(slot, passphrase.Bytes())
		switch {
		case err == nil:
			return v, nil
		case errors.Is(err, luks.ErrPassphraseDoesNotMatch):
		default:
			return nil, fmt.Errorf("luks.go: %s", strings.ToValidUTF8(err.Error(), "?"))
		}
	}
	return nil, luks2.ErrPassphrase
}
