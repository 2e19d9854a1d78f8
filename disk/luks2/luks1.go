package luks2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
)

// Byte positions of a LUKS1 header (LUKS1 on-disk format, section 2.3.2).
const (
	l1Cipher, l1Mode, l1Hash, l1Payload         = 8, 40, 72, 104
	l1KeyBytes, l1Digest, l1Salt, l1Iterations  = 108, 112, 132, 164
	l1UUID, l1Slots, l1SlotSize, l1End          = 168, 208, 48, 592
	l1SlotOn, l1SlotOff                         = 0x00AC71F3, 0x0000DEAD
	l1SlotRounds, l1SlotSalt, l1SlotAt, l1Strip = 4, 8, 40, 44
)

// luks1 is a LUKS1 header that the gate accepted; raw is rebuilt from the
// checked values.
type luks1 struct {
	raw     []byte
	slots   []int // active ones
	areas   []region
	payload int64
	meta    *metadata // slots and digest alone
}

func isLUKS1(b []byte) bool {
	return bytes.HasPrefix(b, magicPrimary) && binary.BigEndian.Uint16(b[posVersion:]) == 1
}

func parseLUKS1(b []byte, size int64) (*luks1, error) {
	number := func(at int) int64 { return int64(binary.BigEndian.Uint32(b[at:])) }
	hash := string(bytes.TrimRight(b[l1Hash:l1Payload], "\x00"))
	if !padded(b[l1Cipher:l1Mode], "aes") || !padded(b[l1Mode:l1Hash], "xts-plain64") || hashSizes[hash] == 0 || number(l1KeyBytes) != keySize {
		return nil, errors.New("the LUKS1 cipher, mode, hash or key size is not allowed")
	}
	if n := number(l1Iterations); n < minIterations || n > maxDigestRounds {
		return nil, errors.New("the LUKS1 digest cost is out of bounds")
	}
	l := &luks1{payload: number(l1Payload) * 512, meta: &metadata{digest: digest{
		hash: hash, iterations: uint32(number(l1Iterations)), salt: bytes.Clone(b[l1Salt:l1Iterations]), value: bytes.Clone(b[l1Digest:l1Salt])}}}
	if l.payload < 4096 || l.payload > maxDataOffset || l.payload >= size {
		return nil, errors.New("the LUKS1 data offset is out of bounds")
	}
	for i := range 8 {
		at := l1Slots + i*l1SlotSize
		switch number(at) {
		case l1SlotOff:
			continue
		case l1SlotOn:
		default:
			return nil, errors.New("a LUKS1 key slot is neither on nor off")
		}
		if n := number(at + l1SlotRounds); n < minIterations || n > maxIterations || number(at+l1Strip) != afStripes {
			return nil, errors.New("a LUKS1 key slot's cost is out of bounds")
		}
		area := region{number(at+l1SlotAt) * 512, keySize * afStripes}
		if !area.within(1024, l.payload) || slices.ContainsFunc(l.areas, area.overlaps) {
			return nil, errors.New("a LUKS1 key slot's area is out of bounds")
		}
		l.slots, l.areas = append(l.slots, i), append(l.areas, area)
		l.meta.slots = append(l.meta.slots, keyslot{id: i, area: area, afHash: hash, priority: -1, kdf: kdf{kind: "pbkdf2", hash: hash,
			iterations: uint32(number(at + l1SlotRounds)), salt: bytes.Clone(b[at+l1SlotSalt : at+l1SlotAt])}})
	}
	if len(l.slots) == 0 {
		return nil, errors.New("no LUKS1 key slot is in use")
	}
	l.raw = bytes.Clone(b[:l1End])
	clear(l.raw[l1UUID:l1Slots])
	return l, nil
}

func (l *luks1) regions() []region { return l.areas }
