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
		"no PEM": {func(dir string) error { return os.WriteFile(filepath.Join(dir, "contract.key"), []byte("x"), 0o600) }, "no PEM", false},
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

// A flavour stands in keys.json and in each certificate of ours; whatever one
// of them says alone is refused.
func TestFlavourOfAKeysFolder(t *testing.T) {
	const absent = "absent"
	made := map[string]string{
		FlavourDev:     newKeys(t, KeyOptions{Flavour: FlavourDev}),
		FlavourRelease: newKeys(t, KeyOptions{Flavour: FlavourRelease}),
		"by hand":      handMade(t),
	}
	for name, tc := range map[string]struct {
		contract, attestation string // whose pair it is
		json                  string // keys.json
		want                  string // flavour, or
		refused               string // what the refusal says
	}{
		"dev":                                  {FlavourDev, FlavourDev, `{"flavour":"dev"}`, FlavourDev, ""},
		"release":                              {FlavourRelease, FlavourRelease, `{"flavour":"release"}`, FlavourRelease, ""},
		"dev without keys.json":                {FlavourDev, FlavourDev, absent, FlavourDev, ""},
		"made by hand":                         {"by hand", "by hand", absent, FlavourDev, ""},
		"made by hand for dev":                 {"by hand", "by hand", `{"flavour":"dev"}`, FlavourDev, ""},
		"made by hand for release":             {"by hand", "by hand", `{"flavour":"release"}`, FlavourRelease, ""},
		"release without keys.json":            {FlavourRelease, FlavourRelease, absent, "", "is for release images, but the folder is for dev"},
		"release edited to dev":                {FlavourRelease, FlavourRelease, `{"flavour":"dev"}`, "", "is for release images, but the folder is for dev"},
		"dev edited to release":                {FlavourDev, FlavourDev, `{"flavour":"release"}`, "", "is for dev images, but the folder is for release"},
		"a release contract key in a dev one":  {FlavourRelease, FlavourDev, `{"flavour":"dev"}`, "", "contract.crt is for release images"},
		"a release attestation key in dev":     {FlavourDev, FlavourRelease, `{"flavour":"dev"}`, "", "attestation.crt is for release images"},
		"a dev contract key in a release one":  {FlavourDev, FlavourRelease, `{"flavour":"release"}`, "", "contract.crt is for dev images"},
		"a dev attestation key in release":     {FlavourRelease, FlavourDev, `{"flavour":"release"}`, "", "attestation.crt is for dev images"},
		"a flavour of its own":                 {"by hand", "by hand", `{"flavour":"prod"}`, "", `must be "dev" or "release"`},
		"a flavour in capitals":                {"by hand", "by hand", `{"flavour":"Release"}`, "", `must be "dev" or "release"`},
		"an empty flavour":                     {"by hand", "by hand", `{"flavour":""}`, "", `must be "dev" or "release"`},
		"keys.json without one":                {"by hand", "by hand", `{}`, "", `must be "dev" or "release"`},
		"a misspelt key":                       {"by hand", "by hand", `{"flavor":"release"}`, "", "flavor"},
		"a further key":                        {"by hand", "by hand", `{"flavour":"dev","bits":4096}`, "", "bits"},
		"two objects":                          {"by hand", "by hand", `{"flavour":"dev"}{"flavour":"release"}`, "", "more than one"},
		"no JSON":                              {"by hand", "by hand", `flavour: release`, "", "keys.json"},
		"a list":                               {"by hand", "by hand", `["release"]`, "", "keys.json"},
		"an empty file":                        {"by hand", "by hand", ``, "", "keys.json"},
		"text behind the object":               {"by hand", "by hand", `{"flavour":"dev"} x`, "", "more than one"},
		"a flavour that is a number of things": {"by hand", "by hand", `{"flavour":["dev"]}`, "", "keys.json"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, from := range map[string]string{
				"contract.key": tc.contract, "contract.crt": tc.contract, "attestation.key": tc.attestation, "attestation.crt": tc.attestation,
			} {
				data, err := os.ReadFile(filepath.Join(made[from], file))
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, file), data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if tc.json != absent {
				if err := os.WriteFile(filepath.Join(dir, "keys.json"), []byte(tc.json), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			k, err := ReadKeys(dir)
			if tc.refused != "" {
				if err == nil || !strings.Contains(err.Error(), tc.refused) {
					t.Errorf("got %v, want %q", err, tc.refused)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer k.Wipe()
			if k.Flavour != tc.want {
				t.Errorf("flavour %q, want %q", k.Flavour, tc.want)
			}
		})
	}
}
