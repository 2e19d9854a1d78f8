package contract

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
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

// laterIssues lists what the vectors want and this version refuses by name.
func laterIssue(r *run) hpl.Code {
	switch {
	case r.env.body.get("logging").get("logRouter").present():
		return schema
	case r.workload.body.get("play").present():
		return "HPL15002E"
	}
	return ""
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

// Every contract vector, by the guest's way and by lint's: with all features
// the verdict is the manifest's; with today's, what is missing is refused by
// name.
func TestContractVectors(t *testing.T) {
	for _, tt := range loadManifest(t).Contracts {
		t.Run(tt.Name, func(t *testing.T) {
			sum := sha256.Sum256(readFile(t, vectors, tt.File))
			if hex.EncodeToString(sum[:]) != tt.UserData {
				t.Fatal("the vector's file was changed")
			}
			guest := vectorRun(t, tt.File, features{logRouter: true, play: true})
			_, err := guest.verdict()
			if tt.Ours.Exit == 0 && err != nil {
				t.Fatalf("refused: %v", err)
			}
			if tt.Ours.Exit != 0 && (err == nil || hpl.From(err).Code != tt.Ours.Code) {
				t.Fatalf("got %v, want %s", err, tt.Ours.Code)
			}
			lint := vectorRun(t, tt.File, features{logRouter: true, play: true})
			lint.lint = true
			rep := lint.lintReport()
			if rep.OK != (tt.Ours.Exit == 0) {
				t.Errorf("lint says ok=%v: %+v", rep.OK, rep.Findings)
			}
			if f := lint.firstError(); f != nil && f.Code != tt.Ours.Code {
				t.Errorf("lint's first error is %s", f.Code)
			}
			warned := false
			for _, f := range rep.Findings {
				warned = warned || f.Severity == SeverityWarning
				if f.Severity == SeverityError && (f.Line == 0 || f.Fix == "") {
					t.Errorf("no place or no fix: %+v", f)
				}
			}
			if tt.Ours.Exit == 0 && warned != tt.Ours.Warning {
				t.Errorf("warning %v, want %v: %+v", warned, tt.Ours.Warning, rep.Findings)
			}
			if tt.Ours.Exit == 0 {
				if tt.Tokens != nil && guest.plan.TokensDecrypted != *tt.Tokens {
					t.Errorf("%d tokens decrypted, want %d", guest.plan.TokensDecrypted, *tt.Tokens)
				}
				for section, want := range tt.Sections {
					if got := digest(guest.plan, "contract:"+section); got != want {
						t.Errorf("digest of %s: %s, want %s", section, got, want)
					}
				}
			}
			today := vectorRun(t, tt.File, supported)
			_, err = today.verdict()
			want := tt.Ours.Code
			if later := laterIssue(guest); tt.Ours.Exit == 0 && later != "" {
				want = later
			}
			if (err == nil) != (want == "") {
				t.Fatalf("today: %v, want %q", err, want)
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
