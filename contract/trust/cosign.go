package trust

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
)

// CosignPayload is the media type of what cosign signs, a layer of the image
// SHA256-DIGEST.sig beside the signed one; CosignAnnotation holds the
// signature, in base64, on that layer's descriptor (cosign's SIGNATURE_SPEC).
const (
	CosignPayload    = "application/vnd.dev.cosign.simplesigning.v1+json"
	CosignAnnotation = "dev.cosignproject.cosign/signature"
)

var errCosignKey = errors.New("not a public key that cosign verifies by")

// publicKey reads what cosign public-key prints: ECDSA on P-256 or P-384,
// Ed25519, or RSA from 2048 bits.
func publicKey(text []byte) (any, error) {
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "PUBLIC KEY" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errCosignKey
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, errCosignKey
	}
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if n := k.Params().BitSize; n == 256 || n == 384 {
			return k, nil
		}
	case ed25519.PublicKey:
		return k, nil
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n >= 2048 && n <= 8192 {
			return k, nil
		}
	}
	return nil, errCosignKey
}

// verifyCosign checks the signature over the payload's bytes, before they are
// parsed: SHA-256 with ECDSA or RSA PKCS #1 v1.5, or Ed25519.
func (r Rule) verifyCosign(s Signature) error {
	key, err := publicKey(r.Key)
	if err != nil {
		return refuse(rankFormat, "the contract's cosign key cannot be used: give the PEM that cosign public-key prints", err)
	}
	sum := sha256.Sum256(s.Payload)
	ok := false
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		ok = ecdsa.VerifyASN1(k, sum[:], s.Signature)
	case ed25519.PublicKey:
		ok = ed25519.Verify(k, s.Payload, s.Signature)
	case *rsa.PublicKey:
		ok = rsa.VerifyPKCS1v15(k, crypto.SHA256, sum[:], s.Signature) == nil
	}
	if !ok {
		return refuse(rankKey, "the image is not signed by the contract's key: sign it with that key, or give the key that signed it", nil)
	}
	return nil
}

func spkiSum(text []byte) string {
	block, _ := pem.Decode(text)
	if block == nil {
		return ""
	}
	sum := sha256.Sum256(block.Bytes)
	return hex.EncodeToString(sum[:])
}
