package contract

import (
	"encoding/base64"
	"strings"
	"testing"

	"hpcr/agent/hpl"
)

// The attack that workload.x-hpcr.require is for: a host has a victim's
// encrypted workload and the signed env that belongs to it, and pairs the
// workload with an env of its own. The verdict falls before any rule of env:
// log host, registries and the rest of the stranger's env are not looked at.
func TestStrangersEnv(t *testing.T) {
	owner, stranger := encoded(t, "sign.pub"), encoded(t, "other.pub")
	workload := func(require string) string {
		return seal(t, "x-hpcr:\n  require:\n    "+strings.ReplaceAll(require, "\n", "\n    ")+"\n"+baseSections(t)["workload"])
	}
	pinned := workload("signingKeys: [" + owner + "]")
	genuine := seal(t, baseSections(t)["env"]+"signingKey: "+owner+"\n")
	signature := sign(t, rsaKey(t, "sign.key"), pinned+genuine)
	own := func(key string) string {
		env := strings.Replace(baseSections(t)["env"], "logs.example.com", "logs.host.example", 1)
		if key != "" {
			env += "signingKey: " + key + "\n"
		}
		return env
	}
	broken := "type: env\nlogging: [not a log target]\nsigningKey: " + stranger + "\n"
	byStranger := func(workload, env string) string { return sign(t, rsaKey(t, "other.key"), workload+env) }
	const at = "/workload/x-hpcr/require"
	tests := map[string]struct {
		workload, env, signature, attestationKey string
		code                                     hpl.Code
		path                                     string
	}{
		"the owner's own pair":                      {pinned, genuine, signature, "", "", ""},
		"an env without a signature":                {pinned, own(""), "", "", "HPL12004E", at},
		"an encrypted env without a signature":      {pinned, seal(t, own("")), "", "", "HPL12004E", at},
		"the owner's key named, no signature":       {pinned, own(owner), "", "", "HPL12004E", at},
		"the owner's signature over another env":    {pinned, own(owner), signature, "", "HPL12001E", "/envWorkloadSignature"},
		"an env signed by the host":                 {pinned, own(stranger), byStranger(pinned, own(stranger)), "", "HPL12001E", at + "/signingKeys"},
		"signed by the host, the owner's key named": {pinned, own(owner), byStranger(pinned, own(owner)), "", "HPL12001E", "/envWorkloadSignature"},
		"an env that breaks every rule, signed":     {pinned, broken, byStranger(pinned, broken), "", "HPL12001E", at + "/signingKeys"},
		"an env that breaks every rule, unsigned":   {pinned, broken, "", "", "HPL12004E", at},
		"a signature without a key":                 {pinned, own(""), signature, "", "HPL12004E", "/env/signingKey"},
		"a record key of the host beside its env":   {pinned, own(""), "", stranger, "HPL12004E", at},
		"a record key of the host, the owner's env": {pinned, genuine, signature, stranger, "", ""}, // the record is recorded as encrypted to it; it holds no secret
		"plain env where an encrypted one is asked": {workload("envEncrypted: true"), own(""), "", "", "HPL05001E", at + "/envEncrypted"},
		// What these two ask for a host can give as well: docs say so.
		"encrypted env, any author":   {workload("envEncrypted: true"), seal(t, own("")), "", "", "", ""},
		"signature asked, by any key": {workload("signature: true"), own(stranger), "-", "", "", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			sections := map[string]string{"workload": tt.workload, "env": tt.env}
			switch {
			case tt.signature == "-":
				sections["envWorkloadSignature"] = byStranger(tt.workload, tt.env)
			case tt.signature != "":
				sections["envWorkloadSignature"] = tt.signature
			}
			if tt.attestationKey != "" {
				sections["attestationPublicKey"] = tt.attestationKey
			}
			r := runSections(t, sections, false)
			r.keys = append(r.keys, rsaKey(t, "encrypt.key"))
			_, err := r.verdict()
			if tt.code == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if e := hpl.From(err); err == nil || e.Code != tt.code || e.Path != tt.path {
				t.Fatalf("got %v, want %s at %s", err, tt.code, tt.path)
			}
			if p := r.plan; p.Syslog != nil || p.Auths != nil || p.Env != nil || p.CACerts != nil || p.Volumes != nil || p.Compose != nil || p.Signed && tt.path != at+"/signingKeys" {
				t.Errorf("something of env was used: %+v", p)
			}
			for _, f := range r.findings {
				if strings.HasPrefix(f.Path, "/env/") && f.Path != "/env/signingKey" {
					t.Errorf("env was looked at: %+v", f)
				}
			}
			lint := runSections(t, sections, true)
			lint.keys = r.keys
			if rep := lint.lintReport(); rep.OK || lint.firstError().Code != tt.code || lint.firstError().HostPath != tt.path {
				t.Errorf("lint: %+v", rep.Findings)
			}
		})
	}
}

// A provider's conditions are worth what holds them: lint and guest say when
// that is little.
func TestWeakConditions(t *testing.T) {
	tests := map[string]struct {
		require string
		sealed  bool
		paths   []string
	}{
		"a key is named, encrypted": {"signingKeys: [{KEY}]", true, nil},
		"a certificate in PEM":      {"signingKeys:\n      - |\n        {PEM}", true, nil},
		"any key, encrypted":        {"signature: true", true, []string{"/workload/x-hpcr/require/signature"}},
		"a key is named, plain":     {"signingKeys: [{KEY}]", false, []string{"/workload/x-hpcr/require"}},
		"any key, plain":            {"signature: true", false, []string{"/workload/x-hpcr/require/signature", "/workload/x-hpcr/require"}},
		"nothing asked":             {"signature: false", false, nil},
		"an empty condition":        {"{}", false, nil},
	}
	pem := strings.ReplaceAll(strings.TrimSpace(string(readFile(t, vectors, "keys", "sign-valid.crt"))), "\n", "\n        ")
	fill := strings.NewReplacer("{KEY}", encoded(t, "sign.pub"), "{PEM}", pem)
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := signed(t, encoded(t, "sign.pub"))
			s["workload"] = "x-hpcr:\n  require:\n    " + fill.Replace(tt.require) + "\n" + s["workload"]
			if tt.sealed {
				s["workload"] = seal(t, s["workload"])
			}
			s["envWorkloadSignature"] = sign(t, rsaKey(t, "sign.key"), s["workload"]+s["env"])
			r := runSections(t, s, false)
			r.keys = append(r.keys, rsaKey(t, "encrypt.key"))
			v, err := r.verdict()
			if err != nil {
				t.Fatal(err)
			}
			var paths []string
			for _, w := range v.Plan().Warnings {
				paths = append(paths, w.Path)
			}
			if strings.Join(paths, " ") != strings.Join(tt.paths, " ") {
				t.Errorf("warnings at %v, want %v", paths, tt.paths)
			}
		})
	}
}

// Lint without a key enforces what it can see of a provider's conditions.
func TestConditionsWithoutAKey(t *testing.T) {
	s := signed(t, encoded(t, "other.pub"))
	s["workload"] = "x-hpcr: {require: {signingKeys: [" + encoded(t, "sign.pub") + "]}}\n" + s["workload"]
	s["env"] = seal(t, s["env"])
	if rep := runSections(t, s, true).lintReport(); !rep.OK {
		t.Errorf("%+v", rep.Findings)
	}
	delete(s, "envWorkloadSignature")
	lint := runSections(t, s, true)
	if rep := lint.lintReport(); rep.OK || lint.firstError().Code != "HPL12004E" {
		t.Errorf("%+v", rep.Findings)
	}
}

func TestCertificateOfAConditionIsItsKey(t *testing.T) {
	s := signed(t, encoded(t, "sign.pub"))
	twice := base64.StdEncoding.EncodeToString([]byte(encoded(t, "sign-expired.crt")))
	s["workload"] = "x-hpcr: {require: {signingKeys: [" + twice + "]}}\n" + s["workload"]
	s["envWorkloadSignature"] = sign(t, rsaKey(t, "sign.key"), s["workload"]+s["env"])
	if _, err := runSections(t, s, false).verdict(); err != nil {
		t.Errorf("the dates of a key that a condition names are nobody's business: %v", err)
	}
}
