package disk

import (
	"encoding/binary"
	"testing"
)

// integritySuper is a superblock as dm-integrity writes it (struct superblock,
// drivers/md/dm-integrity.c): magic, version 5, runs of 2^15 sectors, the tag's
// size, 88 journal sections, the sectors that it provides.
func integritySuper(tag uint16, sectors uint64) []byte {
	b := append(make([]byte, 0, 512), integrityMagic...)
	b = append(b, 5, 15)
	b = binary.LittleEndian.AppendUint16(b, tag)
	b = binary.LittleEndian.AppendUint32(b, 88)
	b = binary.LittleEndian.AppendUint64(b, sectors)
	return b[:512]
}

func TestParseIntegrity(t *testing.T) {
	const size = 16 * mib
	for name, tt := range map[string]struct {
		super []byte
		want  uint64 // 0: refused
	}{
		"as the kernel makes it":                    {integritySuper(tagSize, 31744), 31744},
		"all of the device":                         {integritySuper(tagSize, size/512), size / 512},
		"a 4 KiB sector more than the device":       {integritySuper(tagSize, size/512+8), 0},
		"2^64-8 sectors":                            {integritySuper(tagSize, 1<<64-8), 0},
		"no sectors":                                {integritySuper(tagSize, 0), 0},
		"half of a 4 KiB sector":                    {integritySuper(tagSize, 31748), 0},
		"a shorter tag":                             {integritySuper(4, 31744), 0},
		"zeros, as before it was made":              {make([]byte, 512), 0},
		"the magic of another target, same content": {append([]byte("dm-log\x00\x00"), integritySuper(tagSize, 31744)[8:]...), 0},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := parseIntegrity(tt.super, size); got != tt.want || (err == nil) != (tt.want > 0) {
				t.Errorf("got %d, %v, want %d", got, err, tt.want)
			}
		})
	}
}

// Property: no panic; a size that is accepted lies inside the device.
func FuzzIntegrity(f *testing.F) {
	f.Add(integritySuper(tagSize, 31744), int64(16*mib))
	f.Add(integritySuper(tagSize, 1<<63), int64(16*mib))
	f.Add(integritySuper(4, 8), int64(4096))
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		if size < 0 {
			return
		}
		block := make([]byte, 512)
		copy(block, b)
		if n, err := parseIntegrity(block, size); err == nil && (n == 0 || n > uint64(size)/sector || n%(integrityBlock/sector) != 0) {
			t.Fatalf("%d sectors in %d bytes", n, size)
		}
	})
}
