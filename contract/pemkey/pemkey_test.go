package pemkey

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"testing"
)

func block(t testing.TB, name string) *pem.Block {
	t.Helper()
	text, err := os.ReadFile("../testdata/vectors/keys/" + name)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := pem.Decode(text)
	if b == nil {
		t.Fatal("no PEM")
	}
	return b
}

// The forms of openssl's tools are tested beside the sign command, against
// openssl itself.
func TestOpen(t *testing.T) {
	tests := map[string]struct {
		file, passphrase, kind string
		protected              bool
		err                    error
	}{
		"protected":        {"sign-aes128.key", "vector-pass", "PRIVATE KEY", true, nil},
		"wrong passphrase": {"sign-aes128.key", "vector-Pass", "", true, ErrPassphrase},
		"no passphrase":    {"sign-aes128.key", "", "", true, ErrPassphrase},
		"PKCS#8":           {"sign.key", "", "PRIVATE KEY", false, nil},
		"PKCS#1":           {"sign-pkcs1.key", "", "RSA PRIVATE KEY", false, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			b := block(t, tt.file)
			if Protected(b) != tt.protected {
				t.Errorf("protected: %v", Protected(b))
			}
			der, kind, err := Open(b, []byte(tt.passphrase))
			if !errors.Is(err, tt.err) {
				t.Fatalf("got %v", err)
			}
			if err != nil {
				return
			}
			if kind != tt.kind {
				t.Errorf("kind %s", kind)
			}
			parse := func() (any, error) { return x509.ParsePKCS8PrivateKey(der) }
			if kind == "RSA PRIVATE KEY" {
				parse = func() (any, error) { return x509.ParsePKCS1PrivateKey(der) }
			}
			if _, err := parse(); err != nil {
				t.Error(err)
			}
		})
	}
}

// Property: no panic, bounded work for any key file.
func FuzzOpen(f *testing.F) {
	f.Add("ENCRYPTED PRIVATE KEY", "", block(f, "sign-aes128.key").Bytes)
	f.Add("RSA PRIVATE KEY", "AES-128-CBC,00112233445566778899AABBCCDDEEFF", make([]byte, 32))
	f.Add("RSA PRIVATE KEY", "DES-EDE3-CBC,0011223344556677", make([]byte, 16))
	f.Fuzz(func(t *testing.T, kind, dek string, der []byte) {
		b := &pem.Block{Type: kind, Bytes: der, Headers: map[string]string{"DEK-Info": dek}}
		if out, _, err := Open(b, []byte("x")); err == nil && len(out) > len(der) {
			t.Fatal("more came out than went in")
		}
	})
}
