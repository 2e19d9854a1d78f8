package contract

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hpcr/agent/hpl"
)

func TestParsePolicy(t *testing.T) {
	pub := string(readFile(t, vectors, "keys", "sign.pub"))
	release := Policy{Privileged: true, LoggingRequired: true, KDF: KDF{262144, 4, 2}, MinMemoryMiB: 512}
	with := func(change func(*Policy)) Policy {
		p := release
		change(&p)
		return p
	}
	tests := map[string]struct {
		text string
		dev  bool
		want Policy
	}{
		"nothing":                  {"", false, release},
		"only a comment":           {"# defaults\n", false, release},
		"nothing, dev":             {"", true, with(func(p *Policy) { p.LoggingRequired = false })},
		"logging optional":         {"logging: optional\n", false, with(func(p *Policy) { p.LoggingRequired = false })},
		"logging required, dev":    {"logging: required\n", true, release},
		"privileged refused":       {"privileged: refuse\n", false, with(func(p *Policy) { p.Privileged = false })},
		"privileged allowed":       {"privileged: allow\n", false, release},
		"cheap key derivation":     {"kdf: {memoryKiB: 65536}\n", false, with(func(p *Policy) { p.KDF.MemoryKiB = 65536 })},
		"any signing key":          {"signingKeys: any\n", false, release},
		"a signing key":            {"signingKeys:\n- |\n  " + strings.ReplaceAll(pub, "\n", "\n  "), false, with(func(p *Policy) { p.SigningKeys = [][]byte{[]byte(pub)} })},
		"a certificate as the key": {"signingKeys: [" + encoded(t, "sign-valid.crt") + "]", false, with(func(p *Policy) { p.SigningKeys = [][]byte{[]byte(pub)} })},
		"switches":                 {"requireEncryption: true\nrequireSignature: true\nstrictPassword: true\nacceptStrippedSignature: true\nprivileged: false\nminMemoryMiB: 1024\n", false, Policy{true, true, nil, true, true, false, true, KDF{262144, 4, 2}, 1024}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := ParsePolicy([]byte(tt.text), tt.dev)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestParsePolicyRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"unknown key":               "requireSignatures: true",
		"unknown key in kdf":        "kdf: {memory: 1}",
		"key twice":                 "privileged: true\nprivileged: false",
		"a list":                    "- privileged",
		"text for a switch":         `requireSignature: "true"`,
		"yes":                       "requireSignature: yes",
		"number for logging":        "logging: 1",
		"other word for logging":    "logging: sometimes",
		"other word for privileged": "privileged: sometimes",
		"number for privileged":     "privileged: 1",
		"no signing keys":           "signingKeys: []",
		"signing key that is no":    "signingKeys: [AAAA]",
		"too little memory":         "kdf: {memoryKiB: 1024}",
		"no time":                   "kdf: {time: 0}",
		"a fraction":                "minMemoryMiB: 512.5",
		"kdf that is text":          "kdf: low",
	} {
		t.Run(name, func(t *testing.T) {
			if p, err := ParsePolicy([]byte(text), false); err == nil || !strings.Contains(err.Error(), "policy") {
				t.Errorf("got %+v, %v", p, err)
			}
		})
	}
}

func TestParsePolicyNamesTheLine(t *testing.T) {
	for name, tt := range map[string]struct{ text, want string }{
		"a key":               {"# mine\nrequireSignature: true\nrequireSigning: true\n", "policy, line 3: requireSigning: "},
		"a key of kdf":        {"kdf:\n  time: 4\n  memory: 1\n", "policy, line 3: kdf: memory: "},
		"a value of kdf":      {"logging: optional\nkdf:\n  time: 4\n  parallel: 9\n", "policy, line 4: kdf: parallel: "},
		"one of several keys": {"signingKeys:\n- AAAA\n", "policy, line 2: signingKeys: "},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := ParsePolicy([]byte(tt.text), false); err == nil || !strings.HasPrefix(err.Error(), tt.want) {
				t.Errorf("got %v, want %s…", err, tt.want)
			}
		})
	}
}

// Attack: whoever builds the image writes a rule that no code reads. Claim:
// each field that judges a contract turns one that was accepted into one that
// is refused, or back. The two that judge the machine are tested where they
// act: KDF in disk and initramfs, MinMemoryMiB in a booted guest.
func TestEveryPolicyFieldIsEnforced(t *testing.T) {
	stripped := signed(t, encoded(t, "sign.pub"))
	stripped["envWorkloadSignature"] = sign(t, rsaKey(t, "sign.key"), strings.ReplaceAll(stripped["workload"]+stripped["env"], "\n", ""))
	logless := map[string]string{"workload": "type: workload\ncompose: {archive: " + encodedArchive(t) + "}\n", "env": "type: env\n"}
	cut := baseSections(t)
	cut["workload"] = sealWith(t, sealPassword(t, "0123456789abcdefghij\nrest"), []byte("0123456789abcdefghij"), []byte(cut["workload"]))
	powerful := baseSections(t)
	powerful["workload"] = "type: workload\ncompose: {archive: " + packCompose(t, "privileged: true") + "}\n"

	tests := map[string]struct {
		sections map[string]string
		lenient  func(*Policy)
		strict   func(*Policy)
		code     hpl.Code
	}{
		"RequireEncryption": {baseSections(t), nil, func(p *Policy) { p.RequireEncryption = true }, "HPL05001E"},
		"RequireSignature":  {baseSections(t), nil, func(p *Policy) { p.RequireSignature = true }, "HPL12004E"},
		"SigningKeys": {signed(t, encoded(t, "sign.pub")), nil, func(p *Policy) {
			p.SigningKeys = [][]byte{readFile(t, vectors, "keys", "other.pub")}
		}, "HPL12001E"},
		"StrictPassword":          {cut, nil, func(p *Policy) { p.StrictPassword = true }, "HPL11001E"},
		"AcceptStrippedSignature": {stripped, func(p *Policy) { p.AcceptStrippedSignature = true }, func(*Policy) {}, "HPL12001E"},
		"Privileged":              {powerful, nil, func(p *Policy) { p.Privileged = false }, "HPL06009E"},
		"LoggingRequired":         {logless, func(p *Policy) { p.LoggingRequired = false }, func(p *Policy) { p.LoggingRequired = true }, "HPL05001E"},
	}
	for _, f := range reflect.VisibleFields(reflect.TypeFor[Policy]()) {
		if f.Name == "KDF" || f.Name == "MinMemoryMiB" {
			continue
		}
		t.Run(f.Name, func(t *testing.T) {
			tt, ok := tests[f.Name]
			if !ok {
				t.Fatal("no contract shows that this field has an effect")
			}
			judge := func(change func(*Policy)) error {
				r := runSections(t, tt.sections, false)
				r.keys = []*rsa.PrivateKey{rsaKey(t, "encrypt.key")}
				r.policy = DefaultPolicy(false)
				if change != nil {
					change(&r.policy)
				}
				_, err := r.verdict()
				return err
			}
			if err := judge(tt.lenient); err != nil {
				t.Errorf("refused by the lenient policy: %v", err)
			}
			if err := judge(tt.strict); err == nil || hpl.From(err).Code != tt.code {
				t.Errorf("the strict policy gives %v, want %s", err, tt.code)
			}
		})
	}
}

func sealPassword(t *testing.T, password string) []byte {
	t.Helper()
	//lint:ignore SA1019 the only padding that a contract's readers know
	sealed, err := rsa.EncryptPKCS1v15(rand.Reader, &rsaKey(t, "encrypt.key").PublicKey, []byte(password))
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

// packCompose is an archive with one service that has the given line.
func packCompose(t *testing.T, line string) string {
	t.Helper()
	text := "services:\n  web:\n    image: example.com/app@sha256:" + strings.Repeat("0", 64) + "\n    " + line + "\n"
	var packed bytes.Buffer
	zw := gzip.NewWriter(&packed)
	tw := tar.NewWriter(zw)
	if err := tw.WriteHeader(&tar.Header{Name: "docker-compose.yaml", Mode: 0o644, Size: int64(len(text)), Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	if _, err := tw.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(tw.Close(), zw.Close()); err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(packed.Bytes())
}
