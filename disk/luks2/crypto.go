package luks2

import (
	"crypto/aes"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"hash"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/xts"
)

var hashes = map[string]func() hash.Hash{"sha1": sha1.New, "sha256": sha256.New, "sha512": sha512.New}

// argon2id is a variable for tests, which derive the same key many times.
var argon2id = func(passphrase, salt []byte, time, memory uint32, threads uint8, n uint32) (key []byte) {
	Derive(memory, func() { key = argon2.IDKey(passphrase, salt, time, memory, threads, n) })
	return key
}

// slotKey derives the key of a slot's area from a passphrase. It cannot be
// interrupted: the gate's bounds are what ends it.
func (k *kdf) slotKey(passphrase []byte) ([]byte, error) {
	if k.kind == "pbkdf2" {
		// The passphrase becomes a string inside: the library's signature asks for it.
		return pbkdf2.Key(hashes[k.hash], string(passphrase), k.salt, int(k.iterations), keySize)
	}
	return argon2id(passphrase, k.salt, k.cost.Time, k.cost.MemoryKiB, uint8(k.cost.Parallel), keySize), nil
}

// compute is the digest over a volume key, of size bytes.
func (d *digest) compute(key []byte, size int) ([]byte, error) {
	return pbkdf2.Key(hashes[d.hash], string(key), d.salt, int(d.iterations), size)
}

// matches compares the digest in constant time and at full length, which for
// LUKS1 is that of SHA-1: a shorter one would let any passphrase pass.
func (d *digest) matches(key []byte) (bool, error) {
	if len(d.value) < sha1.Size {
		return false, nil
	}
	sum, err := d.compute(key, len(d.value))
	return subtle.ConstantTimeCompare(sum, d.value) == 1, err
}

// cryptArea en- or decrypts key material in place, in 512-byte sectors
// counted from the area's start.
func cryptArea(key, area []byte, encrypt bool) error {
	c, err := xts.NewCipher(aes.NewCipher, key)
	if err != nil {
		return fmt.Errorf("key slot cipher: %w", err)
	}
	for i := 0; i < len(area); i += 512 {
		sector := area[i : i+512]
		if encrypt {
			c.Encrypt(sector, sector, uint64(i/512))
		} else {
			c.Decrypt(sector, sector, uint64(i/512))
		}
	}
	return nil
}

// afSplit spreads key over afStripes stripes (LUKS1 specification, section
// 2.4): losing any of them loses the key.
func afSplit(key []byte, h func() hash.Hash) []byte {
	out := make([]byte, len(key)*afStripes)
	last := len(out) - len(key)
	rand.Read(out[:last]) // never fails: crypto/rand ends the process instead
	d := make([]byte, len(key))
	defer clear(d)
	for i := 0; i < last; i += len(key) {
		subtle.XORBytes(d, d, out[i:i+len(key)])
		diffuse(d, h())
	}
	subtle.XORBytes(out[last:], d, key)
	return out
}

// afMerge is the way back.
func afMerge(stripes []byte, size int, h func() hash.Hash) []byte {
	d := make([]byte, size)
	last := len(stripes) - size
	for i := 0; i < last; i += size {
		subtle.XORBytes(d, d, stripes[i:i+size])
		diffuse(d, h())
	}
	subtle.XORBytes(d, d, stripes[last:])
	return d
}

func diffuse(block []byte, h hash.Hash) {
	n := h.Size()
	for i := 0; i < len(block); i += n {
		part := block[i:min(i+n, len(block))]
		h.Reset()
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(i/n)))
		h.Write(part)
		copy(part, h.Sum(nil))
	}
}
