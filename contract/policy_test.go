package contract

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
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
		"unknown key":            "requireSignatures: true",
		"unknown key in kdf":     "kdf: {memory: 1}",
		"key twice":              "privileged: true\nprivileged: false",
		"a list":                 "- privileged",
		"text for a switch":      `requireSignature: "true"`,
		"yes":                    "requireSignature: yes",
		"number for logging":     "logging: 1",
		"other word for logging": "logging: sometimes",
		"no signing keys":        "signingKeys: []",
		"signing key that is no": "signingKeys: [AAAA]",
		"too little memory":      "kdf: {memoryKiB: 1024}",
		"no time":                "kdf: {time: 0}",
		"a fraction":             "minMemoryMiB: 512.5",
		"kdf that is text":       "kdf: low",
	} {
		t.Run(name, func(t *testing.T) {
			if p, err := ParsePolicy([]byte(text), false); err == nil || !strings.Contains(err.Error(), "policy") {
				t.Errorf("got %+v, %v", p, err)
			}
		})
	}
}
