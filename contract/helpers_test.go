package contract

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"encoding/hex"
	"testing"
)

func hexString(b []byte) string { return hex.EncodeToString(b) }

// sealWith makes a token whose AES part comes from the whole password.
func sealWith(t testing.TB, sealed, password, plain []byte) string {
	t.Helper()
	salt := []byte("saltsalt")
	block, iv := derive(password, salt)
	if block == nil {
		t.Fatal("no key")
	}
	pad := aes.BlockSize - len(plain)%aes.BlockSize
	data := append(bytes.Clone(plain), bytes.Repeat([]byte{byte(pad)}, pad)...)
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(data, data)
	out := append([]byte(saltMagic+string(salt)), data...)
	return PrefixHPCR + "." + base64.StdEncoding.EncodeToString(sealed) + "." + base64.StdEncoding.EncodeToString(out)
}
