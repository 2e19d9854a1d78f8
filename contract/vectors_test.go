package contract

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"hpcr/agent/hpl"
	"hpcr/agent/secret"
)

type manifest struct {
	Tokens []struct {
		Name, File, Plain, Expect string
		RSA                       string `json:"rsa_plaintext_hex"`
		Password                  string `json:"effective_password_hex"`
		SHA256                    string `json:"plain_sha256"`
	}
	Contracts []struct {
		Name, File string
		UserData   string            `json:"sha256_user_data"`
		Sections   map[string]string `json:"section_sha256"`
		Tokens     *int
		Ours       struct {
			Exit    int
			Code    hpl.Code
			Warning bool
		}
	}
	Attestation []struct {
		Record, Encrypted, Signature string
		DecryptWith                  string `json:"decrypt_with"`
		VerifyWith                   string `json:"verify_with"`
	}
	LUKS []struct {
		Env           string `json:"env_seed"`
		Workload      string `json:"workload_seed"`
		EnvFirst      string `json:"passphrase_env_first"`
		WorkloadFirst string `json:"passphrase_workload_first"`
	} `json:"luks"`
}

const vectors = "testdata/vectors"

func readFile(t testing.TB, elem ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func loadManifest(t testing.TB) manifest {
	t.Helper()
	var m manifest
	if err := json.Unmarshal(readFile(t, vectors, "manifest.json"), &m); err != nil {
		t.Fatal(err)
	}
	return m
}

func keyFile(t testing.TB, name string) *secret.Secret {
	t.Helper()
	return secret.New(readFile(t, vectors, "keys", name))
}

func rsaKey(t testing.TB, name string) *rsa.PrivateKey {
	t.Helper()
	parsedKeys.Lock()
	defer parsedKeys.Unlock()
	k := parsedKeys.m[name]
	if k == nil {
		var err error
		if k, err = ParseContractKey(readFile(t, vectors, "keys", name)); err != nil {
			t.Fatal(err)
		}
		parsedKeys.m[name] = k
	}
	return k
}

// parsedKeys saves the checks of RSA keys, which take most of a test's time.
var parsedKeys = struct {
	sync.Mutex
	m map[string]*rsa.PrivateKey
}{m: map[string]*rsa.PrivateKey{}}

// now lies after the vectors were made and before sign-valid ends.
var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func TestTokenVectors(t *testing.T) {
	key, other := rsaKey(t, "encrypt.key"), rsaKey(t, "other.key")
	any := func([]byte) bool { return true }
	for _, tt := range loadManifest(t).Tokens {
		t.Run(tt.Name, func(t *testing.T) {
			token := string(readFile(t, vectors, tt.File))
			plain, err := OpenToken(token, []*rsa.PrivateKey{other, key}, false, any)
			if tt.Expect == "reject" {
				// The wrong-key vectors fit "other" by design of this test only
				// if they were made for it: judge them with the right key alone.
				if plain, err = OpenToken(token, []*rsa.PrivateKey{key}, false, isText); err == nil {
					t.Fatalf("opened: %q", plain.Bytes())
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			sum := sha256.Sum256(plain.Bytes())
			if hex.EncodeToString(sum[:]) != tt.SHA256 || !bytes.Equal(plain.Bytes(), readFile(t, vectors, tt.Plain)) {
				t.Errorf("got %q", plain.Bytes())
			}
			raw, err := hex.DecodeString(tt.RSA)
			if err != nil {
				t.Fatal(err)
			}
			if got := hex.EncodeToString(CutPassword(raw)); got != tt.Password {
				t.Errorf("password %s, want %s", got, tt.Password)
			}
			_, err = OpenToken(token, []*rsa.PrivateKey{key}, true, any)
			if cut := tt.RSA != tt.Password; (err != nil) != cut {
				t.Errorf("strict: %v, password cut: %v", err, cut)
			}
		})
	}
}

func vectorRun(t testing.TB, file string, can features) *run {
	t.Helper()
	r, err := newRun(nil, DefaultPolicy(false), now)
	if err != nil {
		t.Fatal(err)
	}
	r.keys = []*rsa.PrivateKey{rsaKey(t, "encrypt.key")}
	r.can = can
	r.files.UserData = readFile(t, vectors, file)
	return r
}

// Every contract vector has the manifest's verdict: in a guest that can do all
// that the rules know, in lint whatever the guest can do, and in lint without
// a key as far as it sees.
func TestContractVectors(t *testing.T) {
	for _, tt := range loadManifest(t).Contracts {
		t.Run(tt.Name, func(t *testing.T) {
			sum := sha256.Sum256(readFile(t, vectors, tt.File))
			if hex.EncodeToString(sum[:]) != tt.UserData {
				t.Fatal("the vector's file was changed")
			}
			guest := vectorRun(t, tt.File, features{logRouter: true, play: true})
			_, err := guest.verdict()
			if got := hpl.From(err); (err == nil) != (tt.Ours.Exit == 0) || err != nil && got.Code != tt.Ours.Code {
				t.Fatalf("guest: %v, want %q", err, tt.Ours.Code)
			}
			for name, can := range map[string]features{"today's": supported, "a full": {logRouter: true, play: true}} {
				lint := vectorRun(t, tt.File, can)
				lint.lint = true
				rep := lint.lintReport()
				var code hpl.Code
				if f := lint.firstError(); f != nil {
					code = f.Code
				}
				if rep.OK != (tt.Ours.Exit == 0) || code != tt.Ours.Code {
					t.Errorf("lint for %s guest: ok=%v, %q: %+v", name, rep.OK, code, rep.Findings)
				}
				warned := false
				for _, f := range rep.Findings {
					warned = warned || f.Severity == SeverityWarning
					if f.Severity == SeverityError && (f.Line == 0 || f.Fix == "") {
						t.Errorf("no place or no fix: %+v", f)
					}
				}
				if warned != tt.Ours.Warning {
					t.Errorf("lint for %s guest: warning %v, want %v: %+v", name, warned, tt.Ours.Warning, rep.Findings)
				}
			}
			if tt.Ours.Exit != 0 {
				return
			}
			if tt.Tokens != nil && guest.plan.TokensDecrypted != *tt.Tokens {
				t.Errorf("%d tokens decrypted, want %d", guest.plan.TokensDecrypted, *tt.Tokens)
			}
			for section, want := range tt.Sections {
				if got := digest(guest.plan, "contract:"+section); got != want {
					t.Errorf("digest of %s: %s, want %s", section, got, want)
				}
			}
		})
	}
}

// What the rules accept and this version's guest cannot do is refused by name
// in the guest, with nothing planned, and noted by lint.
func TestWhatTheGuestCannotDo(t *testing.T) {
	logRouter := baseSections(t)
	before, after, _ := strings.Cut(logRouter["env"], "  syslog:\n")
	_, after, _ = strings.Cut(after, "volumes:\n")
	logRouter["env"] = before + "  logRouter: {hostname: ingress.example.com, iamApiKey: key-of-iam}\nvolumes:\n" + after
	play := baseSections(t)
	play["workload"] = strings.Replace(play["workload"], "compose:\n", "play:\n", 1)
	play["workload"] = regexp.MustCompile(`archive: \S+`).ReplaceAllLiteralString(play["workload"], "archive: "+encodedVector(t, "play.tgz"))
	tests := map[string]struct {
		sections map[string]string
		all      features
		code     hpl.Code
		path     string
	}{
		"logRouter": {logRouter, features{logRouter: true}, "HPL05001E", "/env/logging/logRouter"},
		"play":      {play, features{play: true}, "HPL15002E", "/workload/play"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := runSections(t, tt.sections, false)
			r.can = features{}
			_, err := r.verdict()
			if e := hpl.From(err); err == nil || e.Code != tt.code || e.Path != tt.path || len(r.plan.Env) != 0 || r.written != nil {
				t.Errorf("a guest without it: %v", err)
			}
			r = runSections(t, tt.sections, false)
			r.can = tt.all
			if _, err := r.verdict(); err != nil {
				t.Errorf("a guest with it: %v", err)
			}
			lint := runSections(t, tt.sections, true)
			lint.can = features{}
			rep := lint.lintReport()
			if !rep.OK || len(rep.Findings) != 1 || rep.Findings[0].Severity != SeverityNote || rep.Findings[0].Path != tt.path || rep.Findings[0].Line == 0 {
				t.Errorf("lint: %+v", rep)
			}
		})
	}
}

func digest(p *Plan, name string) string {
	for _, d := range p.Digests {
		if d.Name == name {
			return d.SHA256
		}
	}
	return ""
}

func TestPassphraseVectors(t *testing.T) {
	for _, v := range loadManifest(t).LUKS {
		if got := string(VolumePassphrase([]byte(v.Env), []byte(v.Workload)).Bytes()); got != v.EnvFirst {
			t.Errorf("%q, %q: %s", v.Env, v.Workload, got)
		}
		if got := string(VolumePassphrase([]byte(v.Workload), []byte(v.Env)).Bytes()); got != v.WorkloadFirst {
			t.Errorf("%q, %q reversed: %s", v.Env, v.Workload, got)
		}
	}
}

// The lines of HPCR's record that the contract decides are ours; the token of
// an encrypted record opens, and the record's signature holds.
func TestAttestationVectors(t *testing.T) {
	for _, v := range loadManifest(t).Attestation {
		record := readFile(t, vectors, v.Record)
		plain, err := OpenToken(string(readFile(t, vectors, v.Encrypted)), []*rsa.PrivateKey{rsaKey(t, filepath.Base(v.DecryptWith))}, false, isText)
		if err != nil || !bytes.Equal(plain.Bytes(), record) {
			t.Errorf("the encrypted record: %v", err)
		}
		pub, _, err := rsaPublic(pemBlocks(readFile(t, vectors, v.VerifyWith)))
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(record)
		if err := rsa.VerifyPKCS1v15(pub, crypto.SHA256, sum[:], readFile(t, vectors, v.Signature)); err != nil {
			t.Error(err)
		}
		cidata := filepath.Join("attestation", "cidata")
		r := vectorRun(t, filepath.Join(cidata, "user-data"), features{logRouter: true})
		r.files.MetaData, r.files.VendorData = readFile(t, vectors, cidata, "meta-data"), readFile(t, vectors, cidata, "vendor-data")
		if _, err := r.verdict(); err != nil {
			t.Fatal(err)
		}
		for _, d := range r.plan.Digests {
			if line := d.SHA256 + " " + d.Name + "\n"; !bytes.Contains(record, []byte(line)) {
				t.Errorf("the record has no line %q", line)
			}
		}
		if len(r.plan.Digests) != 6 {
			t.Errorf("%d lines", len(r.plan.Digests))
		}
	}
}
