package seimage

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/sha256"
)

// coordSize is that of each coordinate of a P-521 point, left-padded.
const coordSize = 80

// Hash is the SHA-256 of a host key's coordinates, by which a machine finds
// its key slot; s390-tools call it PHKH or target key hash.
type Hash [32]byte

// coordinates gives X and Y as the Ultravisor takes them.
func coordinates(pub *ecdh.PublicKey) (out [2 * coordSize]byte) {
	const n = 66
	raw := pub.Bytes()[1:] // 04 | X | Y
	copy(out[coordSize-n:], raw[:n])
	copy(out[2*coordSize-n:], raw[n:])
	return out
}

// HashOf is the hash of a host key.
func HashOf(pub *ecdh.PublicKey) Hash {
	c := coordinates(pub)
	return sha256.Sum256(c[:])
}

// wrapping is the cipher of a key slot. Its key follows from both parties' EC
// keys, one of which is new for each image, so the nonce may be zero.
func wrapping(private *ecdh.PrivateKey, public *ecdh.PublicKey) (cipher.AEAD, error) {
	z, err := private.ECDH(public)
	if err != nil {
		return nil, err
	}
	defer clear(z)
	kek := sha256.Sum256(append(z[:len(z):len(z)], 0, 0, 0, 1)) // one round of X9.63's derivation
	defer clear(kek[:])
	block, err := aes.NewCipher(kek[:])
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

var zeroNonce [12]byte

// keySlot wraps the header's key for one machine.
func keySlot(customer *ecdh.PrivateKey, host *ecdh.PublicKey, key []byte) ([]byte, error) {
	aead, err := wrapping(customer, host)
	if err != nil {
		return nil, err
	}
	hash := HashOf(host)
	return aead.Seal(hash[:], zeroNonce[:], key, nil), nil
}
