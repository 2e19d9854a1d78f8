package disk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// ErrNoLabel: no device carries the label (yet).
var ErrNoLabel = errors.New("no device carries this label")

// labelNames are the devices that a labelled disk may be, partitions included.
var labelNames = regexp.MustCompile(`^(sr\d+|vd[a-z]+\d*|sd[a-z]+\d*|nvme\d+n\d+(p\d+)?|dasd[a-z]+\d*)$`)

// FindLabel returns the kernel name ("vda") of the one device whose ISO 9660
// or FAT volume label is label, in any case. It reads a few sectors of each
// device and mounts nothing. Two devices with the label are an error; a
// device that cannot be read does not hide one that can.
func FindLabel(label string) (string, error) {
	nodes, err := blockNodes()
	if err != nil {
		return "", fmt.Errorf("list devices: %w", err)
	}
	var hit []string
	var unread error
	for _, name := range nodes {
		got, err := labelOf(name)
		unread = errors.Join(unread, err)
		if err == nil && strings.EqualFold(got, label) {
			hit = append(hit, name)
		}
	}
	switch len(hit) {
	case 0:
		return "", errors.Join(ErrNoLabel, unread)
	case 1:
		return hit[0], nil
	}
	return "", fmt.Errorf("%d devices carry the same label", len(hit))
}

// blockNodes lists disks and their partitions.
func blockNodes() ([]string, error) {
	disks, err := os.ReadDir(sysBlock)
	if err != nil {
		return nil, err
	}
	var all []string
	for _, d := range disks {
		if !labelNames.MatchString(d.Name()) {
			continue
		}
		all = append(all, d.Name())
		below, err := filepath.Glob(filepath.Join(sysBlock, d.Name(), d.Name()+"*", "partition"))
		if err != nil {
			return nil, err
		}
		for _, p := range below {
			all = append(all, filepath.Base(filepath.Dir(p)))
		}
	}
	return all, nil
}

func labelOf(name string) (string, error) {
	f, err := os.Open("/dev/" + name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return readLabel(f)
}

const isoDescriptor = 16 * 2048 // ECMA-119: volume descriptors begin at sector 16

// readLabel is "" for whatever is neither ISO 9660 nor FAT.
func readLabel(r io.ReaderAt) (string, error) {
	b := make([]byte, 512)
	n, err := r.ReadAt(b, isoDescriptor)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read label: %w", err)
	}
	if n == len(b) && bytes.HasPrefix(b, []byte("\x01CD001\x01")) {
		return strings.TrimRight(string(b[40:72]), " \x00"), nil
	}
	if n, err = r.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read label: %w", err)
	}
	if n < len(b) || b[510] != 0x55 || b[511] != 0xAA {
		return "", nil
	}
	for _, at := range []struct{ label, kind int }{{71, 82}, {43, 54}} { // FAT32, FAT12 and 16
		if bytes.HasPrefix(b[at.kind:], []byte("FAT")) {
			return strings.TrimRight(string(b[at.label:at.label+11]), " \x00"), nil
		}
	}
	return "", nil
}

func holdsCidata(d blockDevice) bool {
	label, err := labelOf(d.name)
	return err == nil && strings.EqualFold(label, "cidata")
}

// ErrTooLarge: the device is larger than the caller takes.
var ErrTooLarge = errors.New("device larger than allowed")

// ReadDevice reads a whole device, named as by FindLabel, in one pass. What
// it returns is all that may ever be believed of the device: the host can
// change what a second pass would read.
func ReadDevice(name string, limit int64) ([]byte, error) {
	if !labelNames.MatchString(name) {
		return nil, errors.New("not a disk's name")
	}
	f, err := os.Open("/dev/" + name)
	if err != nil {
		return nil, fmt.Errorf("open device: %w", err)
	}
	defer f.Close()
	return readWhole(f, limit)
}

func readWhole(r io.ReadSeeker, limit int64) ([]byte, error) {
	size, err := r.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, fmt.Errorf("size of device: %w", err)
	}
	if size > limit {
		return nil, ErrTooLarge
	}
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("read device: %w", err)
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, fmt.Errorf("read device: %w", err)
	}
	return b, nil
}
