package attest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"hpcr/agent/sandbox"
)

// maxRecord bounds the record and maxKey the key file that the signer reads.
const (
	maxRecord = 1 << 20
	maxKey    = 64 << 10
)

// Sign signs text in a child that holds the key only for that long: RSA
// PKCS #1 v1.5 with SHA-256 (contract.md §4.4). path is the signer applet.
func Sign(ctx context.Context, path string, key *os.File, text []byte) ([]byte, error) {
	var signature []byte
	err := sandbox.Spawn(ctx, sandbox.Child{
		Path: path, Name: "signer", Stdin: text, Files: []*os.File{key},
		Memory: 128 << 20, Output: 4096, Limit: 20 * time.Second,
	}, func(answer []byte, refused bool) error {
		if refused {
			return sandbox.ErrRefused
		}
		signature = bytes.Clone(answer)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("signer: %w", err)
	}
	return signature, nil
}

// SignerMain is the signer applet: record on stdin, key as its file, signature
// to stdout.
func SignerMain() {
	if err := sandbox.Confine(); err != nil {
		sandbox.Finish(2)
	}
	sig, err := signer(os.Stdin, sandbox.File(0, "key"))
	if err == nil {
		_, err = os.Stdout.Write(sig)
	}
	if err != nil {
		sandbox.Finish(1)
	}
	sandbox.Finish(0)
}

func signer(record, key io.Reader) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(record, maxRecord+1))
	if err != nil || len(text) == 0 || len(text) > maxRecord {
		return nil, errors.New("no record, or too large")
	}
	raw, err := io.ReadAll(io.LimitReader(key, maxKey))
	if err != nil {
		return nil, err
	}
	defer clear(raw)
	private, err := ParseKey(raw)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(text)
	return rsa.SignPKCS1v15(rand.Reader, private, crypto.SHA256, sum[:])
}

// ParseKey reads an RSA private key in PEM, PKCS #8 or PKCS #1.
func ParseKey(raw []byte) (*rsa.PrivateKey, error) {
	block, _ := pem.Decode(bytes.TrimSpace(raw))
	if block == nil {
		return nil, errors.New("the attestation key is not PEM")
	}
	defer clear(block.Bytes)
	if key, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
		return key, nil
	}
	any, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("attestation key: %w", err)
	}
	key, ok := any.(*rsa.PrivateKey)
	if !ok {
		return nil, errors.New("the attestation key is not RSA")
	}
	return key, nil
}
