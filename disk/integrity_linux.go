package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
)

// A volume with integrity lies on two more mappings: dm-integrity keeps a tag
// for each sector, which dm-crypt writes and checks
// (Documentation/admin-guide/device-mapper/dm-integrity.rst), as cryptsetup
// makes it of luksFormat --integrity hmac-sha256. It takes all of the device
// that it is given: a linear mapping ends that where the volume ends. CloseAll
// removes them in the order of their names: the volume, integrity, linear.

const (
	integritySuffix = "-integrity"
	linearSuffix    = "-linear"
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
func (m *mapping) integrityParams(mode integrityMode) string {
	return fmt.Sprintf("%d:%d 0 %d %c 2 block_size:%d fix_padding", m.major, m.minor, tagSize, mode, integrityBlock)
}

// mapIntegrity makes the lower mappings of the volume "name" over p and returns
// the place where its sectors lie. fresh makes its superblock anew: what was
// there is lost. What is mapped when it fails is CloseAll's.
func mapIntegrity(name string, disk *os.File, p place, mode integrityMode, fresh bool) (place, []Table, error) {
	linear := Table{Mapping: name + linearSuffix, Target: "linear", Sectors: uint64(p.size / integrityBlock * integrityBlock / sector),
		Params: fmt.Sprintf("%d:%d %d", p.major, p.minor, p.start/sector)}
	below, err := linear.load()
	if err != nil {
		return p, nil, err
	}
	tags := Table{Mapping: name + integritySuffix, Target: "integrity", Sectors: integrityBlock / sector, Params: below.integrityParams(mode)}
	if fresh {
		// Zeros ask the target for a superblock of its own.
		if _, err := disk.WriteAt(make([]byte, integrityBlock), p.start); err != nil {
			return p, nil, fmt.Errorf("clear superblock: %w", err)
		}
		if err := disk.Sync(); err != nil {
			return p, nil, fmt.Errorf("clear superblock: %w", err)
		}
		if _, err := createMapping(tags.Mapping, tags.Target, tags.Sectors, tags.Params); err != nil {
			return p, nil, err
		}
		if err := removeMapping(tags.Mapping); err != nil {
			return p, nil, err
		}
	}
	if tags.Sectors, err = provided(disk, p); err != nil {
		return p, nil, err
	}
	top, err := tags.load()
	if err != nil {
		return p, nil, err
	}
	return place{major: top.major, minor: top.minor, size: int64(tags.Sectors) * sector, sectorSize: p.sectorSize, integrity: true},
		[]Table{tags, linear}, nil
}

// load makes the mapping and compares what the kernel then shows with what was
// asked for. It counts and orders a target's options in its own way: what is
// before them is compared, and all of it kept.
func (t *Table) load() (*mapping, error) {
	m, err := createMapping(t.Mapping, t.Target, t.Sectors, t.Params)
	if err != nil {
		return nil, err
	}
	sectors, target, params, err := liveTable(t.Mapping)
	head, _, options := strings.Cut(t.Params, " 2 ")
	switch {
	case err != nil:
	case sectors != t.Sectors || target != t.Target || !options && string(params) != t.Params || options && !strings.HasPrefix(string(params), head+" "):
		err = errors.New("the live table is not the one that was loaded")
	}
	if err != nil {
		return nil, errors.Join(err, removeMapping(t.Mapping))
	}
	t.Params = string(params)
	return m, nil
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
