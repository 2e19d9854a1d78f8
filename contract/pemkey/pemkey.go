// Package pemkey opens private keys that openssl protected with a passphrase:
// PKCS#8 with PBES2 (openssl 3's default) and the traditional form with a
// DEK-Info header.
//
// It serves the host's tool; the guest never imports it. The input is the
// user's own, but work factors are bounded all the same. A wrong passphrase
// shows as bad padding or as a key that does not parse.
package pemkey

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/des"
	"crypto/md5"
	"crypto/pbkdf2"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"hash"
	"strings"

	"golang.org/x/crypto/scrypt"
)

// ErrPassphrase says that the passphrase does not open the key.
var ErrPassphrase = errors.New("the passphrase does not open the key")

const (
	maxIterations = 10_000_000
	maxScryptMem  = 1 << 30
)

// Protected says whether a block needs a passphrase.
func Protected(b *pem.Block) bool {
	return b.Type == "ENCRYPTED PRIVATE KEY" || b.Headers["DEK-Info"] != ""
}

// Open returns the DER of the key and the PEM type that it would have without
// protection. The caller wipes the DER.
func Open(b *pem.Block, passphrase []byte) (der []byte, kind string, err error) {
	switch {
	case b.Type == "ENCRYPTED PRIVATE KEY":
		der, err = openPKCS8(b.Bytes, passphrase)
		return der, "PRIVATE KEY", err
	case b.Headers["DEK-Info"] != "":
		der, err = openTraditional(b, passphrase)
		return der, b.Type, err
	default:
		return bytes.Clone(b.Bytes), b.Type, nil
	}
}

// openTraditional undoes openssl's EVP_BytesToKey(MD5, one round).
func openTraditional(b *pem.Block, passphrase []byte) ([]byte, error) {
	name, ivHex, _ := strings.Cut(b.Headers["DEK-Info"], ",")
	iv, err := hex.DecodeString(ivHex)
	if err != nil || len(iv) < 8 {
		return nil, errors.New("the key's DEK-Info header is damaged")
	}
	var size int
	makeCipher := aes.NewCipher
	switch name {
	case "AES-128-CBC":
		size = 16
	case "AES-192-CBC":
		size = 24
	case "AES-256-CBC":
		size = 32
	case "DES-EDE3-CBC":
		size, makeCipher = 24, des.NewTripleDESCipher
	default:
		return nil, fmt.Errorf("a key protected with %.20q is not supported: convert it with openssl pkcs8 -topk8", name)
	}
	var key, last []byte
	for len(key) < size {
		h := md5.New()
		h.Write(last)
		h.Write(passphrase)
		h.Write(iv[:8])
		last = h.Sum(nil)
		key = append(key, last...)
	}
	defer clear(key)
	block, err := makeCipher(key[:size])
	if err != nil {
		return nil, err
	}
	return unseal(block, iv, b.Bytes)
}

func unseal(block cipher.Block, iv, data []byte) ([]byte, error) {
	n := block.BlockSize()
	if len(iv) != n || len(data) == 0 || len(data)%n != 0 {
		return nil, errors.New("the protected key is damaged")
	}
	out := make([]byte, len(data))
	cipher.NewCBCDecrypter(block, iv).CryptBlocks(out, data)
	pad := int(out[len(out)-1])
	if pad < 1 || pad > n || !bytes.Equal(out[len(out)-pad:], bytes.Repeat([]byte{byte(pad)}, pad)) {
		clear(out)
		return nil, ErrPassphrase
	}
	return out[:len(out)-pad], nil
}

var (
	oidPBES2   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 13}
	oidPBKDF2  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 12}
	oidScrypt  = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11591, 4, 11}
	oidAES128  = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 2}
	oidAES192  = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 22}
	oidAES256  = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 42}
	oidDESEDE3 = asn1.ObjectIdentifier{1, 2, 840, 113549, 3, 7}
	hashes     = map[string]func() hash.Hash{
		"":                    sha1.New, // PBKDF2's default
		"1.2.840.113549.2.7":  sha1.New,
		"1.2.840.113549.2.8":  sha256.New224,
		"1.2.840.113549.2.9":  sha256.New,
		"1.2.840.113549.2.10": sha512.New384,
		"1.2.840.113549.2.11": sha512.New,
	}
)

type encryptedKey struct {
	Algorithm pkix.AlgorithmIdentifier
	Data      []byte
}

type pbes2Params struct {
	KDF, Cipher pkix.AlgorithmIdentifier
}

type pbkdf2Params struct {
	Salt       []byte
	Iterations int
	KeyLength  int                      `asn1:"optional"`
	PRF        pkix.AlgorithmIdentifier `asn1:"optional"`
}

type scryptParams struct {
	Salt      []byte
	N, R, P   int
	KeyLength int `asn1:"optional"`
}

var errPKCS8 = errors.New("the protected key is damaged, or not of PBES2: convert it with openssl pkcs8 -topk8 -v2 aes-256-cbc")

// openPKCS8 undoes PBES2 (RFC 8018, RFC 7914).
func openPKCS8(der, passphrase []byte) ([]byte, error) {
	var (
		k      encryptedKey
		params pbes2Params
		iv     []byte
	)
	if !decode(der, &k) || !k.Algorithm.Algorithm.Equal(oidPBES2) || !decode(k.Algorithm.Parameters.FullBytes, &params) ||
		!decode(params.Cipher.Parameters.FullBytes, &iv) {
		return nil, errPKCS8
	}
	size, makeCipher := 0, aes.NewCipher
	switch oid := params.Cipher.Algorithm; {
	case oid.Equal(oidAES128):
		size = 16
	case oid.Equal(oidAES192):
		size = 24
	case oid.Equal(oidAES256):
		size = 32
	case oid.Equal(oidDESEDE3):
		size, makeCipher = 24, des.NewTripleDESCipher
	default:
		return nil, errPKCS8
	}
	key, err := deriveKey(params.KDF, passphrase, size)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	block, err := makeCipher(key)
	if err != nil {
		return nil, err
	}
	return unseal(block, iv, k.Data)
}

func deriveKey(kdf pkix.AlgorithmIdentifier, passphrase []byte, size int) ([]byte, error) {
	switch {
	case kdf.Algorithm.Equal(oidPBKDF2):
		var p pbkdf2Params
		if !decode(kdf.Parameters.FullBytes, &p) || p.Iterations < 1 || p.Iterations > maxIterations {
			return nil, errPKCS8
		}
		h, ok := hashes[p.PRF.Algorithm.String()]
		if !ok {
			return nil, errPKCS8
		}
		return pbkdf2.Key(h, string(passphrase), p.Salt, p.Iterations, size)
	case kdf.Algorithm.Equal(oidScrypt):
		var p scryptParams
		if !decode(kdf.Parameters.FullBytes, &p) || p.N < 2 || p.R < 1 || p.P < 1 || p.P > 64 || p.R > 1024 || p.N > maxScryptMem/(128*p.R) {
			return nil, errPKCS8
		}
		return scrypt.Key(passphrase, p.Salt, p.N, p.R, p.P, size)
	default:
		return nil, errPKCS8
	}
}

// decode takes exactly one DER value.
func decode(der []byte, to any) bool {
	rest, err := asn1.Unmarshal(der, to)
	return err == nil && len(rest) == 0
}
