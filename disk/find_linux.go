package disk

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"hpcr/agent/hpl"
)

const (
	sysBlock     = "/sys/block"
	serialLength = 20 // bytes that virtio-blk carries
)

// diskNames are the whole disks that may hold a volume.
var diskNames = regexp.MustCompile(`^(vd[a-z]+|sd[a-z]+|nvme\d+n\d+|dasd[a-z]+)$`)

// roles are serials that mark a disk as meant for something else.
var roles = []string{ScratchSerial, ImagesSerial}

// blockDevice is what sysfs says of a disk.
type blockDevice struct {
	name     string // "vda"
	serial   string // the host's word; "" when there is none
	sequence string // grows with each new medium or device
	size     int64  // bytes
	block    int64  // bytes, logical
}

func (d blockDevice) node() string { return "/dev/" + d.name }

// scan lists the disks that are there, by name.
func scan(exclude []string) ([]blockDevice, error) {
	entries, err := os.ReadDir(sysBlock)
	if err != nil {
		return nil, fmt.Errorf("list disks: %w", err)
	}
	var all []blockDevice
	for _, e := range entries {
		name := e.Name()
		if !diskNames.MatchString(name) || slices.Contains(exclude, name) {
			continue
		}
		dir := filepath.Join(sysBlock, name)
		d := blockDevice{name: name, serial: serialOf(dir), sequence: attribute(dir, "diskseq"), block: 512}
		sectors, err := strconv.ParseInt(attribute(dir, "size"), 10, 64)
		if err != nil || sectors == 0 {
			continue // gone again, or without a medium
		}
		d.size = sectors * sector
		if b, err := strconv.ParseInt(attribute(dir, "queue/logical_block_size"), 10, 64); err == nil {
			d.block = b
		}
		all = append(all, d)
	}
	return all, nil
}

func serialOf(dir string) string {
	for _, name := range []string{"serial", "device/serial"} {
		if s := attribute(dir, name); s != "" {
			return s
		}
	}
	// SCSI: a page of four bytes of head, then the serial.
	if page, err := os.ReadFile(filepath.Join(dir, "device/vpd_pg80")); err == nil && len(page) > 4 {
		return strings.TrimSpace(string(bytes.Trim(page[4:], "\x00")))
	}
	return ""
}

// attribute is "" when the disk has none such, which differs by driver.
func attribute(dir, name string) string {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// found is a disk with what it holds.
type found struct {
	blockDevice
	probed  bool
	content Content
	err     error // it could not be read
	claimed bool  // a volume of this boot is on it
}

// names says whether the disk's serial is this volume's name, as far as
// virtio carries it.
func (f *found) names(volume string) bool {
	return f.serial != "" && (f.serial == volume || len(f.serial) == serialLength && strings.HasPrefix(volume, f.serial))
}

// verdict is what to do about one volume now.
type verdict struct {
	open   []*found // try these; the first that opens is it
	create *found   // make the volume here
	err    error    // stop at once
} // all empty: wait

// decide finds a volume's disk among those that are there. unnamed counts
// the volumes without a disk that no disk's serial names; all are the names
// of all volumes.
func decide(s Spec, unnamed int, all []string, disks []*found) verdict {
	var mine, free []*found
	for _, d := range disks {
		switch {
		case d.claimed:
		case d.names(s.Name):
			mine = append(mine, d)
		case d.serial == "" || !slices.ContainsFunc(slices.Concat(all, roles), d.names):
			free = append(free, d)
		}
	}
	if len(mine) > 1 {
		return refuse("HPL02121E", s, "more than one disk has this volume's name as its serial: give each disk a serial of its own")
	}
	if len(mine) == 1 {
		d := mine[0]
		switch {
		case d.err != nil || !d.content.Openable() && !d.content.Creatable():
			return verdict{err: refusal(s, d)}
		case d.content.Creatable() && s.mustExist():
			return absent(s)
		case d.content.Creatable():
			return verdict{create: d}
		}
		return verdict{open: mine}
	}

	var luks, empty, other []*found
	for _, d := range free {
		switch {
		case d.err == nil && d.content.Openable():
			luks = append(luks, d)
		case d.err == nil && d.content.Creatable():
			empty = append(empty, d)
		default:
			other = append(other, d)
		}
	}
	switch {
	case len(luks) > 0:
		return verdict{open: luks}
	case len(empty) > 0 && s.mustExist():
		return absent(s)
	case len(empty) == 1 && unnamed == 1:
		return verdict{create: empty[0]}
	case len(empty) > 0:
		return refuse("HPL02121E", s, "it is not clear which empty disk is meant for this volume: give the disk the volume's name as its serial")
	case len(other) == 1:
		return verdict{err: refusal(s, other[0])}
	}
	return verdict{}
}

// absent refuses an empty disk in the place of a volume that there must be.
func absent(s Spec) verdict {
	return refuse("HPL02003E", s, "the contract says that this volume exists, but the disk is empty: attach the volume's own disk, or remove existing and minGeneration to make a new volume")
}

func refuse(code hpl.Code, s Spec, detail string) verdict {
	return verdict{err: hpl.New(code, s.Path, detail)}
}

// refusal is why a disk is not the volume's. Such a disk is never written to.
func refusal(s Spec, d *found) error {
	switch n := d.content.Partitions; {
	case d.err != nil:
		return hpl.Wrap(d.err, "HPL02120E", s.Path, "the disk "+d.name+" cannot be read: check it on the host")
	case d.content.Layout == Partitioned && n != 2:
		return hpl.New("HPL07006E", s.Path, fmt.Sprintf("the disk %s has %d partition(s), not two: attach an empty disk, or the one this volume was made on", d.name, n))
	}
	return hpl.Wrap(d.content.Reason, "HPL02003E", s.Path,
		"the disk "+d.name+" is neither empty nor a volume that may be opened; it was left as it is: attach the right disk, or an empty one")
}
