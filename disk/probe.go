package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"hpcr/disk/images"
	"hpcr/disk/luks2"
)

// Kind says what a disk holds. An error while reading is none of them: a
// disk that cannot be read is never blank.
type Kind string

const (
	Blank       Kind = "blank"
	Ours        Kind = "ours"
	ForeignLUKS Kind = "foreign-luks"
	Interrupted Kind = "interrupted" // of our make, creation or a header write cut off
	Foreign     Kind = "foreign"     // anything else; never written to
	Scratch     Kind = "scratch"     // of an open scratch disk; Probe finds such a disk Foreign
)

// Layout says where on the disk the volume lies.
type Layout string

const (
	Partitioned Layout = "partitioned"
	WholeDisk   Layout = "whole-disk"
)

// Content is what Probe found.
type Content struct {
	Kind   Kind
	Layout Layout
	// Partitions counts those of a partitioned disk; 0 when there is no table.
	Partitions int
	// Start and Size bound the volume (LUKS header included), in bytes; of
	// Foreign content, a LUKS header that the gate refused.
	Start, Size int64
	// Image is the volume's header, read once; nil for Blank and Foreign.
	Image *luks2.Image
	table *gpt // of a partitioned disk
	// Reason says why the content is Foreign, in our own words.
	Reason error
}

// Creatable: formatting this disk loses nothing.
func (c Content) Creatable() bool {
	return c.Kind == Blank || c.Kind == Interrupted && c.Image.Resumable()
}

// Openable: a passphrase may open this disk.
func (c Content) Openable() bool {
	return c.Kind == Ours || c.Kind == ForeignLUKS || c.Kind == Interrupted && !c.Image.Resumable()
}

// Probe reads a disk of size bytes with logical blocks of block bytes. Its
// error is one of reading.
func Probe(r io.ReaderAt, size, block int64) (Content, error) {
	if block != 512 && block != 4096 || size < 2*mib || size%block != 0 {
		return Content{Kind: Foreign, Reason: errors.New("the disk's size or block size is not supported")}, nil
	}
	first := make([]byte, block)
	if _, err := r.ReadAt(first, 0); err != nil {
		return Content{}, fmt.Errorf("read first block: %w", err)
	}
	// Before all else: what lies behind is whatever somebody's image holds.
	if images.Is(first) {
		return Content{Kind: Foreign, Reason: errors.New("the disk holds container images: its serial is to be images")}, nil
	}
	whole, err := probeVolume(r, 0, size)
	if err != nil || whole.Kind != "" {
		whole.Layout = WholeDisk
		return whole, err
	}
	if all, err := layout(size); err == nil {
		data, err := probeVolume(r, all[1].start, all[1].size)
		if err != nil {
			return Content{}, err
		}
		// The mark is the first thing a creation writes, and stands where
		// nothing else puts it: the tables before it may be torn.
		if data.Kind == Interrupted && data.Image.Resumable() && (protective(first) || !nonzero(first)) {
			data.Layout = Partitioned
			return data, nil
		}
	}
	g, err := readGPT(r, size, block)
	switch {
	case err == nil:
		return probeParts(r, g)
	case errors.Is(err, errBadGPT), errors.Is(err, errShrunk):
		return Content{Kind: Foreign, Reason: err}, nil
	case !errors.Is(err, errNoGPT):
		return Content{}, err
	}
	if n := mbrPartitions(first); n > 0 {
		return Content{Kind: Foreign, Layout: Partitioned, Partitions: n, Reason: errors.New("the disk has an MBR partition table")}, nil
	}
	empty, err := blank(r, size)
	if err != nil {
		return Content{}, err
	}
	if !empty {
		return Content{Kind: Foreign, Reason: errors.New("the disk is not empty, and holds no volume")}, nil
	}
	return Content{Kind: Blank, Size: size}, nil
}

func probeParts(r io.ReaderAt, g *gpt) (Content, error) {
	parts := g.parts
	if len(parts) != 2 {
		return Content{Kind: Foreign, Layout: Partitioned, Partitions: len(parts), Reason: errors.New("not two partitions")}, nil
	}
	c, err := probeVolume(r, parts[1].start, parts[1].size)
	if err == nil && c.Kind == "" {
		c.Kind, c.Reason = Foreign, errors.New("the second partition is not LUKS")
	}
	c.Layout, c.Partitions, c.table = Partitioned, 2, g
	return c, err
}

// probeVolume looks for a LUKS header at one place. Kind "" is none.
func probeVolume(r io.ReaderAt, start, size int64) (Content, error) {
	im, err := luks2.Read(io.NewSectionReader(r, start, size), size)
	if err != nil {
		return Content{}, err
	}
	c := Content{Start: start, Size: size, Image: im}
	switch im.Kind() {
	case luks2.Ours:
		c.Kind = Ours
	case luks2.ForeignLUKS:
		c.Kind = ForeignLUKS
	case luks2.Interrupted:
		c.Kind = Interrupted
	case luks2.Refused:
		c.Kind, c.Image, c.Reason = Foreign, nil, im.Reason()
	default:
		return Content{}, nil
	}
	return c, nil
}

const (
	blankHead   = 16 * mib // LUKS headers, partition tables, file systems' first superblocks
	blankTail   = 2 * mib  // backup tables, RAID and ZFS labels; Promise's RAID has its own up to 3087 sectors before the end
	blankSample = 64 << 10
)

// blank reads where something known would show: the head, the tail, and
// samples at each place where a file system keeps a copy of its superblock
// (ext: group 1, 3, 5, 7; btrfs: 64 MiB, 256 GiB), all covered by 1, 3, 5 and
// 7 times each power of two.
func blank(r io.ReaderAt, size int64) (bool, error) {
	type span struct{ at, n int64 }
	spans := []span{{0, min(blankHead, size)}, {size - blankTail, blankTail}}
	for p := int64(blankHead); p < size; p *= 2 {
		for _, m := range []int64{1, 3, 5, 7} {
			if at := m * p; at+blankSample <= size {
				spans = append(spans, span{at, blankSample})
			}
		}
	}
	buf := make([]byte, mib)
	for _, s := range spans {
		for at := s.at; at < s.at+s.n; at += mib {
			b := buf[:min(mib, s.at+s.n-at)]
			if _, err := r.ReadAt(b, at); err != nil {
				return false, fmt.Errorf("read disk: %w", err)
			}
			if nonzero(b) {
				return false, nil
			}
		}
	}
	return true, nil
}

func nonzero(b []byte) bool { return bytes.Count(b, []byte{0}) != len(b) }

func protective(block []byte) bool {
	return block[510] == 0x55 && block[511] == 0xAA && block[450] == 0xEE && !nonzero(block[:446]) && !nonzero(block[462:510])
}

// mbrPartitions counts the entries of an MBR; 0 also for what only ends like
// one, as the boot sector of a FAT file system does.
func mbrPartitions(block []byte) int {
	if block[510] != 0x55 || block[511] != 0xAA || bytes.HasPrefix(block[54:], []byte("FAT")) || bytes.HasPrefix(block[82:], []byte("FAT")) {
		return 0
	}
	n := 0
	for e := range slices.Chunk(block[446:510], 16) {
		if e[0]&0x7f != 0 {
			return 0
		}
		if e[4] != 0 && binary.LittleEndian.Uint32(e[12:]) != 0 {
			n++
		}
	}
	return n
}
