package contract

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"hpcr/agent/hpl"
	"hpcr/agent/secret"
)

func sign(t testing.TB, key *rsa.PrivateKey, text string) string {
	t.Helper()
	sum := sha256.Sum256([]byte(text))
	b, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(b)
}

// signed is the base contract, in plain text, signed by sign.key.
func signed(t testing.TB, signingKey string) map[string]string {
	t.Helper()
	s := baseSections(t)
	s["env"] += "signingKey: " + signingKey + "\n"
	s["envWorkloadSignature"] = sign(t, rsaKey(t, "sign.key"), s["workload"]+s["env"])
	return s
}

func encoded(t testing.TB, name string) string {
	return base64.StdEncoding.EncodeToString(readFile(t, vectors, "keys", name))
}

func TestSignature(t *testing.T) {
	pub := encoded(t, "sign.pub")
	with := func(change func(map[string]string)) map[string]string {
		s := signed(t, pub)
		change(s)
		return s
	}
	resign := func(env, text string) func(map[string]string) {
		return func(s map[string]string) {
			s["env"] = strings.Replace(s["env"], "signingKey: "+pub, "signingKey: "+env, 1)
			s["envWorkloadSignature"] = sign(t, rsaKey(t, "sign.key"), s["workload"]+s["env"]+text)
		}
	}
	strip := strings.NewReplacer("\n", "", "\r", "")
	damaged := strings.Replace(string(readFile(t, vectors, "keys", "sign.pub")), "KEY-----\n", "KEY----", -1)
	damaged = strings.Replace(damaged, "BEGIN PUBLIC KEY----", "BEGIN PUBLIC KEY-----\n", 1)
	tests := map[string]struct {
		sections map[string]string
		policy   func(*Policy)
		code     hpl.Code
		path     string
		warnings int
	}{
		"base64 of a public key": {sections: signed(t, pub)},
		"signature in several lines": {sections: with(func(s map[string]string) {
			s["envWorkloadSignature"] = s["envWorkloadSignature"][:64] + "\n " + s["envWorkloadSignature"][64:]
		})},
		"base64 twice":                {sections: with(resign(base64.StdEncoding.EncodeToString([]byte(pub)), ""))},
		"escaped line ends":           {sections: with(resign(`"`+strings.ReplaceAll(string(readFile(t, vectors, "keys", "sign.pub")), "\n", `\r\n`)+`"`, ""))},
		"literal backslash-n":         {sections: with(resign(`'`+strings.ReplaceAll(string(readFile(t, vectors, "keys", "sign.pub")), "\n", `\n`)+`'`, "")), warnings: 1},
		"damaged trailer":             {sections: with(resign(base64.StdEncoding.EncodeToString([]byte(damaged)), "")), warnings: 1},
		"certificate":                 {sections: signed(t, encoded(t, "sign-valid.crt"))},
		"ended certificate":           {sections: signed(t, encoded(t, "sign-expired.crt")), code: "HPL12007E", path: "/env/signingKey"},
		"certificate of the future":   {sections: signed(t, encoded(t, "sign-future.crt"))}, // the guest's first clock proves no beginning
		"another key":                 {sections: signed(t, encoded(t, "other.pub")), code: "HPL12001E", path: "/envWorkloadSignature"},
		"no PEM":                      {sections: signed(t, "AAAA"), code: "HPL12003E", path: "/env/signingKey"},
		"a private key":               {sections: signed(t, encoded(t, "sign.key")), code: "HPL12003E", path: "/env/signingKey"},
		"signature that is no base64": {sections: with(func(s map[string]string) { s["envWorkloadSignature"] = "-" }), code: "HPL12003E", path: "/envWorkloadSignature"},
		"empty signature":             {sections: with(func(s map[string]string) { s["envWorkloadSignature"] = "" }), code: "HPL12003E", path: "/envWorkloadSignature"},
		"no signature":                {sections: with(func(s map[string]string) { delete(s, "envWorkloadSignature") }), code: "HPL12004E", path: "/envWorkloadSignature"},
		"no key":                      {sections: with(func(s map[string]string) { s["env"] = strings.Split(s["env"], "signingKey")[0] }), code: "HPL12004E", path: "/env/signingKey"},
		"env changed":                 {sections: with(func(s map[string]string) { s["env"] += "# x\n" }), code: "HPL12001E", path: "/envWorkloadSignature"},
		"workload changed":            {sections: with(func(s map[string]string) { s["workload"] += "\n" }), code: "HPL12001E", path: "/envWorkloadSignature"},
		"line end between": {sections: with(func(s map[string]string) {
			s["envWorkloadSignature"] = sign(t, rsaKey(t, "sign.key"), s["workload"]+"\n"+s["env"])
		}), code: "HPL12001E", path: "/envWorkloadSignature"},
		"stripped form, off": {sections: with(func(s map[string]string) {
			s["envWorkloadSignature"] = sign(t, rsaKey(t, "sign.key"), strip.Replace(s["workload"]+s["env"]))
		}), code: "HPL12001E", path: "/envWorkloadSignature"},
		"stripped form, allowed": {sections: with(func(s map[string]string) {
			s["envWorkloadSignature"] = sign(t, rsaKey(t, "sign.key"), strip.Replace(s["workload"]+s["env"]))
		}), policy: func(p *Policy) { p.AcceptStrippedSignature = true }, warnings: 1},
		"policy wants a signature":     {sections: baseSections(t), policy: func(p *Policy) { p.RequireSignature = true }, code: "HPL12004E", path: "/envWorkloadSignature"},
		"policy wants one of its keys": {sections: baseSections(t), policy: func(p *Policy) { p.SigningKeys = [][]byte{readFile(t, vectors, "keys", "sign.pub")} }, code: "HPL12004E", path: "/envWorkloadSignature"},
		"policy knows the key": {sections: signed(t, encoded(t, "sign-valid.crt")), policy: func(p *Policy) {
			p.SigningKeys = [][]byte{readFile(t, vectors, "keys", "other.pub"), readFile(t, vectors, "keys", "sign.pub")}
		}},
		"policy knows another key": {sections: signed(t, pub), policy: func(p *Policy) { p.SigningKeys = [][]byte{readFile(t, vectors, "keys", "other.pub")} }, code: "HPL12001E", path: "/env/signingKey"},
		"policy wants encryption":  {sections: baseSections(t), policy: func(p *Policy) { p.RequireEncryption = true }, code: "HPL05001E", path: "/workload"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := runSections(t, tt.sections, false)
			if tt.policy != nil {
				tt.policy(&r.policy)
			}
			v, err := r.verdict()
			if tt.code != "" {
				if err == nil || hpl.From(err).Code != tt.code || hpl.From(err).Path != tt.path {
					t.Fatalf("got %v, want %s at %s", err, tt.code, tt.path)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !v.Plan().Signed || len(v.Plan().Warnings) != tt.warnings {
				t.Errorf("signed %v, warnings %+v", v.Plan().Signed, v.Plan().Warnings)
			}
		})
	}
	future, err := runSections(t, signed(t, encoded(t, "sign-future.crt")), false).verdict()
	if err != nil {
		t.Fatal(err)
	}
	if err := future.CheckExpiry(now); err == nil {
		t.Error("a real clock proves that the certificate has not begun")
	}
	if runSections(t, signed(t, encoded(t, "sign-future.crt")), true).lintReport().OK {
		t.Error("lint accepts a certificate of the future")
	}
}

func TestMappingFormCannotBeSigned(t *testing.T) {
	data := "workload:\n  type: workload\n  compose: {archive: " + encodedArchive(t) + "}\nenv: |\n  type: env\n  signingKey: " +
		encoded(t, "sign.pub") + "\nenvWorkloadSignature: AAAA\n"
	r, err := newRun(nil, DefaultPolicy(true), now)
	if err != nil {
		t.Fatal(err)
	}
	r.files.UserData = []byte(data)
	if _, err = r.verdict(); err == nil || hpl.From(err).Code != "HPL12001E" {
		t.Errorf("got %v", err)
	}
}

func encodedArchive(t testing.TB) string {
	return base64.StdEncoding.EncodeToString(readFile(t, vectors, "archives", "compose-plain.tgz"))
}

func TestStrictPasswordPolicy(t *testing.T) {
	token := string(readFile(t, vectors, "tokens", "good-raw32-lf-at-10.token"))
	keys := []*rsa.PrivateKey{rsaKey(t, "encrypt.key")}
	if _, err := OpenToken(token, keys, false, isText); err != nil {
		t.Error(err)
	}
	if _, err := OpenToken(token, keys, true, isText); err == nil {
		t.Error("a cut password was accepted")
	}
}

// A home-made producer derives the key from all bytes, LF included.
func TestUncutPassword(t *testing.T) {
	key := rsaKey(t, "encrypt.key")
	password := []byte("0123456789\nabcdef")
	//lint:ignore SA1019 the only padding that a contract's readers know
	sealed, err := rsa.EncryptPKCS1v15(rand.Reader, &key.PublicKey, password)
	if err != nil {
		t.Fatal(err)
	}
	// openssl cannot be given such a password; our own Seal's steps can.
	token := sealWith(t, sealed, password, []byte("type: workload\n"))
	plain, err := OpenToken(token, []*rsa.PrivateKey{key}, false, isText)
	if err != nil || string(plain.Bytes()) != "type: workload\n" {
		t.Fatalf("got %v", err)
	}
	if _, err := OpenToken(sealWith(t, sealed, password, []byte("\xff\xfe")), []*rsa.PrivateKey{key}, false, func([]byte) bool { return true }); err == nil {
		t.Error("the second try takes what is no text")
	}
}

func TestNestedTokens(t *testing.T) {
	s := baseSections(t)
	s["workload"] = strings.Replace(s["workload"], "archive: "+encodedArchive(t), "archive: "+seal(t, encodedArchive(t)), 1)
	s["workload"] = strings.Replace(s["workload"], "A: w", "A: "+seal(t, "from a token")+"\n  B: "+sealFor(t, "other.key", "x"), 1)
	r := runSections(t, s, false)
	r.keys = []*rsa.PrivateKey{rsaKey(t, "encrypt.key")}
	v, err := r.verdict()
	if err != nil {
		t.Fatal(err)
	}
	p := v.Plan()
	if p.TokensDecrypted != 2 || p.TokensIgnored != 1 {
		t.Errorf("%d decrypted, %d ignored", p.TokensDecrypted, p.TokensIgnored)
	}
	if a := p.Env[0]; a.Name != "A" || string(a.Value.Bytes()) != "from a token" {
		t.Errorf("A = %q", a.Value.Bytes())
	}
	if b := p.Env[1]; !strings.HasPrefix(string(b.Value.Bytes()), PrefixCCRT) {
		t.Errorf("B = %q", b.Value.Bytes())
	}
	opened, err := Open(userData(t, s), []*secret.Secret{keyFile(t, "encrypt.key")})
	if err != nil {
		t.Fatal(err)
	}
	if text := string(opened.UserData.Bytes()); !strings.Contains(text, PrefixHPCR) || !strings.Contains(text, "envseed-ABCDEFGHIJKLMNOP") {
		t.Error("contract open replaces only the top level's tokens, and masks nothing")
	}
}

func TestAttestationKey(t *testing.T) {
	pub := string(readFile(t, vectors, "keys", "attest-user.pub"))
	tests := map[string]struct {
		key  string
		code hpl.Code
	}{
		"PEM":             {pub, ""},
		"base64":          {base64.StdEncoding.EncodeToString([]byte(pub)), ""},
		"token of PEM":    {seal(t, pub), ""},
		"token of base64": {seal(t, base64.StdEncoding.EncodeToString([]byte(pub))), ""},
		"foreign token":   {sealFor(t, "other.key", pub), "HPL11001E"},
		"text":            {"no key", "HPL11002E"},
		"token of text":   {seal(t, "no key"), "HPL11002E"},
		"certificate":     {string(readFile(t, vectors, "keys", "ca.crt")), "HPL11002E"},
		"private key":     {string(readFile(t, vectors, "keys", "attest-user.key")), "HPL11002E"},
		"empty":           {"", "HPL11002E"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := baseSections(t)
			s["attestationPublicKey"] = tt.key
			r := runSections(t, s, false)
			r.keys = []*rsa.PrivateKey{rsaKey(t, "encrypt.key")}
			v, err := r.verdict()
			if tt.code != "" {
				if err == nil || hpl.From(err).Code != tt.code || hpl.From(err).Path != "/attestationPublicKey" {
					t.Fatalf("got %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if string(v.Plan().AttestationPublicKey) != pub {
				t.Errorf("got %s", v.Plan().AttestationPublicKey)
			}
			sum := sha256.Sum256([]byte(tt.key))
			if got := digest(v.Plan(), "contract:attestationPublicKey"); got != hexString(sum[:]) {
				t.Errorf("digest %s is not of the raw scalar", got)
			}
		})
	}
}

func TestVolumePlan(t *testing.T) {
	s := baseSections(t)
	s["env"] = strings.Replace(s["env"], "seed: envseed-QRSTUVWXYZABCDEF", "seed: envseed-QRSTUVWXYZABCDEF\n    previousSeed: old", 1)
	s["env"] = strings.Replace(s["env"], "seed: envseed-ABCDEFGHIJKLMNOP", "seed: tiny", 1)
	v, err := runSections(t, s, false).verdict()
	if err != nil {
		t.Fatal(err)
	}
	vols := v.Plan().Volumes
	if len(vols) != 2 || vols[0].Name != "data" || vols[0].MayCreate || !vols[1].MayCreate || vols[1].Filesystem != "ext4" || vols[1].Path != "/workload/volumes/#2" {
		t.Fatalf("%+v", vols)
	}
	const e, pe, w, pw = "envseed-QRSTUVWXYZABCDEF", "old", "workloadseed-9876543210", "workloadseed-0000000000"
	for what, tt := range map[string]struct {
		got  []*secret.Secret
		want []string
	}{
		"current":  {vols[1].Passphrases, []string{e + w, w + e}},
		"previous": {vols[1].Previous, []string{pe + pw, e + pw, pe + w, pw + pe, pw + e, w + pe}},
	} {
		if len(tt.got) != len(tt.want) {
			t.Fatalf("%s: %d passphrases", what, len(tt.got))
		}
		for i, p := range tt.got {
			sum := sha256.Sum256([]byte(tt.want[i]))
			if string(p.Bytes()) != hexString(sum[:]) {
				t.Errorf("%s passphrase %d is not of %q", what, i, tt.want[i])
			}
		}
	}
	if n, m := len(vols[0].Passphrases), len(vols[0].Previous); n != 2 || m != 0 {
		t.Errorf("%d and %d passphrases without rolling", n, m)
	}
}

func TestVolumeDemands(t *testing.T) {
	s := baseSections(t)
	s["workload"] = "x-hpcr:\n  volumes:\n    logs: {existing: true, minGeneration: 7}\n    data: {integrity: true}\n" + s["workload"]
	v, err := runSections(t, s, false).verdict()
	if err != nil {
		t.Fatal(err)
	}
	data, logs := v.Plan().Volumes[0], v.Plan().Volumes[1]
	if data.Existing || !data.Integrity || data.MinGeneration != 0 || !logs.Existing || logs.Integrity || logs.MinGeneration != 7 {
		t.Errorf("data %+v, logs %+v", data, logs)
	}
	var wire bytes.Buffer
	if err := v.Encode(&wire); err != nil {
		t.Fatal(err)
	}
	back, err := Decode(wire.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if got := back.Plan().Volumes[1]; !got.Existing || got.MinGeneration != 7 || !back.Plan().Volumes[0].Integrity {
		t.Errorf("after the way to the agent: %+v", got)
	}
}

func TestLintWithoutKeys(t *testing.T) {
	s := baseSections(t)
	s["workload"], s["env"] = seal(t, s["workload"]), seal(t, s["env"])
	rep, err := Lint(LintInput{UserData: userData(t, s), Policy: DefaultPolicy(false), Now: now})
	if err != nil {
		t.Fatal(err)
	}
	if !rep.OK || len(rep.Findings) != 2 {
		t.Errorf("%+v", rep)
	}
	if _, err := Lint(LintInput{Keys: []*secret.Secret{secret.FromString("x")}}); err == nil {
		t.Error("a key that is none was accepted")
	}
}

func TestDevNeedsNoLogging(t *testing.T) {
	s := baseSections(t)
	s["env"] = "type: env\nvolumes:" + strings.Split(strings.Split(s["env"], "volumes:")[1], "cacerts:")[0]
	r := runSections(t, s, false)
	r.policy = DefaultPolicy(true)
	v, err := r.verdict()
	if err != nil {
		t.Fatal(err)
	}
	if v.Plan().Syslog != nil || len(v.Plan().Warnings) != 1 || v.Plan().Warnings[0].Code != "HPL01002W" {
		t.Errorf("%+v", v.Plan().Warnings)
	}
}

// time.Time{} is what a guest without a clock passes.
func TestNoClock(t *testing.T) {
	r := runSections(t, signed(t, encoded(t, "sign-valid.crt")), false)
	r.now = time.Time{}
	if _, err := r.verdict(); err != nil {
		t.Error(err)
	}
}
