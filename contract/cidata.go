package contract

import (
	"bytes"
	"encoding/binary"
	"strings"

	"hpcr/agent/hpl"
)

// MaxDevice bounds the cidata device.
const MaxDevice = 64 << 20

// Files are the four files of a NoCloud volume; nil = the volume has none of
// that name, empty = it is there and empty.
type Files struct {
	UserData, MetaData, VendorData, NetworkConfig []byte
}

// ReadCidata finds the files on a whole device: ISO 9660 with Rock Ridge or
// Joliet names (plain names if neither is there), or FAT. Only the root
// directory is read. The slices lie in device. Errors are HPL11001E.
func ReadCidata(device []byte) (Files, error) {
	var (
		files Files
		label string
		err   error
	)
	img := image(device)
	switch {
	case len(device) > MaxDevice:
		return Files{}, badCidata("the cidata device is larger than 64 MiB: make it with hpcrctl cidata")
	case img.isISO():
		files, label, err = readISO(img)
	case img.isFAT():
		files, label, err = readFAT(img)
	default:
		return Files{}, badCidata("the cidata device holds neither ISO 9660 nor FAT: make it with hpcrctl cidata or genisoimage")
	}
	if err != nil {
		return Files{}, err
	}
	if !strings.EqualFold(label, cidataLabel) {
		return Files{}, badCidata("the device's file-system label is not cidata: make it with -volid cidata")
	}
	return files, nil
}

const cidataLabel = "cidata"

func badCidata(detail string) error { return hpl.New(badContract, "", detail) }

var (
	errISO = badCidata("the cidata device is a damaged ISO 9660 image: make it again")
	errFAT = badCidata("the cidata device is a damaged FAT volume: make it again")
)

// image gives bounded access to the device's bytes.
type image []byte

// cut returns n bytes at off, false if they are not there.
func (m image) cut(off, n int64) (image, bool) {
	if off < 0 || n < 0 || off > int64(len(m)) || n > int64(len(m))-off {
		return nil, false
	}
	return m[off : off+n : off+n], true
}

func (m image) le16(off int) int64 { return int64(binary.LittleEndian.Uint16(m[off:])) }
func (m image) le32(off int) int64 { return int64(binary.LittleEndian.Uint32(m[off:])) }

// wanted lists the volume's files with their names on ISO level 2 and 1.
var wanted = []struct {
	name string
	max  int64
	get  func(*Files) *[]byte
}{
	{"user-data", maxDocument, func(f *Files) *[]byte { return &f.UserData }},
	{"meta-data", 1 << 20, func(f *Files) *[]byte { return &f.MetaData }},
	{"vendor-data", maxDocument, func(f *Files) *[]byte { return &f.VendorData }},
	{"network-config", 1 << 20, func(f *Files) *[]byte { return &f.NetworkConfig }},
}

// take stores one directory entry's content if its name is wanted. read is
// asked only then. Two entries of one name are refused: readers would differ
// in which they take.
func (f *Files) take(name string, size int64, regular bool, read func() ([]byte, error)) error {
	for _, w := range wanted {
		if name != w.name {
			continue
		}
		to := w.get(f)
		switch {
		case *to != nil:
			return badCidata("a file stands twice on the cidata device: make it again")
		case !regular:
			return badCidata("a file on the cidata device is not a regular file: make it again")
		case size > w.max:
			return badCidata("a file on the cidata device is too large: user-data may have 16 MiB")
		}
		data, err := read()
		if err != nil {
			return err
		}
		if data == nil {
			data = []byte{}
		}
		*to = data
	}
	return nil
}

// plainName maps an ISO 9660 name without extensions, "USER_DAT.;1", to ours.
func plainName(id string) string {
	id, _, _ = strings.Cut(id, ";")
	id = strings.ReplaceAll(strings.ToLower(strings.TrimRight(id, ".")), "_", "-")
	for _, w := range wanted {
		if id == w.name || id == w.name[:8] {
			return w.name
		}
	}
	return ""
}

func trimLabel(b []byte) string { return string(bytes.TrimRight(b, " \x00")) }
