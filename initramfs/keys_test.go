package initramfs

import (
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// openssl is the judge of what we make and the maker of what we read.
func openssl(t *testing.T, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Fatal("openssl is missing: run make deps")
	}
	out, err := exec.Command("openssl", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("openssl %v: %v\n%s", args, err, out)
	}
	return string(out)
}

func newKeys(t *testing.T, o KeyOptions) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "keys")
	o.Now, o.Days = time.Now(), 30
	if err := NewKeys(dir, o); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestNewKeysAreWhatOpensslExpects(t *testing.T) {
	dir := newKeys(t, KeyOptions{Flavour: FlavourRelease})
	for _, name := range []string{"contract", "attestation"} {
		key, crt := filepath.Join(dir, name+".key"), filepath.Join(dir, name+".crt")
		text := openssl(t, "pkey", "-in", key, "-noout", "-text")
		if !strings.Contains(text, "Private-Key: (4096 bit") {
			t.Errorf("%s.key is no RSA-4096 key", name)
		}
		data, err := os.ReadFile(key)
		if err != nil {
			t.Fatal(err)
		}
		if block, _ := pem.Decode(data); block == nil || block.Type != "PRIVATE KEY" {
			t.Errorf("%s.key is not PKCS#8", name)
		}
		if info, err := os.Stat(key); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s.key: mode %v, %v", name, info.Mode(), err)
		}
		if openssl(t, "pkey", "-in", key, "-pubout") != openssl(t, "x509", "-in", crt, "-noout", "-pubkey") {
			t.Errorf("%s: certificate and key differ", name)
		}
		if subject := openssl(t, "x509", "-in", crt, "-noout", "-subject"); !strings.Contains(subject, "hpcr release image") {
			t.Errorf("the certificate does not say its flavour: %s", subject)
		}
	}
	k, err := ReadKeys(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Wipe()
	if k.Flavour != FlavourRelease {
		t.Errorf("flavour %q", k.Flavour)
	}
	if err := NewKeys(dir, KeyOptions{Flavour: FlavourDev, Now: time.Now(), Days: 1}); err == nil {
		t.Error("keys were overwritten")
	}
}

func TestKeysOfACAVerifyAgainstIt(t *testing.T) {
	ca := t.TempDir()
	caKey, caCert := filepath.Join(ca, "ca.key"), filepath.Join(ca, "ca.crt")
	openssl(t, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", caKey, "-out", caCert, "-subj", "/CN=test", "-days", "2",
		"-addext", "basicConstraints=critical,CA:TRUE")
	dir := newKeys(t, KeyOptions{Flavour: FlavourDev, CAKey: caKey, CACert: caCert})
	for _, name := range []string{"contract.crt", "attestation.crt"} {
		openssl(t, "verify", "-CAfile", caCert, filepath.Join(dir, name))
	}
	// A certificate of another key than the CA's must not be signed with it.
	err := NewKeys(filepath.Join(ca, "bad"), KeyOptions{Flavour: FlavourDev, CAKey: filepath.Join(dir, "contract.key"), CACert: caCert, Days: 1, Now: time.Now()})
	if err == nil || exists(filepath.Join(ca, "bad")) {
		t.Errorf("a CA key that does not fit its certificate was taken: %v", err)
	}
}

// handMade is a keys folder made with openssl only, in the older key format.
func handMade(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"contract", "attestation"} {
		key := filepath.Join(dir, name+".key")
		openssl(t, "genrsa", "-traditional", "-out", key, "2048")
		openssl(t, "req", "-x509", "-new", "-key", key, "-out", filepath.Join(dir, name+".crt"), "-subj", "/CN="+name, "-days", "2")
	}
	return dir
}

func TestAFolderMadeByHandIsRead(t *testing.T) {
	k, err := ReadKeys(handMade(t))
	if err != nil {
		t.Fatal(err)
	}
	defer k.Wipe()
	if k.Flavour != FlavourDev {
		t.Errorf("without keys.json the flavour is %q", k.Flavour)
	}
	if block, _ := pem.Decode(k.ContractKey.Bytes()); block == nil || block.Type != "PRIVATE KEY" {
		t.Error("the key does not reach the image as PKCS#8")
	}
}

func TestBadKeysFoldersAreRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		damage func(dir string) error
		want   string
		env    bool
	}{
		"key missing":         {func(dir string) error { return os.Remove(filepath.Join(dir, "contract.key")) }, "contract.key", true},
		"certificate missing": {func(dir string) error { return os.Remove(filepath.Join(dir, "attestation.crt")) }, "attestation.crt", true},
		"certificates swapped": {func(dir string) error {
			return os.Rename(filepath.Join(dir, "attestation.crt"), filepath.Join(dir, "contract.crt"))
		}, "another key", false},
		"unknown flavour": {func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "keys.json"), []byte(`{"flavour":"x"}`), 0o600)
		}, "flavour", false},
		"no JSON": {func(dir string) error { return os.WriteFile(filepath.Join(dir, "keys.json"), []byte(`{`), 0o600) }, "keys.json", false},
		"no PEM":  {func(dir string) error { return os.WriteFile(filepath.Join(dir, "contract.key"), []byte("x"), 0o600) }, "no PEM", false},
		"key with a passphrase": {func(dir string) error {
			key := filepath.Join(dir, "contract.key")
			locked := key + ".new"
			if err := exec.Command("openssl", "pkcs8", "-topk8", "-in", key, "-out", locked, "-passout", "pass:test1234").Run(); err != nil {
				return err
			}
			return os.Rename(locked, key)
		}, "passphrase", false},
		"elliptic key": {func(dir string) error {
			return exec.Command("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", filepath.Join(dir, "contract.key")).Run()
		}, "RSA", false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := handMade(t)
			if err := tc.damage(dir); err != nil {
				t.Fatal(err)
			}
			_, err := ReadKeys(dir)
			if err == nil || !strings.Contains(err.Error(), tc.want) || errors.Is(err, ErrEnvironment) != tc.env {
				t.Errorf("got %v, want %q, environment %v", err, tc.want, tc.env)
			}
		})
	}
}

func TestReleaseCertificatesDoNotPassAsDev(t *testing.T) {
	dir := newKeys(t, KeyOptions{Flavour: FlavourRelease})
	if err := os.Remove(filepath.Join(dir, "keys.json")); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadKeys(dir); err == nil || !strings.Contains(err.Error(), "release images") {
		t.Errorf("a release key without its keys.json became a dev key: %v", err)
	}
}
