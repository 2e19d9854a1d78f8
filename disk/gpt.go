package disk

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"unicode/utf16"

	"hpcr/disk/luks2"
)

// HPCR's layout: partition 1 `metadata`, 100 MiB; partition 2 `data`, the rest.
const (
	mib           = 1 << 20
	metadataStart = 1 * mib
	metadataSize  = 100 * mib
	dataStart     = metadataStart + metadataSize
	tailSize      = 1 * mib // the backup table's place, and alignment
	minDiskSize   = dataStart + luks2.MinSize + tailSize

	gptEntries   = 128
	gptEntrySize = 128
	gptTable     = gptEntries * gptEntrySize
	gptHeader    = 92
	gptMagic     = "EFI PART"

	gptMostEntries = 1024 // of another tool's table
)

// Partition types, as they stand on disk (mixed endian).
var (
	typeLinux = guid("0FC63DAF-8483-4772-8E79-3D69D8477DE4") // Linux file system
	typeLUKS  = guid("CA7D7CCB-63ED-4C53-861C-1742536059CC") // Linux LUKS

	typeScratch = guid("23A5C9C6-03C2-4ECA-B912-AFF74C1C633E") // ours: nothing on it outlasts a boot
)

type partition struct {
	name  string
	kind  [16]byte
	start int64 // bytes
	size  int64
	entry int // its number in the table
}

// layout is what a new disk of this size gets.
func layout(size int64) ([]partition, error) {
	if size < minDiskSize {
		return nil, errors.New("the disk is too small")
	}
	end := (size - tailSize) / mib * mib
	return []partition{
		{"metadata", typeLinux, metadataStart, metadataSize, 0},
		{"data", typeLUKS, dataStart, end - dataStart, 1},
	}, nil
}

// writeGPT writes both tables and the protective MBR. block is the disk's
// logical block size.
func writeGPT(w io.WriterAt, size, block int64, parts []partition) error {
	entries := make([]byte, gptTable)
	for i, p := range parts {
		e := entries[i*gptEntrySize:]
		copy(e, p.kind[:])
		copy(e[16:32], randomGUID())
		binary.LittleEndian.PutUint64(e[32:], uint64(p.start/block))
		binary.LittleEndian.PutUint64(e[40:], uint64((p.start+p.size)/block-1))
		for j, u := range utf16.Encode([]rune(p.name)) {
			binary.LittleEndian.PutUint16(e[56+2*j:], u)
		}
	}
	last := size/block - 1
	tableBlocks := (gptTable + block - 1) / block
	id := randomGUID()
	header := func(self, other, table int64) []byte {
		h := make([]byte, block)
		copy(h, gptMagic)
		le := binary.LittleEndian
		le.PutUint32(h[8:], 0x00010000)
		le.PutUint32(h[12:], gptHeader)
		le.PutUint64(h[24:], uint64(self))
		le.PutUint64(h[32:], uint64(other))
		le.PutUint64(h[40:], uint64(2+tableBlocks))
		le.PutUint64(h[48:], uint64(last-1-tableBlocks))
		copy(h[56:72], id)
		le.PutUint64(h[72:], uint64(table))
		le.PutUint32(h[80:], gptEntries)
		le.PutUint32(h[84:], gptEntrySize)
		le.PutUint32(h[88:], crc32.ChecksumIEEE(entries))
		le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:gptHeader]))
		return h
	}
	mbr := make([]byte, block)
	copy(mbr[446:], []byte{0, 0, 2, 0, 0xEE, 0xFF, 0xFF, 0xFF})
	binary.LittleEndian.PutUint32(mbr[454:], 1)
	binary.LittleEndian.PutUint32(mbr[458:], uint32(min(last, 0xFFFFFFFF)))
	mbr[510], mbr[511] = 0x55, 0xAA
	for _, part := range []struct {
		b  []byte
		at int64
	}{
		{entries, last - tableBlocks}, {header(last, 1, last-tableBlocks), last},
		{entries, 2}, {header(1, last, 2), 1},
		{mbr, 0},
	} {
		if _, err := w.WriteAt(part.b, part.at*block); err != nil {
			return fmt.Errorf("write partition table: %w", err)
		}
	}
	return nil
}

// gpt is a GUID partition table that was read.
type gpt struct {
	parts   []partition // in the order of their entries
	header  []byte      // of the primary table, UEFI 2.10 §5.3.2
	entries []byte
	place   int64 // block of the primary's entries
	mended  bool  // read from the backup: the primary is damaged
}

// Errors of readGPT.
var (
	errNoGPT  = errors.New("no partition table")
	errBadGPT = errors.New("the partition table is damaged")
	errShrunk = errors.New("the disk is smaller than its partition table says")
)

// readGPT reads the primary table; the backup at the disk's end only if the
// primary is damaged, as a power cut while the table grows leaves it.
func readGPT(r io.ReaderAt, size, block int64) (*gpt, error) {
	g, err := readTable(r, size, block, 1)
	if !errors.Is(err, errBadGPT) {
		return g, err
	}
	b, berr := readTable(r, size, block, size/block-1)
	if berr != nil {
		return nil, err
	}
	// Make of it what the primary should be.
	le := binary.LittleEndian
	le.PutUint64(b.header[24:], 1)
	le.PutUint64(b.header[32:], uint64(size/block-1))
	le.PutUint64(b.header[72:], 2)
	b.place, b.mended = 2, true
	return b, nil
}

// readTable reads the table whose header stands in block self.
func readTable(r io.ReaderAt, size, block, self int64) (*gpt, error) {
	h := make([]byte, block)
	if _, err := r.ReadAt(h, self*block); err != nil {
		return nil, fmt.Errorf("read partition table: %w", err)
	}
	if !bytes.HasPrefix(h, []byte(gptMagic)) {
		return nil, errNoGPT
	}
	h = h[:gptHeader]
	le := binary.LittleEndian
	sum := le.Uint32(h[16:])
	clear(h[16:20])
	place, last := int64(le.Uint64(h[72:])), size/block
	count := int64(le.Uint32(h[80:]))
	table := count * gptEntrySize
	if le.Uint32(h[12:]) != gptHeader || crc32.ChecksumIEEE(h) != sum || le.Uint64(h[24:]) != uint64(self) ||
		count < 1 || count > gptMostEntries || le.Uint32(h[84:]) != gptEntrySize ||
		place < 2 || place > last-(table+block-1)/block {
		return nil, errBadGPT
	}
	if self == 1 && le.Uint64(h[32:]) >= uint64(last) {
		return nil, errShrunk // also where no partition was cut
	}
	g := &gpt{header: h, entries: make([]byte, table), place: place}
	if _, err := r.ReadAt(g.entries, place*block); err != nil {
		return nil, fmt.Errorf("read partition table: %w", err)
	}
	if crc32.ChecksumIEEE(g.entries) != le.Uint32(h[88:]) {
		return nil, errBadGPT
	}
	for i := range int(count) {
		e := g.entries[i*gptEntrySize:]
		p := partition{entry: i}
		copy(p.kind[:], e)
		if p.kind == [16]byte{} {
			continue
		}
		from, to := le.Uint64(e[32:]), le.Uint64(e[40:])
		if from < 1 || to < from || to > 1<<54 {
			return nil, errBadGPT
		}
		if to >= uint64(last) {
			return nil, errShrunk
		}
		p.start, p.size = int64(from)*block, int64(to-from+1)*block
		for _, q := range g.parts {
			if p.start < q.start+q.size && q.start < p.start+p.size {
				return nil, errBadGPT
			}
		}
		g.parts = append(g.parts, p)
	}
	return g, nil
}

// writable: the table is as long as ours and stands where ours does, and both its
// places lie outside of every partition. What another tool laid out otherwise is
// left to it.
func (g *gpt) writable(size, block int64) bool {
	tableBlocks := (gptTable + block - 1) / block
	return g.place == 2 && len(g.entries) == gptTable && !slices.ContainsFunc(g.parts, func(p partition) bool {
		return p.start < (2+tableBlocks)*block || p.start+p.size > (size/block-1-tableBlocks)*block
	})
}

// grow gives the partition the room that the disk has gained behind it since
// the table was written, and says whether there is any. Room that was always
// there is its owner's choice. Nothing is written.
func (g *gpt) grow(part int, size, block int64) bool {
	le, last := binary.LittleEndian, size/block-1
	if le.Uint64(g.header[32:]) >= uint64(last) {
		return false // the backup stands at the disk's end
	}
	p := &g.parts[part]
	for _, q := range g.parts {
		if q.start > p.start {
			return false // it is not the last
		}
	}
	end := (size - tailSize) / mib * mib
	if end <= p.start+p.size {
		return false
	}
	p.size = end - p.start
	tableBlocks := (gptTable + block - 1) / block
	le.PutUint64(g.entries[p.entry*gptEntrySize+40:], uint64(end/block-1))
	le.PutUint64(g.header[32:], uint64(last))
	le.PutUint64(g.header[48:], uint64(last-1-tableBlocks))
	return true
}

// syncWriter is a disk whose writes can be made durable.
type syncWriter interface {
	io.WriterAt
	Sync() error
}

// write puts the table back: the backup at the disk's end, then the primary,
// each made durable. While one is torn, the other holds. The protective MBR,
// whose size field no reader needs, comes last.
func (g *gpt) write(w syncWriter, size, block int64, mbr []byte) error {
	last, tableBlocks := size/block-1, (gptTable+block-1)/block
	seal := func(self, other, place int64) []byte {
		h := make([]byte, block)
		copy(h, g.header)
		le := binary.LittleEndian
		le.PutUint64(h[24:], uint64(self))
		le.PutUint64(h[32:], uint64(other))
		le.PutUint64(h[72:], uint64(place))
		le.PutUint32(h[88:], crc32.ChecksumIEEE(g.entries))
		clear(h[16:20])
		le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:gptHeader]))
		return h
	}
	entries := make([]byte, tableBlocks*block)
	copy(entries, g.entries)
	type part struct {
		b  []byte
		at int64
	}
	for _, p := range []part{
		{slices.Concat(entries, seal(last, 1, last-tableBlocks)), last - tableBlocks},
		{slices.Concat(seal(1, last, g.place), entries), 1},
	} {
		if _, err := w.WriteAt(p.b, p.at*block); err != nil {
			return fmt.Errorf("write partition table: %w", err)
		}
		if err := w.Sync(); err != nil {
			return fmt.Errorf("write partition table: %w", err)
		}
	}
	if !protective(mbr) {
		return nil
	}
	binary.LittleEndian.PutUint32(mbr[458:], uint32(min(last, 0xFFFFFFFF)))
	if _, err := w.WriteAt(mbr, 0); err != nil {
		return fmt.Errorf("write partition table: %w", err)
	}
	return w.Sync()
}

func guid(text string) (g [16]byte) {
	var a uint32
	var b, c, d uint16
	var e uint64
	if _, err := fmt.Sscanf(text, "%08X-%04X-%04X-%04X-%012X", &a, &b, &c, &d, &e); err != nil {
		panic(err) // a constant of this file
	}
	binary.LittleEndian.PutUint32(g[0:], a)
	binary.LittleEndian.PutUint16(g[4:], b)
	binary.LittleEndian.PutUint16(g[6:], c)
	binary.BigEndian.PutUint64(g[8:], uint64(d)<<48|e)
	return g
}

func randomGUID() []byte {
	g := make([]byte, 16)
	rand.Read(g)
	g[7], g[8] = g[7]&0x0f|0x40, g[8]&0x3f|0x80
	return g
}
