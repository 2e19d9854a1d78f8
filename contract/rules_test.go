package contract

import (
	"encoding/base64"
	"strings"
	"testing"

	"hpcr/agent/hpl"
)

// baseSections are a good contract in block style, one rule a line.
func baseSections(t testing.TB) map[string]string {
	t.Helper()
	b64 := func(elem ...string) string {
		return base64.StdEncoding.EncodeToString(readFile(t, append([]string{vectors}, elem...)...))
	}
	// An elliptic key: checking RSA keys costs a test most of its time.
	client := func(name string) string {
		return base64.StdEncoding.EncodeToString(readFile(t, "testdata/syslog", name))
	}
	return map[string]string{
		"workload": `type: workload
auths:
  registry.example.com:5000:
    username: puller
    password: work:word
compose:
  archive: ` + b64("archives", "compose-plain.tgz") + `
images:
  rhs:
    registry.example.com/team/web:1.0.0:
      publicKey: LS0tLS1CRUdJTg==
volumes:
  data:
    mount: /mnt/data
    filesystem: ext4
    seed: workloadseed-0123456789
  logs:
    mount: /mnt/logs
    seed: workloadseed-9876543210
    previousSeed: workloadseed-0000000000
env:
  A: w
  GREETING: hello
  FROM_ENV: e
`,
		"env": `type: env
auths:
  10.0.2.2:5000:
    username: deployer
    password: abc
logging:
  syslog:
    hostname: logs.example.com
    port: 6514
    server: ` + b64("keys", "ca.crt") + `
    cert: ` + client("client.crt") + `
    key: ` + client("client.key") + `
volumes:
  data:
    seed: envseed-ABCDEFGHIJKLMNOP
  logs:
    seed: envseed-QRSTUVWXYZABCDEF
cacerts:
  - certificate: ` + b64("keys", "ca.crt") + `
env:
  C: x
`,
	}
}

func runSections(t testing.TB, sections map[string]string, lint bool) *run {
	t.Helper()
	r, err := newRun(nil, DefaultPolicy(false), now)
	if err != nil {
		t.Fatal(err)
	}
	r.lint = lint
	r.files.UserData = userData(t, sections)
	return r
}

func TestBaseSectionsAreGood(t *testing.T) {
	r := runSections(t, baseSections(t), true)
	if rep := r.lintReport(); !rep.OK || len(rep.Findings) != 0 {
		t.Fatalf("%+v", rep.Findings)
	}
}

// badContracts each break one rule of the base: replace old by new in the
// section. host is the path for the console; path "" means the same.
var badContracts = map[string]struct {
	section, old, new string
	code              hpl.Code
	host, path        string
}{
	// Sections and their kind.
	"workload of type env":       {"workload", "type: workload", "type: env", "HPL05001E", "/workload/type", ""},
	"workload without a type":    {"workload", "type: workload\n", "", "HPL05001E", "/workload/type", ""},
	"type that is a list":        {"workload", "type: workload", "type: [workload]", "HPL05001E", "/workload/type", ""},
	"env without a type":         {"env", "type: env\n", "", "HPL05001E", "/env/type", ""},
	"two kinds of workload":      {"workload", "images:", "confidential-containers: {}\nimages:", "HPL05001E", "/workload", ""},
	"duplicate key":              {"workload", "images:", "compose: {}\nimages:", "HPL05000E", "/workload", ""},
	"alias bomb":                 {"workload", "images:", "x: &a [1,1,1,1,1,1,1,1]\ny: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nz: &c [*b,*b,*b,*b,*b,*b,*b,*b]\nw: &d [*c,*c,*c,*c,*c,*c,*c,*c]\nv: &e [*d,*d,*d,*d,*d,*d,*d,*d]\nu: [*e,*e,*e,*e,*e,*e,*e,*e]\nimages:", "HPL05000E", "/workload", ""},
	"alias of itself":            {"workload", "images:", "x: &a [*a]\nimages:", "HPL05000E", "/workload", ""},
	"deep nesting":               {"workload", "images:", "x: " + strings.Repeat("[", 70) + strings.Repeat("]", 70) + "\nimages:", "HPL05000E", "/workload", ""},
	"key that is a list":         {"workload", "images:", "[a, b]: c\nimages:", "HPL05000E", "/workload", ""},
	"not YAML":                   {"workload", "images:", "images: [", "HPL05000E", "/workload", ""},
	"two documents in a section": {"workload", "images:", "---\nimages:", "HPL05000E", "/workload", ""},

	// compose.
	"compose without an archive":   {"workload", "  archive:", "  archives:", "HPL05001E", "/workload/compose/#1", "/workload/compose/archives"},
	"compose with a further key":   {"workload", "compose:\n", "compose:\n  build: x\n", "HPL05001E", "/workload/compose/#1", "/workload/compose/build"},
	"compose that is text":         {"workload", "  archive: ", "  ", "HPL05001E", "/workload/compose", ""},
	"archive with a dot":           {"workload", "archive: H4s", "archive: .H4s", "HPL05001E", "/workload/compose/archive", ""},
	"archive that is not base64":   {"workload", "archive: H4s", "archive: H4s-", "HPL06006E", "/workload/compose/archive", ""},
	"archive that is a list":       {"workload", "  archive: ", "  archive: []\n  # ", "HPL05001E", "/workload/compose/archive", ""},
	"archive of another key":       {"workload", "archive: H4s", "archive: hyper-protect-basic.AAAA.AAAA#", "HPL05001E", "/workload/compose/archive", ""},
	"archive that is no gzip":      {"workload", "archive: H4sI", "archive: AAAA", "HPL06006E", "/workload/compose/archive", ""},
	"archive of three characters":  {"workload", "archive: H4s", "archive: abc # ", "HPL05001E", "/workload/compose/archive", ""},
	"dct":                          {"workload", "images:", "images:\n  dct: {}", "HPL05001E", "/workload/images/dct", ""},
	"further key in images":        {"workload", "images:", "images:\n  cosign: {}", "HPL05001E", "/workload/images/#1", "/workload/images/cosign"},
	"rhs without a dotted host":    {"workload", "registry.example.com/team/web:1.0.0", "localhost/team/web:1.0.0", "HPL05001E", "/workload/images/rhs/#1", "/workload/images/rhs/localhost~1team~1web:1.0.0"},
	"rhs with a port":              {"workload", "registry.example.com/team/web:1.0.0", "registry.example.com:5/team/web", "HPL05001E", "/workload/images/rhs/#1", "/workload/images/rhs/registry.example.com:5~1team~1web"},
	"rhs without a key":            {"workload", "publicKey", "publicKeys", "HPL05001E", "/workload/images/rhs/#1/#1", "/workload/images/rhs/registry.example.com~1team~1web:1.0.0/publicKeys"},
	"rhs with a key in no base64":  {"workload", "LS0tLS1CRUdJTg==", "pgp", "HPL05001E", "/workload/images/rhs/#1/publicKey", "/workload/images/rhs/registry.example.com~1team~1web:1.0.0/publicKey"},
	"workload key under x-hpcr":    {"workload", "images:", "x-hpcr: {required: {signature: true}}\nimages:", "HPL05001E", "/workload/x-hpcr/#1", "/workload/x-hpcr/required"},
	"env key under x-hpcr":         {"env", "cacerts:", "x-hpcr: {dns: {}}\ncacerts:", "HPL05001E", "/env/x-hpcr/dns", ""},
	"confidential-containers":      {"env", "cacerts:", "confidential-containers: {}\ncacerts:", "HPL05001E", "/env/confidential-containers", ""},
	"crypto-pt":                    {"env", "cacerts:", "crypto-pt: {lock: true}\ncacerts:", "HPL05001E", "/env/crypto-pt", ""},
	"host-attestation":             {"env", "cacerts:", "host-attestation: {}\ncacerts:", "HPL05001E", "/env/host-attestation", ""},
	"signingKey that is a mapping": {"env", "cacerts:", "signingKey: {}\ncacerts:", "HPL05001E", "/env/signingKey", ""},

	// auths.
	"registry with an underscore":     {"workload", "registry.example.com:5000", "regi_stry:5000", "HPL05001E", "/workload/auths/#1", "/workload/auths/regi_stry:5000"},
	"registry that begins by a digit": {"workload", "registry.example.com:5000", "1password.example.com", "HPL05001E", "/workload/auths/#1", "/workload/auths/1password.example.com"},
	"registry with a path":            {"workload", "registry.example.com:5000", "registry.example.com/team", "HPL05001E", "/workload/auths/#1", "/workload/auths/registry.example.com~1team"},
	"registry with port 65536":        {"workload", "registry.example.com:5000", "registry.example.com:65536", "HPL05001E", "/workload/auths/#1", "/workload/auths/registry.example.com:65536"},
	"registry 300.0.0.1":              {"env", "10.0.2.2:5000", "300.0.0.1", "HPL05001E", "/env/auths/#1", "/env/auths/300.0.0.1"},
	"another URL of Docker Hub":       {"env", "10.0.2.2:5000", "https://index.docker.io/v2/", "HPL05001E", "/env/auths/#1", "/env/auths/https:~1~1index.docker.io~1v2~1"},
	"password of two characters":      {"env", "password: abc", "password: ab", "HPL05001E", "/env/auths/#1/password", "/env/auths/10.0.2.2:5000/password"},
	"password that is a number":       {"env", "password: abc", "password: 12345", "HPL05001E", "/env/auths/#1/password", "/env/auths/10.0.2.2:5000/password"},
	"no user name":                    {"env", "    username: deployer\n", "", "HPL05001E", "/env/auths/#1/username", "/env/auths/10.0.2.2:5000/username"},
	"insecure":                        {"env", "    password: abc", "    insecure: true\n    password: abc", "HPL05001E", "/env/auths/#1/#2", "/env/auths/10.0.2.2:5000/insecure"},
	"auths that are a list":           {"workload", "auths:\n  registry.example.com:5000:\n    username: puller\n    password: work:word\n", "auths: []\n", "HPL05001E", "/workload/auths", ""},

	// env.
	"number as a variable":      {"workload", "A: w", "A: 5", "HPL05001E", "/workload/env/#1", "/workload/env/A"},
	"boolean as a variable":     {"env", "C: x", "C: true", "HPL05001E", "/env/env/#1", "/env/env/C"},
	"nothing as a variable":     {"env", "C: x", "C:", "HPL05001E", "/env/env/#1", "/env/env/C"},
	"mapping as a variable":     {"env", "C: x", "C: {}", "HPL05001E", "/env/env/#1", "/env/env/C"},
	"variable with a dash":      {"env", "C: x", "C-D: x", "HPL05001E", "/env/env/#1", "/env/env/C-D"},
	"variable that is a digit":  {"env", "C: x", "1C: x", "HPL05001E", "/env/env/#1", "/env/env/1C"},
	"variable with a NUL":       {"env", "C: x", `C: "a\0b"`, "HPL05001E", "/env/env/#1", "/env/env/C"},
	"env that is text":          {"env", "env:\n  C: x", "env: C=x", "HPL05001E", "/env/env", ""},
	"second of three variables": {"env", "C: x", "B: a\n  C: 1\n  D: b", "HPL05001E", "/env/env/#2", "/env/env/C"},

	// volumes.
	"volume key with a capital":       {"workload", "  data:\n    mount", "  Data:\n    mount", "HPL05001E", "/workload/volumes/#1", "/workload/volumes/Data"},
	"volume with a further key":       {"workload", "filesystem: ext4", "label: a", "HPL05001E", "/workload/volumes/#1/#2", "/workload/volumes/data/label"},
	"volume that is text":             {"env", "  data:\n    seed: envseed-ABCDEFGHIJKLMNOP", "  data: envseed-ABCDEFGHIJKLMNOP", "HPL05001E", "/env/volumes/#1", "/env/volumes/data"},
	"file system zfs":                 {"workload", "filesystem: ext4", "filesystem: zfs", "HPL05001E", "/workload/volumes/#1/filesystem", "/workload/volumes/data/filesystem"},
	"relative mount":                  {"workload", "mount: /mnt/data", "mount: mnt/data", "HPL05001E", "/workload/volumes/#1/mount", "/workload/volumes/data/mount"},
	"mount with two slashes":          {"workload", "mount: /mnt/data", "mount: /mnt//data", "HPL05001E", "/workload/volumes/#1/mount", "/workload/volumes/data/mount"},
	"mount with dots":                 {"workload", "mount: /mnt/data", "mount: /mnt/../etc", "HPL05001E", "/workload/volumes/#1/mount", "/workload/volumes/data/mount"},
	"mount that ends in a slash":      {"workload", "mount: /mnt/data", "mount: /mnt/data/", "HPL05001E", "/workload/volumes/#1/mount", "/workload/volumes/data/mount"},
	"mount at the root":               {"workload", "mount: /mnt/data", "mount: /", "HPL05001E", "/workload/volumes/#1/mount", "/workload/volumes/data/mount"},
	"mount over /proc":                {"workload", "mount: /mnt/data", "mount: /proc/x", "HPL07002E", "/workload/volumes/#1/mount", "/workload/volumes/data/mount"},
	"mount over the compose folder":   {"workload", "mount: /mnt/data", "mount: /data1", "HPL07002E", "/workload/volumes/#1/mount", "/workload/volumes/data/mount"},
	"mount above /var/hyperprotect":   {"workload", "mount: /mnt/data", "mount: /var", "HPL07002E", "/workload/volumes/#1/mount", "/workload/volumes/data/mount"},
	"mount that is used twice":        {"workload", "mount: /mnt/logs", "mount: /mnt/data", "HPL05001E", "/workload/volumes/#2/mount", "/workload/volumes/logs/mount"},
	"no seed in workload":             {"workload", "    seed: workloadseed-0123456789\n", "", "HPL05001E", "/workload/volumes/#1/seed", "/workload/volumes/data/seed"},
	"no seed in env":                  {"env", "    seed: envseed-ABCDEFGHIJKLMNOP", "    previousSeed: envseed-ABCDEFGHIJKLMNOP", "HPL05001E", "/env/volumes/#1/seed", "/env/volumes/data/seed"},
	"seed of two characters":          {"env", "seed: envseed-ABCDEFGHIJKLMNOP", "seed: ab", "HPL05001E", "/env/volumes/#1/seed", "/env/volumes/data/seed"},
	"seed that is a number":           {"env", "seed: envseed-ABCDEFGHIJKLMNOP", "seed: 123456789012345678", "HPL05001E", "/env/volumes/#1/seed", "/env/volumes/data/seed"},
	"previous seed of two characters": {"workload", "previousSeed: workloadseed-0000000000", "previousSeed: ab", "HPL05001E", "/workload/volumes/#2/previousSeed", "/workload/volumes/logs/previousSeed"},
	"volume missing in env":           {"env", "  logs:\n    seed: envseed-QRSTUVWXYZABCDEF\n", "", "HPL07015E", "/workload/volumes/#2", "/workload/volumes/logs"},
	"volume missing in workload":      {"env", "  logs:", "  more:\n    seed: envseed-QRSTUVWXYZABCDEF\n  logs:", "HPL07015E", "/env/volumes/#2", "/env/volumes/more"},
	"kms":                             {"env", "  data:\n", "  data:\n    kms: []\n", "HPL05001E", "/env/volumes/#1/kms", "/env/volumes/data/kms"},
	"kmsTimeout":                      {"env", "  data:\n", "  data:\n    kmsTimeout: 10\n", "HPL05001E", "/env/volumes/#1/kmsTimeout", "/env/volumes/data/kmsTimeout"},
	"grep11":                          {"env", "  data:\n", "  data:\n    grep11: {}\n", "HPL05001E", "/env/volumes/#1/grep11", "/env/volumes/data/grep11"},
	"uv-secret-id":                    {"env", "seed: envseed-ABCDEFGHIJKLMNOP", "uv-secret-id: index-1", "HPL05001E", "/env/volumes/#1/uv-secret-id", "/env/volumes/data/uv-secret-id"},
	"volumeID":                        {"env", "  data:\n", "  data:\n    volumeID: abc\n", "HPL05001E", "/env/volumes/#1/volumeID", "/env/volumes/data/volumeID"},
	"apiKey":                          {"env", "  data:\n", "  data:\n    apiKey: 0123456789\n", "HPL05001E", "/env/volumes/#1/apiKey", "/env/volumes/data/apiKey"},

	// logging.
	"no logging":                    {"env", "logging:\n  syslog:", "loggin:\n  syslog:", "HPL05001E", "/env/logging", ""},
	"logging without a target":      {"env", "  syslog:", "  syslogs:", "HPL05001E", "/env/logging", ""},
	"two targets":                   {"env", "  syslog:\n", "  logRouter: {}\n  syslog:\n", "HPL05001E", "/env/logging", ""},
	"logRouter without its key":     {"env", "  syslog:\n", "  logRouter: {hostname: ingress.example.com}\n  leftover:\n", "HPL05001E", "/env/logging/logRouter/iamApiKey", ""},
	"logDNA":                        {"env", "  syslog:\n", "  logDNA:\n", "HPL05001E", "/env/logging/logDNA", ""},
	"syslog with a further key":     {"env", "    port: 6514", "    tag: x\n    port: 6514", "HPL05001E", "/env/logging/syslog/#2", "/env/logging/syslog/tag"},
	"no log host":                   {"env", "    hostname: logs.example.com\n", "", "HPL05001E", "/env/logging/syslog/hostname", ""},
	"log host with a scheme":        {"env", "hostname: logs.example.com", "hostname: tls://logs.example.com", "HPL05001E", "/env/logging/syslog/hostname", ""},
	"log host with a port":          {"env", "hostname: logs.example.com", "hostname: logs.example.com:6514", "HPL05001E", "/env/logging/syslog/hostname", ""},
	"port 0":                        {"env", "port: 6514", "port: 0", "HPL05001E", "/env/logging/syslog/port", ""},
	"port 65536":                    {"env", "port: 6514", "port: 65536", "HPL05001E", "/env/logging/syslog/port", ""},
	"port in quotes":                {"env", "port: 6514", `port: "6514"`, "HPL05001E", "/env/logging/syslog/port", ""},
	"no server certificate":         {"env", "    server:", "    # server:", "HPL05001E", "/env/logging/syslog/server", ""},
	"server that is no PEM":         {"env", "    server: ", "    server: x # ", "HPL01005E", "/env/logging/syslog/server", ""},
	"server that is a key":          {"env", "    server: ", "    server: {KEY} # ", "HPL01007E", "/env/logging/syslog/server", ""},
	"no client certificate":         {"env", "    cert:", "    # cert:", "HPL01008E", "/env/logging/syslog/cert", ""},
	"client certificate is a key":   {"env", "    cert: ", "    cert: {KEY} # ", "HPL01008E", "/env/logging/syslog/cert", ""},
	"client certificate of another": {"env", "    cert: ", "    cert: {CA} # ", "HPL01008E", "/env/logging/syslog/key", ""},
	"no client key":                 {"env", "    key:", "    # key:", "HPL01009E", "/env/logging/syslog/key", ""},
	"empty client key":              {"env", "    key: ", "    key: '' # ", "HPL01009E", "/env/logging/syslog/key", ""},
	"client key is a certificate":   {"env", "    key: ", "    key: {CA} # ", "HPL01006E", "/env/logging/syslog/key", ""},
	"client key is protected":       {"env", "    key: ", "    key: {PROTECTED} # ", "HPL01006E", "/env/logging/syslog/key", ""},
	"client key is no PEM":          {"env", "    key: ", "    key: AAAA # ", "HPL01005E", "/env/logging/syslog/key", ""},

	// cacerts.
	"cacerts that are a mapping":  {"env", "  - certificate:", "    certificate:", "HPL05001E", "/env/cacerts", ""},
	"two entries in cacerts":      {"env", "cacerts:\n", "cacerts:\n  - {}\n", "HPL05001E", "/env/cacerts", ""},
	"cacerts with an odd name":    {"env", "  - certificate:", "  - my-ca:", "HPL05001E", "/env/cacerts/0/#1", "/env/cacerts/0/my-ca"},
	"cacerts with text":           {"env", "  - certificate: ", "  - certificate: not-base64 # ", "HPL05001E", "/env/cacerts/0/#1", "/env/cacerts/0/certificate"},
	"cacerts with no certificate": {"env", "  - certificate: ", "  - certificate: {KEY} # ", "HPL05001E", "/env/cacerts/0/#1", "/env/cacerts/0/certificate"},
}

// Guest and lint agree on the first error of each; lint knows its line.
func TestBadContracts(t *testing.T) {
	base := baseSections(t)
	b64 := func(name string) string { return base64.StdEncoding.EncodeToString(readFile(t, vectors, "keys", name)) }
	fill := strings.NewReplacer("{KEY}", b64("sign.key"), "{CA}", b64("ca.crt"), "{PROTECTED}", b64("sign-aes128.key"))
	for name, tt := range badContracts {
		t.Run(name, func(t *testing.T) {
			sections := map[string]string{"workload": base["workload"], "env": base["env"]}
			changed := strings.Replace(base[tt.section], tt.old, fill.Replace(tt.new), 1)
			if changed == base[tt.section] {
				t.Fatalf("%q is not in the base", tt.old)
			}
			sections[tt.section] = changed
			_, err := runSections(t, sections, false).verdict()
			if err == nil {
				t.Fatal("the guest accepts it")
			}
			e := hpl.From(err)
			if e.Code != tt.code || e.Path != tt.host {
				t.Errorf("guest: %s at %s, want %s at %s", e.Code, e.Path, tt.code, tt.host)
			}
			lint := runSections(t, sections, true)
			if lint.lintReport().OK {
				t.Error("lint accepts it")
			}
			f := lint.firstError()
			path := tt.path
			if path == "" {
				path = tt.host
			}
			if f.Code != tt.code || f.Path != path || f.HostPath != tt.host || f.Message == "" || f.Fix == "" {
				t.Errorf("lint: %+v", f)
			}
			if f.Document != strings.Split(path, "/")[1] || f.Line < 1 || f.Line > strings.Count(sections[f.Document], "\n")+1 {
				t.Errorf("lint points at %s:%d:%d", f.Document, f.Line, f.Column)
			}
		})
	}
}

// Warnings that a good contract may carry.
func TestWarnings(t *testing.T) {
	base := baseSections(t)
	tests := map[string]struct{ section, old, new, path string }{
		"unknown key in workload":  {"workload", "images:", "image: x\nimages:", "/workload/image"},
		"leftover logDNA":          {"env", "  syslog:\n", "  logDNA: {}\n  syslog:\n", "/env/logging/logDNA"},
		"short old seed":           {"env", "seed: envseed-ABCDEFGHIJKLMNOP", "seed: short", "/env/volumes/data/seed"},
		"seed with a blank":        {"env", "seed: envseed-ABCDEFGHIJKLMNOP", "seed: envseed with blanks", "/env/volumes/data/seed"},
		"mask as a seed":           {"env", "seed: envseed-ABCDEFGHIJKLMNOP", "seed: '***************'", "/env/volumes/data/seed"},
		"archive in several lines": {"workload", "archive: H4sI", "archive: |\n    H4sI\n    ", "/workload/compose/archive"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			sections := map[string]string{"workload": base["workload"], "env": base["env"]}
			sections[tt.section] = strings.Replace(base[tt.section], tt.old, tt.new, 1)
			r := runSections(t, sections, false)
			v, err := r.verdict()
			if err != nil {
				t.Fatal(err)
			}
			if len(r.findings) != 1 || r.findings[0].Path != tt.path || len(v.Plan().Warnings) != 1 {
				t.Fatalf("findings %+v", r.findings)
			}
			if w := v.Plan().Warnings[0]; w.Detail == "" || strings.Contains(w.Path, "data") {
				t.Errorf("warning %+v", w)
			}
		})
	}
}

// Merge keys and anchors are YAML that users write; they work within bounds.
func TestAnchors(t *testing.T) {
	base := baseSections(t)
	base["env"] = strings.Replace(base["env"], "env:\n  C: x\n", "env: &e\n  C: x\nx-hpcr: {}\n", 1)
	base["workload"] = strings.Replace(base["workload"], "env:\n  A: w\n  GREETING: hello\n", "common: &c {A: base, D: d}\nenv:\n  <<: *c\n  A: w\n  GREETING: hello\n", 1)
	v, err := runSections(t, base, false).verdict()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, e := range v.Plan().Env {
		got[e.Name] = string(e.Value.Bytes())
	}
	if got["A"] != "w" || got["C"] != "x" || got["D"] != "d" || len(got) != 5 {
		t.Errorf("env %v", got)
	}
}
