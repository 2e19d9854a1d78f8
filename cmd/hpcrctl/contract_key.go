package main

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"hpcr/contract/pemkey"
)

// readSigningKey reads a private RSA key in any form that openssl writes.
func readSigningKey(cmd *cobra.Command, name, passphraseFile string) (*rsa.PrivateKey, error) {
	text, err := readInput(cmd, name)
	if err != nil {
		return nil, err
	}
	defer clear(text)
	block := privateBlock(text)
	if block == nil {
		return nil, usage("%s holds no private key in PEM form", name)
	}
	var passphrase []byte
	if pemkey.Protected(block) {
		if passphraseFile == "" {
			return nil, usage("%s is protected by a passphrase: give it with --passphrase-file", name)
		}
		line, err := readInput(cmd, passphraseFile)
		if err != nil {
			return nil, err
		}
		defer clear(line)
		passphrase, _, _ = bytes.Cut(line, []byte("\n"))
		passphrase = bytes.TrimSuffix(passphrase, []byte("\r"))
	}
	der, kind, err := pemkey.Open(block, passphrase)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	defer clear(der)
	var key any
	if kind == "RSA PRIVATE KEY" {
		key, err = x509.ParsePKCS1PrivateKey(der)
	} else {
		key, err = x509.ParsePKCS8PrivateKey(der)
	}
	if err != nil {
		return nil, fmt.Errorf("%s cannot be read as an RSA key: %w", name, err)
	}
	k, ok := key.(*rsa.PrivateKey)
	if !ok || k.N.BitLen() < 2048 {
		return nil, fmt.Errorf("%s: a signing key is an RSA key of 2048 bits or more", name)
	}
	return k, nil
}

func privateBlock(text []byte) *pem.Block {
	for {
		block, rest := pem.Decode(text)
		if block == nil || strings.HasSuffix(block.Type, "PRIVATE KEY") {
			return block
		}
		text = rest
	}
}
