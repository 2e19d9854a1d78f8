package contract

import (
	"encoding/binary"
	"math/bits"
	"strings"
	"unicode/utf16"
)

// FAT12, FAT16 and FAT32 as far as a root directory needs them (Microsoft's
// "FAT: General Overview of On-Disk Format", 1.03).
type fat struct {
	m           image
	bits        int   // 12, 16, 32
	table       image // the first FAT
	dataStart   int64 // byte offset of cluster 2
	clusterSize int64
	clusters    int64 // count of data clusters
	root        image // fixed root directory of FAT12/16
	rootCluster int64
	bpbTag      string // the boot sector's label
}

const (
	maxFATEntries = 32768 // of a root directory
	attrLong      = 0x0f
	attrVolume    = 0x08
	attrDir       = 0x10
)

func (m image) isFAT() bool {
	boot, ok := m.cut(0, 512)
	return ok && boot[510] == 0x55 && boot[511] == 0xaa && (boot[0] == 0xeb || boot[0] == 0xe9) &&
		bits.OnesCount16(uint16(boot.le16(11))) == 1
}

func readFAT(m image) (Files, string, error) {
	v, ok := openFAT(m)
	if !ok {
		return Files{}, "", errFAT
	}
	dir := v.root
	if v.bits == 32 {
		if dir, ok = v.chain(v.rootCluster, -1); !ok {
			return Files{}, "", errFAT
		}
	}
	files, label, err := v.list(dir)
	if label == "" {
		label = v.bpbTag
	}
	return files, label, err
}

func openFAT(m image) (*fat, bool) {
	b := m[:512]
	bytesPer, perCluster := b.le16(11), int64(b[13])
	reserved, fats, rootEntries := b.le16(14), int64(b[16]), b.le16(17)
	total, fatSectors := b.le16(19), b.le16(22)
	if total == 0 {
		total = b.le32(32)
	}
	if fatSectors == 0 {
		fatSectors = b.le32(36)
	}
	if bytesPer < 512 || bytesPer > 4096 || bits.OnesCount8(uint8(perCluster)) != 1 || reserved == 0 || fats < 1 || fats > 2 || fatSectors == 0 {
		return nil, false
	}
	v := &fat{m: m, clusterSize: bytesPer * perCluster}
	rootSectors := (rootEntries*32 + bytesPer - 1) / bytesPer
	first := reserved + fats*fatSectors + rootSectors
	if v.clusters = (total - first) / perCluster; v.clusters < 1 {
		return nil, false
	}
	switch {
	case v.clusters < 4085:
		v.bits = 12
	case v.clusters < 65525:
		v.bits = 16
	default:
		v.bits = 32
	}
	// A FAT32 volume may be smaller than its kind allows: mkfs.vfat -F 32.
	if b.le16(22) == 0 && rootEntries == 0 {
		v.bits = 32
	}
	tag := 43
	if v.bits == 32 {
		tag = 71
		v.rootCluster = b.le32(44)
	}
	v.bpbTag = trimLabel(b[tag : tag+11])
	v.dataStart = first * bytesPer
	var ok1, ok2 bool
	v.table, ok1 = m.cut(reserved*bytesPer, fatSectors*bytesPer)
	v.root, ok2 = m.cut((reserved+fats*fatSectors)*bytesPer, rootEntries*32)
	return v, ok1 && ok2 && int64(len(v.table))*8 >= (v.clusters+2)*int64(v.bits)
}

// next follows the table; 0 = end or broken.
func (v *fat) next(c int64) int64 {
	switch v.bits {
	case 12:
		n := v.table.le16(int(c + c/2))
		if c%2 == 1 {
			n >>= 4
		}
		c = n & 0xfff
	case 16:
		c = v.table.le16(int(c * 2))
	default:
		c = v.table.le32(int(c*4)) & 0x0fffffff
	}
	if c < 2 || c >= v.clusters+2 {
		return 0
	}
	return c
}

// chain collects a cluster chain: size bytes of it, or all up to the bound of
// a root directory if size is negative.
func (v *fat) chain(c, size int64) (image, bool) {
	limit := size
	if size < 0 {
		limit = maxFATEntries * 32
	}
	if limit == 0 {
		return image{}, true
	}
	if c < 2 || c >= v.clusters+2 {
		return nil, false
	}
	var out image
	for int64(len(out)) < limit { // a loop ends here as well
		part, ok := v.m.cut(v.dataStart+(c-2)*v.clusterSize, v.clusterSize)
		if !ok {
			return nil, false
		}
		out = append(out, part...)
		if c = v.next(c); c == 0 {
			break
		}
	}
	if size < 0 {
		return out[:min(int64(len(out)), limit)], true
	}
	return out.cut(0, size)
}

// list reads the root directory; label is its volume entry.
func (v *fat) list(dir image) (Files, string, error) {
	var (
		files Files
		label string
		long  longName
	)
	for ; len(dir) >= 32; dir = dir[32:] {
		e := dir[:32]
		attr := e[11]
		switch {
		case e[0] == 0:
			return files, label, nil
		case e[0] == 0xe5:
			long = longName{}
			continue
		case attr&0x3f == attrLong:
			long.add(e)
			continue
		case attr&attrVolume != 0:
			if label == "" {
				label = trimLabel(e[:11])
			}
			long = longName{}
			continue
		}
		name := long.take(e[:11])
		size := e.le32(28)
		err := files.take(name, size, attr&attrDir == 0, func() ([]byte, error) {
			first := e.le16(26)
			if v.bits == 32 {
				first |= e.le16(20) << 16
			}
			data, ok := v.chain(first, size)
			if !ok {
				return nil, errFAT
			}
			return data, nil
		})
		if err != nil {
			return Files{}, "", err
		}
	}
	return files, label, nil
}

// longName gathers the VFAT entries before a short one.
type longName struct {
	units [20 * 13]uint16
	next  int // sequence number that must come; 0 = complete or none
	count int
	sum   byte
}

func (l *longName) add(e image) {
	seq := int(e[0])
	if seq&0x40 != 0 {
		*l = longName{next: seq & 0x1f, count: seq & 0x1f, sum: e[13]}
	}
	if n := seq & 0x1f; n == 0 || n > 20 || n != l.next || e[13] != l.sum {
		*l = longName{}
		return
	}
	i := (l.next - 1) * 13
	for _, off := range []int{1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30} {
		l.units[i] = binary.LittleEndian.Uint16(e[off:])
		i++
	}
	if l.next--; l.next == 0 {
		l.next = -1
	}
}

// take ends the gathering at the short entry and yields the file's name.
func (l *longName) take(short []byte) string {
	defer func() { *l = longName{} }()
	var sum byte
	for _, c := range short {
		sum = bits.RotateLeft8(sum, -1) + c
	}
	if l.next != -1 || sum != l.sum {
		base, ext := trimLabel(short[:8]), trimLabel(short[8:11])
		if ext != "" {
			base += "." + ext
		}
		return strings.ToLower(base)
	}
	units := l.units[:l.count*13]
	for i, u := range units {
		if u == 0 {
			units = units[:i]
			break
		}
	}
	return strings.ToLower(string(utf16.Decode(units)))
}
