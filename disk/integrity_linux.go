package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
)

// A volume with integrity lies on a second mapping: dm-integrity keeps a tag
// for each sector, which dm-crypt writes and checks
// (Documentation/admin-guide/device-mapper/dm-integrity.rst). What cryptsetup
// makes of luksFormat --integrity hmac-sha256 is the same.

const (
	integritySuffix = "-integrity"
	integrityBlock  = 4096
	integrityMagic  = "integrt\x00"
)

// integrityMode says how tags and data are kept together.
type integrityMode byte

const (
	journalled integrityMode = 'J' // a power cut leaves sectors whole, old or new
	direct     integrityMode = 'D' // faster; after a power cut a sector may not read
)

// integrityParams is the target's parameter line as we load it. The kernel
// prints more behind it.
func (p place) integrityParams(m integrityMode) string {
	return fmt.Sprintf("%d:%d %d %d %c 2 block_size:%d fix_padding", p.major, p.minor, p.start/sector, tagSize, m, integrityBlock)
}

// mapIntegrity makes the lower mapping of the volume "name" over p and returns
// the place where its sectors lie. fresh makes its superblock anew: what was
// there is lost.
func mapIntegrity(name string, disk *os.File, p place, m integrityMode, fresh bool) (place, Table, error) {
	none := Table{}
	lower := name + integritySuffix
	params := p.integrityParams(m)
	if fresh {
		// Zeros ask the target for a superblock of its own.
		if _, err := disk.WriteAt(make([]byte, integrityBlock), p.start); err != nil {
			return p, none, fmt.Errorf("clear superblock: %w", err)
		}
		if err := disk.Sync(); err != nil {
			return p, none, fmt.Errorf("clear superblock: %w", err)
		}
		if _, err := createMapping(lower, "integrity", integrityBlock/sector, params); err != nil {
			return p, none, err
		}
		if err := removeMapping(lower); err != nil {
			return p, none, err
		}
	}
	sectors, err := provided(disk, p)
	if err != nil {
		return p, none, err
	}
	made, err := createMapping(lower, "integrity", sectors, params)
	if err != nil {
		return p, none, err
	}
	live, target, text, err := liveTable(lower)
	// The kernel counts and orders the options in its own way: what is before
	// them is compared, the rest is remembered.
	head, _, _ := strings.Cut(params, " 2 ")
	if err == nil && (live != sectors || target != "integrity" || !strings.HasPrefix(string(text), head+" ")) {
		err = errors.New("the live table is not the one that was loaded")
	}
	if err != nil {
		return p, none, errors.Join(err, removeMapping(lower))
	}
	return place{major: made.major, minor: made.minor, size: int64(sectors) * sector, sectorSize: p.sectorSize, integrity: true},
		Table{Mapping: lower, Target: target, Sectors: sectors, Params: string(text)}, nil
}

// provided reads how many sectors the lower mapping has room for. The
// superblock is the host's word: too many are refused, too few are missed.
func provided(disk *os.File, p place) (uint64, error) {
	if err := forget(disk, p.start, integrityBlock); err != nil {
		return 0, err
	}
	b := make([]byte, 512)
	if _, err := disk.ReadAt(b, p.start); err != nil {
		return 0, fmt.Errorf("read superblock: %w", err)
	}
	return parseIntegrity(b, p.size)
}

// parseIntegrity reads struct superblock of drivers/md/dm-integrity.c.
func parseIntegrity(b []byte, size int64) (uint64, error) {
	if !bytes.HasPrefix(b, []byte(integrityMagic)) || binary.LittleEndian.Uint16(b[10:]) != tagSize {
		return 0, errors.New("no integrity superblock of ours: the disk was changed")
	}
	sectors := binary.LittleEndian.Uint64(b[16:])
	if sectors == 0 || sectors > uint64(size/sector) || sectors%(integrityBlock/sector) != 0 {
		return 0, errors.New("the integrity superblock is damaged")
	}
	return sectors, nil
}
