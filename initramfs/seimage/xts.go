package seimage

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
)

// pageCipher is AES-256-XTS (IEEE 1619) with a free tweak of 16 bytes. x/crypto/xts
// takes a sector number instead, which the Ultravisor's tweaks are not.
type pageCipher struct{ data, tweak cipher.Block }

// newPageCipher takes the data key and, behind it, the tweak key.
func newPageCipher(key *[64]byte) (*pageCipher, error) {
	data, err := aes.NewCipher(key[:32])
	if err != nil {
		return nil, err
	}
	tweak, err := aes.NewCipher(key[32:])
	if err != nil {
		return nil, err
	}
	return &pageCipher{data, tweak}, nil
}

// encrypt encrypts whole blocks in place.
func (x *pageCipher) encrypt(page []byte, tweak [16]byte) {
	x.tweak.Encrypt(tweak[:], tweak[:])
	lo, hi := binary.LittleEndian.Uint64(tweak[:]), binary.LittleEndian.Uint64(tweak[8:])
	for ; len(page) >= 16; page = page[16:] {
		whiten(page, lo, hi)
		x.data.Encrypt(page[:16], page[:16])
		whiten(page, lo, hi)
		// Times x in GF(2^128).
		carry := hi >> 63
		hi = hi<<1 | lo>>63
		lo = lo<<1 ^ carry*0x87
	}
}

func whiten(b []byte, lo, hi uint64) {
	binary.LittleEndian.PutUint64(b, binary.LittleEndian.Uint64(b)^lo)
	binary.LittleEndian.PutUint64(b[8:], binary.LittleEndian.Uint64(b[8:])^hi)
}
