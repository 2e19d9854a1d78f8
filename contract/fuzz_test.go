package contract

import (
	"bytes"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"math"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"hpcr/agent/hpl"
)

// hostPath and hostDetail are what the agent lets through to the console.
var (
	hostPath   = regexp.MustCompile(`^(/[A-Za-z0-9_.#-]{1,64})*$`)
	hostDetail = regexp.MustCompile(`^[ -~]{1,400}$`)
)

func checkHostForm(t *testing.T, r *run) {
	t.Helper()
	for _, f := range r.findings {
		if !hostPath.MatchString(f.HostPath) || !hostDetail.MatchString(f.detail()) {
			t.Fatalf("not fit for the console: %q, %q", f.HostPath, f.detail())
		}
		if _, known := hpl.Lookup(f.Code); !known && f.Code != "" || f.Severity == SeverityError && !strings.HasSuffix(string(f.Code), "E") {
			t.Fatalf("code %q of severity %s", f.Code, f.Severity)
		}
	}
}

// Property: no panic, bounded time; guest and lint agree; no text of the
// contract reaches the console; what is accepted survives the wire.
func FuzzContract(f *testing.F) {
	base := baseSections(f)
	f.Add(base["workload"], base["env"], []byte("local-hostname: a\n"), []byte(nil))
	f.Add("type: workload\nplay: {}\n", "type: env\nlogging: {logRouter: {}}\n", []byte{}, readFile(f, vectors, "network", "static.yaml"))
	f.Add("type: workload\nvolumes: {canaryname: {seed: canaryseed1234567}}\n", "a: &a [*a]\n", []byte("canaryname: [\n"), []byte("network: {ethernets: {canaryname: {dhcp4: canary}}}"))
	f.Fuzz(func(t *testing.T, workload, env string, meta, network []byte) {
		if !utf8.ValidString(workload) || !utf8.ValidString(env) {
			return
		}
		sections := map[string]string{"workload": workload, "env": env}
		guest, lint := runSections(t, sections, false), runSections(t, sections, true)
		guest.can, lint.can = features{logRouter: true, play: true}, features{}
		guest.files.MetaData, guest.files.NetworkConfig = meta, network
		lint.files.MetaData, lint.files.NetworkConfig = meta, network
		v, err := guest.verdict()
		if rep := lint.lintReport(); rep.OK != (err == nil) {
			t.Fatalf("guest %v, lint %+v", err, rep)
		}
		checkHostForm(t, guest)
		checkHostForm(t, lint)
		for _, f := range lint.findings {
			if strings.Contains(f.HostPath+f.detail(), "canary") {
				t.Fatalf("the console would repeat the contract: %+v", f)
			}
		}
		if err != nil || v.Plan().Compose == nil {
			return
		}
		var wire bytes.Buffer
		if err := v.Encode(&wire); err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(wire.Bytes()); err != nil {
			t.Fatal(err)
		}
	})
}

// Property: no panic; a network-config is refused with a place in it and
// without its text, or each link has a name of the schema's and addresses that
// are ones.
func FuzzNetworkConfig(f *testing.F) {
	names, err := filepath.Glob(filepath.Join(vectors, "network", "*.yaml"))
	if err != nil || len(names) == 0 {
		f.Fatalf("no vectors: %v", err)
	}
	for _, name := range names {
		f.Add(readFile(f, name))
	}
	f.Add([]byte("network: {version: 2, ethernets: {canary: {dhcp4: true}}}"))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := newRun(nil, DefaultPolicy(false), now)
		if err != nil {
			t.Fatal(err)
		}
		r.files.NetworkConfig, r.plan = text, &Plan{}
		r.network()
		checkHostForm(t, r)
		for _, f := range r.findings {
			if f.Document != "network-config" || f.Line < 1 || strings.Contains(f.HostPath+f.detail(), "canary") {
				t.Fatalf("%+v", f)
			}
		}
		if r.failed || r.plan.Network == nil {
			return
		}
		for _, l := range r.plan.Network.Links {
			if !strings.HasPrefix(l.Name, "enc") {
				t.Errorf("link %q", l.Name)
			}
			for _, a := range l.Addresses {
				if !a.IsValid() {
					t.Errorf("address %v", a)
				}
			}
		}
	})
}

// Property: no panic; the contract's links are refused, or they pass the
// agent's own check.
func FuzzOwnNetwork(f *testing.F) {
	_, text, _ := strings.Cut(ownLinks, "network:")
	text, _, _ = strings.Cut(text, "cacerts:")
	f.Add([]byte(text))
	f.Add([]byte("ethernets: {enc1: {}}\nvlans: {vlan1: {id: 1, link: enc1, accept-ra: true}}"))
	f.Fuzz(func(t *testing.T, text []byte) {
		n, yerr := parseYAML("env", text)
		if yerr != nil || n == nil {
			return
		}
		r, err := newRun(nil, DefaultPolicy(false), now)
		if err != nil {
			t.Fatal(err)
		}
		r.plan = &Plan{}
		r.ownNetwork(root("env", "network", n))
		checkHostForm(t, r)
		if err := r.plan.Network.check(); !r.failed && err != nil {
			t.Errorf("the rules pass what the agent refuses: %v", err)
		}
	})
}

// Property: no panic; the whole envelope, tokens included.
func FuzzUserData(f *testing.F) {
	for _, name := range []string{"encrypted-both", "plain-map-form", "signed-cert-b64b64", "attestation-key-encrypted", "bad-not-yaml"} {
		f.Add(readFile(f, vectors, "contracts", name+".yaml"))
	}
	key := rsaKey(f, "encrypt.key")
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := newRun(nil, DefaultPolicy(false), now)
		if err != nil {
			t.Fatal(err)
		}
		r.keys = []*rsa.PrivateKey{key}
		r.can = features{logRouter: true, play: true}
		r.files.UserData = data
		if _, err := r.verdict(); err != nil && hpl.From(err).Code == "HPL11000E" {
			t.Fatalf("an internal error: %v", err)
		}
		checkHostForm(t, r)
	})
}

// Property: no panic; a plaintext only out of a whole token.
func FuzzToken(f *testing.F) {
	for _, name := range []string{"good-raw32", "good-raw32-lf-at-10", "good-contract-basic", "bad-two-parts", "bad-truncated-aes"} {
		f.Add(string(readFile(f, vectors, "tokens", name+".token")))
	}
	keys := []*rsa.PrivateKey{rsaKey(f, "encrypt.key")}
	f.Fuzz(func(t *testing.T, token string) {
		plain, err := OpenToken(token, keys, false, func([]byte) bool { return true })
		if err == nil && (!IsToken(token) || plain == nil) {
			t.Fatal("opened what is no token")
		}
	})
}

// Property: no panic on any salted stream; the plaintext is shorter than it.
func FuzzSalted(f *testing.F) {
	f.Add([]byte("password"), []byte("Salted__12345678ABCDEFGHIJKLMNOP"))
	f.Fuzz(func(t *testing.T, password, data []byte) {
		s := openWith(password, base64.StdEncoding.EncodeToString(data), false, func([]byte) bool { return true })
		if s != nil && s.Len() >= len(data) {
			t.Fatal("more came out than went in")
		}
	})
}

// Property: no panic, at most three rounds of base64.
func FuzzPEM(f *testing.F) {
	for _, name := range []string{"sign.pub", "sign-valid.crt", "sign-pkcs1.key", "sign-aes128.key"} {
		f.Add(string(readFile(f, vectors, "keys", name)))
		f.Add(encoded(f, name))
	}
	f.Add(`-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY----`)
	f.Fuzz(func(t *testing.T, text string) {
		raw, _, err := pemText(text)
		if err != nil {
			return
		}
		blocks := pemBlocks(raw)
		if _, err := certificates(blocks); err != nil {
			return
		}
		if _, _, err := rsaPublic(blocks); err != nil {
			return
		}
		if b := firstPrivate(blocks); b != nil {
			if _, err := privateKey(b); err != nil {
				return
			}
		}
	})
}

// Property: no panic; what the agent accepts from the child is sound, and
// says the same when it is written again.
func FuzzDecode(f *testing.F) {
	v, err := runSections(f, baseSections(f), false).verdict()
	if err != nil {
		f.Fatal(err)
	}
	var wire bytes.Buffer
	if err := v.Encode(&wire); err != nil {
		f.Fatal(err)
	}
	f.Add(wire.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		v, err := Decode(data)
		if err != nil {
			return
		}
		if err := v.Plan().check(); err != nil {
			t.Fatal(err)
		}
	})
}

// Property: no panic; an accepted policy has sane costs.
func FuzzPolicy(f *testing.F) {
	f.Add([]byte("requireSignature: true\nkdf: {memoryKiB: 65536, time: 3, parallel: 1}\nlogging: optional\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := ParsePolicy(text, false)
		if err == nil && (p.KDF.MemoryKiB < 8192 || p.KDF.Time < 1 || p.KDF.Parallel < 1 || p.MinMemoryMiB < 1) {
			t.Fatalf("%+v", p)
		}
	})
}

func TestDecodeRefuses(t *testing.T) {
	v, err := runSections(t, baseSections(t), false).verdict()
	if err != nil {
		t.Fatal(err)
	}
	var wire bytes.Buffer
	if err := v.Encode(&wire); err != nil {
		t.Fatal(err)
	}
	line, texts, _ := bytes.Cut(wire.Bytes(), []byte("\n"))
	change := func(key string, value any) []byte {
		var m map[string]any
		if err := json.Unmarshal(line, &m); err != nil {
			t.Fatal(err)
		}
		m[key] = value
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return append(append(b, '\n'), texts...)
	}
	volume := map[string]any{"name": "data", "path": "/workload/volumes/#1", "mount": "/mnt/data", "filesystem": "ext4", "mayCreate": true,
		"passphrases": []string{base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("a"), 64))}}
	vol := func(key string, value any) []byte {
		w := map[string]any{}
		for k, v := range volume {
			w[k] = v
		}
		w[key] = value
		return change("volumes", []any{w})
	}
	if _, err := Decode(vol("mount", "/mnt/x")); err != nil {
		t.Fatalf("the unchanged volume: %v", err)
	}
	tests := map[string][]byte{
		"nothing":               nil,
		"no JSON":               []byte("x"),
		"cut off":               wire.Bytes()[:wire.Len()-2],
		"something behind":      append(bytes.Clone(wire.Bytes()), "{}"...),
		"no text behind it":     append(bytes.Clone(line), '\n'),
		"text that is longer":   change("userDataMasked", len(texts)+1),
		"text below nothing":    change("userDataMasked", -1),
		"text with a remainder": change("workloadDataDecrypted", 0),
		"length that overflows": change("workloadDataDecrypted", math.MaxInt64),
		"no workload":           change("compose", nil),
		"host name with a line": change("hostname", "a\nb"),
		"negative tokens":       change("tokensDecrypted", -1),
		"log port 0":            change("syslog", map[string]any{"host": "a", "port": 0}),
		"interface eth0":        change("network", map[string]any{"links": []any{map[string]any{"name": "eth0"}}}),
		"no interface":          change("network", map[string]any{"links": []any{}}),
		"registry with a path":  change("auths", []any{map[string]any{"host": "a/b"}}),
		"registry not in form":  change("auths", []any{map[string]any{"host": dockerHub}}),
		"digest with a line":    change("digests", []any{map[string]any{"name": "a\nb", "sha256": strings.Repeat("0", 64)}}),
		"mount over /etc":       vol("mount", "/etc"),
		"mount that leaves":     vol("mount", "/mnt/../x"),
		"unknown file system":   vol("filesystem", "vfat"),
		"no passphrase":         vol("passphrases", nil),
		"short passphrase":      vol("passphrases", []string{"QUFB"}),
		"odd volume name":       vol("name", "../x"),
	}
	for name, data := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := Decode(data); err == nil {
				t.Error("accepted")
			}
		})
	}
	t.Run("too large", func(t *testing.T) {
		if _, err := Decode(append(bytes.Repeat([]byte(" "), MaxWire), wire.Bytes()...)); err == nil {
			t.Error("accepted")
		}
	})
}

// Property: no panic, bounded time and size; a template changes text alone,
// never the shape of its descriptor, and what comes out is read back the same.
func FuzzTemplate(f *testing.F) {
	f.Add("{{ .Env.A }}", "value")
	f.Add(`{{ range $k, $v := .Env }}{{ index $.Env $k }}{{ len $v }}{{ end }}`, "a: b\n- c")
	f.Add(`{{ if eq .Env.A "x" }}{{ with .Env }}{{ .A }}{{ end }}{{ end }}`, "{{ .Env.A }}")
	f.Add("{{ range 1000000000 }}{{ end }}", "")
	f.Fuzz(func(t *testing.T, text, value string) {
		if !utf8.ValidString(text) || !utf8.ValidString(value) {
			return
		}
		in := &node{kind: mapNode, tag: "!!map", keys: []*node{stringNode("k")}, vals: []*node{stringNode(text)}}
		r := rendering{run: &run{plan: &Plan{}}, env: map[string]string{"A": value}, unset: map[string]bool{}}
		out := r.fill(root("x", "workload", in))
		v := out.get("k")
		if len(out.keys) != 1 || !v.isString() || len(v.text) > maxRendered+len(text) {
			t.Fatalf("another shape: %+v", out)
		}
		checkHostForm(t, r.run)
		b, err := dump(out)
		if err != nil || len(b) > maxDocument {
			return
		}
		if back, yerr := parseYAML("play", b); yerr == nil && back.get("k").text != v.text && utf8.ValidString(v.text) {
			t.Fatalf("%q is read back as %q", v.text, back.get("k").text)
		}
	})
}
