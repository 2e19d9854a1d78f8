package attest

import (
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	"hpcr/contract"
)

// Encrypt puts the record into a token for the holder of a public key (PEM,
// "PUBLIC KEY"), in the contract's own format with a printable password, so
// that IBM's published script opens it (contract.md §4.5).
func Encrypt(publicKey, text []byte) ([]byte, error) {
	block, _ := pem.Decode(publicKey)
	if block == nil {
		return nil, errors.New("the public key is not PEM")
	}
	any, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	key, ok := any.(*rsa.PublicKey)
	if !ok {
		return nil, errors.New("the public key is not RSA")
	}
	token, err := contract.Seal("hyper-protect-basic", key, text)
	return []byte(token), err
}
