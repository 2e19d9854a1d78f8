package attest

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestRecordText(t *testing.T) {
	h := strings.Repeat("ab", 32)
	r := NewRecord("0.1.0")
	r.Add(Fact{Name: "contract:env", SHA256: h}, Fact{Name: "Image age", Text: "10 days since creation."}, Fact{Name: "/dev/disk/by-label/cidata", SHA256: h})
	got, err := r.Text()
	want := "0.1.0\nImage age: 10 days since creation.\n" + h + " contract:env\n" + h + " /dev/disk/by-label/cidata\n"
	if err != nil || string(got) != want {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestRecordRefusesAmbiguity(t *testing.T) {
	h := strings.Repeat("ab", 32)
	for name, facts := range map[string][]Fact{
		"a name with a line break":    {{Name: "x\n" + h + " y", SHA256: h}},
		"a text with a line break":    {{Name: "x", Text: "y\n" + h + " z"}},
		"a name with a blank":         {{Name: "x y", SHA256: h}},
		"a digest that is short":      {{Name: "x", SHA256: "ab"}},
		"a double name":               {{Name: "x", SHA256: h}, {Name: "x", SHA256: h}},
		"an escape in a text":         {{Name: "x", Text: "\x1b[2J"}},
		"a digest with capitals":      {{Name: "x", SHA256: strings.ToUpper(h)}},
		"an empty name of a hash":     {{SHA256: h}},
		"a name that is too long":     {{Name: strings.Repeat("n", 300), SHA256: h}},
		"a text that is far too long": {{Name: "x", Text: strings.Repeat("n", 600)}},
	} {
		r := NewRecord("1")
		r.Add(facts...)
		if got, err := r.Text(); err == nil {
			t.Errorf("%s: accepted as %q", name, got)
		}
	}
}

func TestSignatureVerifiesWithOpenSSL(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"PKCS #8": {Type: "PRIVATE KEY", Bytes: pkcs8},
		"PKCS #1": {Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)},
	} {
		dir := t.TempDir()
		text := []byte("record\n")
		sig, err := signer(bytes.NewReader(text), bytes.NewReader(pem.EncodeToMemory(block)))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		pub, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		if err := Write(filepath.Join(dir, "d"), []File{
			{"text", text, true}, {"sig", sig, false}, {"sub/pub", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pub}), false},
		}); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("openssl", "sha256", "-verify", "sub/pub", "-signature", "sig", "text")
		cmd.Dir = filepath.Join(dir, "d")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", name, err, out)
		}
		for path, want := range map[string]os.FileMode{"d": 0o500 | os.ModeDir, "d/sub": 0o500 | os.ModeDir, "d/sig": 0o400, "d/text": 0o600} {
			if fi, err := os.Stat(filepath.Join(dir, path)); err != nil || fi.Mode() != want {
				t.Errorf("%s: mode %v, %v", path, fi.Mode(), err)
			}
		}
		for _, d := range []string{"d", "d/sub"} { // so that the test's folder can be removed
			if err := os.Chmod(filepath.Join(dir, d), 0o700); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, in := range map[string]string{"no record": "", "a huge record": strings.Repeat("x", maxRecord+1)} {
		if _, err := signer(strings.NewReader(in), strings.NewReader("")); err == nil {
			t.Errorf("%s was signed", name)
		}
	}
}

func TestValidUntil(t *testing.T) {
	at := time.Date(2027, 7, 6, 8, 44, 41, 0, time.FixedZone("", 7200))
	if got := ValidUntil(at); got != "Jul 06 06:44:41 2027 UTC" {
		t.Errorf("got %s", got)
	}
}

// TestEncryptedRecordOpensByThePublishedScript runs the commands of IBM's
// documentation, bash variable and all.
func TestEncryptedRecordOpensByThePublishedScript(t *testing.T) {
	dir := t.TempDir()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	token, err := Encrypt(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pub}), []byte("the record\n"))
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"enc": token, "key": pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("bash", "-euc", `
		PASSWORD=$(cut -d. -f2 enc | base64 -d | openssl pkeyutl -decrypt -inkey key)
		cut -d. -f3 enc | base64 -d | openssl aes-256-cbc -d -pbkdf2 -pass pass:"$PASSWORD"`)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil || string(out) != "the record\n" {
		t.Errorf("%v: %q", err, out)
	}
	for name, bad := range map[string]string{"not PEM": "x", "not a key": "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"} {
		if _, err := Encrypt([]byte(bad), []byte("x")); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}
