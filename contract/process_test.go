package contract

import (
	"bytes"
	"crypto/rsa"
	"encoding/base64"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.yaml.in/yaml/v4"

	"hpcr/agent/hpl"
	"hpcr/agent/secret"
)

// goodSections are the two halves of a contract that this version supports.
func goodSections(t testing.TB) (workload, env string) {
	t.Helper()
	archive := base64.StdEncoding.EncodeToString(readFile(t, vectors, "archives", "compose-plain.tgz"))
	workload = `type: workload
auths:
  registry.example.com:5000: {username: puller, password: "work:word"}
  https://index.docker.io/v1/: {username: hub, password: pat-1}
compose:
  archive: ` + archive + `
volumes:
  data: {mount: /mnt/data, filesystem: ext4, seed: workloadseed-0123456789}
env:
  A: w
  B: "1"
`
	env = `type: env
auths:
  registry.example.com:5000: {username: deployer, password: lost}
  10.0.2.2:5000: {username: deployer, password: kept}
` + strings.TrimPrefix(string(readFile(t, vectors, "plain", "env-syslog.yaml")), "type: env\n") + `
cacerts:
  - certificate: ` + base64.StdEncoding.EncodeToString(readFile(t, vectors, "keys", "ca.crt")) + `
volumes:
  data: {seed: envseed-ABCDEFGHIJKLMNOP}
env:
  A: e
  C: x
`
	return workload, env
}

// userData joins sections as literal blocks, tokens on one line.
func userData(t testing.TB, sections map[string]string) []byte {
	t.Helper()
	b, err := yaml.Marshal(sections)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func seal(t testing.TB, plain string) string {
	t.Helper()
	token, err := Seal(PrefixHPCR, &rsaKey(t, "encrypt.key").PublicKey, []byte(plain))
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func input(t testing.TB, f Files) Input {
	return Input{
		Cidata: iso(t, f, "-volid", "cidata", "-joliet", "-rock"),
		Keys:   []*secret.Secret{keyFile(t, "other.key"), keyFile(t, "encrypt.key")},
		Policy: DefaultPolicy(false),
		Now:    now,
	}
}

var planOptions = cmp.Options{
	cmp.Comparer(func(a, b *secret.Secret) bool { return bytes.Equal(a.Bytes(), b.Bytes()) }),
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmpopts.EquateEmpty(),
}

func TestProcess(t *testing.T) {
	workload, env := goodSections(t)
	forms := map[string]map[string]string{
		"plain":     {"workload": workload, "env": env},
		"encrypted": {"workload": seal(t, workload), "env": seal(t, env)},
		"mixed":     {"workload": seal(t, workload), "env": env},
	}
	for name, sections := range forms {
		t.Run(name, func(t *testing.T) {
			in := input(t, Files{
				UserData:      userData(t, sections),
				MetaData:      []byte("local-hostname: guest-1.example.com\ninstance-id: x\n"),
				VendorData:    []byte("#cloud-config\nusers:\n- default\n"),
				NetworkConfig: readFile(t, vectors, "network", "static.yaml"),
			})
			v, err := Process(in)
			if err != nil {
				t.Fatal(err)
			}
			var wire bytes.Buffer
			if err := v.Encode(&wire); err != nil {
				t.Fatal(err)
			}
			again, err := Decode(wire.Bytes())
			if err != nil {
				t.Fatal(err)
			}
			sent := *v.Plan()
			sent.UserDataMasked, sent.WorkloadDataDecrypted = again.Plan().UserDataMasked, again.Plan().WorkloadDataDecrypted
			checkPlan(t, &sent, name)
			sent.Env, sent.Compose = nil, sent.Compose.Needed()
			if diff := cmp.Diff(&sent, again.Plan(), planOptions); diff != "" {
				t.Error(diff)
			}
			if out := fmt.Sprintf("%v %+v %#v", v.Plan(), *v.Plan(), v); strings.Contains(out, "work:word") || strings.Contains(out, "ABCDEFGHIJKL") {
				t.Error("a plan prints a secret")
			}
			pass := v.Plan().Volumes[0].Passphrases[0]
			v.Wipe()
			if pass.Len() != 0 {
				t.Error("not wiped")
			}
		})
	}
}

// TestSeedsAndUnusedTextStayInTheChild looks at what leaves the contract child.
func TestSeedsAndUnusedTextStayInTheChild(t *testing.T) {
	workload, env := goodSections(t)
	v, err := Process(input(t, Files{UserData: userData(t, map[string]string{"workload": workload, "env": env})}))
	if err != nil {
		t.Fatal(err)
	}
	sent := func() (*Plan, string) {
		var wire bytes.Buffer
		if err := v.Encode(&wire); err != nil {
			t.Fatal(err)
		}
		again, err := Decode(wire.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		text := wire.String() // and what is base64 in it
		for _, word := range strings.Split(wire.String(), `"`) {
			if b, err := base64.StdEncoding.DecodeString(word); err == nil {
				text += "\n" + string(b)
			}
		}
		return again.Plan(), text
	}
	p, text := sent()
	if p.WorkloadDataDecrypted.Len() == 0 || p.UserDataMasked.Len() == 0 {
		t.Error("a container mounts the contract's text, which was not sent")
	}
	for _, s := range v.Plan().Compose.Services {
		clear(s.Mounts)
	}
	p, unmounted := sent()
	if p.WorkloadDataDecrypted.Len() != 0 || p.UserDataMasked.Len() != 0 || len(p.Compose.Needed().Files) != len(p.Compose.Files) {
		t.Error("no container mounts the contract's text, which was sent")
	}
	for _, seed := range []string{"envseed-", "workloadseed-"} {
		if strings.Contains(text, seed) || strings.Contains(unmounted, seed) {
			t.Errorf("%s… was sent", seed)
		}
	}
}

func checkPlan(t *testing.T, p *Plan, form string) {
	t.Helper()
	want := map[string]int{"plain": 0, "mixed": 1, "encrypted": 2}[form]
	if p.Hostname != "guest-1.example.com" || p.TokensDecrypted != want || p.TokensIgnored != 0 || p.Signed || len(p.Warnings) != 0 {
		t.Errorf("host %q, tokens %d/%d, warnings %v", p.Hostname, p.TokensDecrypted, p.TokensIgnored, p.Warnings)
	}
	prefix := netip.MustParsePrefix
	net := &Network{Links: []Link{{Name: "enc1", Addresses: []netip.Prefix{prefix("192.0.2.10/24")}, Gateway: netip.MustParseAddr("192.0.2.1"),
		Nameservers: []netip.Addr{netip.MustParseAddr("192.0.2.53")}, Search: []string{"example.com"}}}}
	if diff := cmp.Diff(net, p.Network, planOptions); diff != "" {
		t.Error(diff)
	}
	if s := p.Syslog; s.Host != "logs.example.com" || s.Port != 6514 || !bytes.HasPrefix(s.CA, []byte("-----BEGIN CERT")) ||
		!bytes.HasPrefix(s.Cert, []byte("-----BEGIN CERT")) || !bytes.HasPrefix(s.Key.Bytes(), []byte("-----BEGIN PRIVATE KEY")) {
		t.Errorf("syslog %+v", s)
	}
	sec := secret.FromString
	auths := []Auth{{"10.0.2.2:5000", "deployer", sec("kept")}, {"docker.io", "hub", sec("pat-1")}, {"registry.example.com:5000", "puller", sec("work:word")}}
	if diff := cmp.Diff(auths, p.Auths, planOptions); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]Var{{"A", sec("w")}, {"B", sec("1")}, {"C", sec("x")}}, p.Env, planOptions); diff != "" {
		t.Error(diff)
	}
	vols := []Volume{{Name: "data", Path: "/workload/volumes/#1", Mount: "/mnt/data", Filesystem: "ext4", MayCreate: true, Passphrases: []*secret.Secret{
		sec("3a9c067d7b69e95aca398428b63573f57d5daa85eca73e1cdc0ca74664821817"),
		sec("c778a1914979443ff2f10b4fd4631aaf55a235ef4490e9f0b49375665d7a46d2")}}}
	if diff := cmp.Diff(vols, p.Volumes, planOptions); diff != "" {
		t.Error(diff)
	}
	if len(p.CACerts) != 1 || p.Compose == nil || len(p.Compose.Services) != 1 || p.AttestationPublicKey != nil {
		t.Errorf("%d CA certificates, project %v", len(p.CACerts), p.Compose)
	}
	names := make([]string, 0, len(p.Digests))
	for _, d := range p.Digests {
		names = append(names, d.Name)
	}
	if diff := cmp.Diff([]string{"/dev/disk/by-label/cidata", "cidata/meta-data", "cidata/user-data", "cidata/vendor-data",
		"cidata/network-config", "contract:workload", "contract:env"}, names); diff != "" {
		t.Error(diff)
	}
	masked, both := string(p.UserDataMasked.Bytes()), string(p.WorkloadDataDecrypted.Bytes())
	if !strings.HasPrefix(masked, "env: |\n    type: env\n    auths:\n") || !strings.Contains(masked, "\nworkload: |\n    type: workload\n") || strings.Contains(masked, PrefixHPCR) {
		t.Errorf("user-data.decrypted:\n%s", masked)
	}
	for name, text := range map[string]string{"masked": masked, "workload-data": both} {
		if strings.Contains(text, "envseed-") || strings.Contains(text, "workloadseed-") || strings.Count(text, `"`+SeedMask+`"`) != 2 {
			t.Errorf("%s:\n%s", name, text)
		}
	}
	if !strings.HasPrefix(both, "env:\n    type: env\n") || !strings.Contains(both, "\nworkload:\n    type: workload\n") {
		t.Errorf("forms:\n%s\n%s", masked, both)
	}
}

func TestProcessRefusesWithoutText(t *testing.T) {
	workload, env := goodSections(t)
	good := map[string]string{"workload": workload, "env": env}
	tests := map[string]struct {
		files Files
		code  hpl.Code
		path  string
	}{
		"no user-data":                      {Files{MetaData: []byte("x: y")}, "HPL11001E", "/user-data"},
		"empty user-data":                   {Files{UserData: []byte{}, MetaData: []byte("x: y")}, "HPL11001E", "/user-data"},
		"user-data of blanks":               {Files{UserData: []byte(" \n\n")}, "HPL11001E", "/user-data"},
		"gzip":                              {Files{UserData: []byte("\x1f\x8b\x08rest")}, "HPL11001E", "/user-data"},
		"NUL":                               {Files{UserData: []byte("workload: a\x00")}, "HPL11001E", "/user-data"},
		"not UTF-8":                         {Files{UserData: []byte("workload: \xff")}, "HPL11001E", "/user-data"},
		"a list":                            {Files{UserData: []byte("- a\n")}, "HPL11001E", "/user-data"},
		"two documents":                     {Files{UserData: []byte("a: b\n---\nc: d\n")}, "HPL11001E", "/user-data"},
		"duplicate section":                 {Files{UserData: []byte("workload: a\nenv: b\nworkload: c\n")}, "HPL11001E", "/user-data"},
		"65 top-level keys":                 {Files{UserData: []byte(manyKeys(65))}, "HPL11001E", "/user-data"},
		"a key that forges a record line":   {Files{UserData: []byte("workload: a\nenv: b\n\"x y\": c\n")}, "HPL11001E", "/#3"},
		"host name with underscore":         {Files{UserData: userData(t, good), MetaData: []byte("local-hostname: a_b")}, "HPL11001E", "/meta-data/local-hostname"},
		"host name of 65 bytes":             {Files{UserData: userData(t, good), MetaData: []byte("local-hostname: " + strings.Repeat("a", 60) + ".bcde")}, "HPL11001E", "/meta-data/local-hostname"},
		"host name that is an address":      {Files{UserData: userData(t, good), MetaData: []byte("local-hostname: 192.0.2.1")}, "HPL11001E", "/meta-data/local-hostname"},
		"host name with a line":             {Files{UserData: userData(t, good), MetaData: []byte(`local-hostname: "a\nb"`)}, "HPL11001E", "/meta-data/local-hostname"},
		"meta-data not YAML":                {Files{UserData: userData(t, good), MetaData: []byte("a: [")}, "HPL11001E", "/meta-data"},
		"DHCP with an address":              {Files{UserData: userData(t, good), NetworkConfig: readFile(t, vectors, "network", "bad-dhcp-with-address.yaml")}, "HPL14001E", "/network-config/network/ethernets/#1/addresses"},
		"unknown interface":                 {Files{UserData: userData(t, good), NetworkConfig: readFile(t, vectors, "network", "bad-interface-name.yaml")}, "HPL14001E", "/network-config/network/ethernets/#1"},
		"static without an address":         {Files{UserData: userData(t, good), NetworkConfig: readFile(t, vectors, "network", "bad-static-without-address.yaml")}, "HPL14001E", "/network-config/network/ethernets/#1/addresses"},
		"other key":                         {Files{UserData: userData(t, map[string]string{"workload": sealFor(t, "sign.key", workload), "env": env})}, "HPL11001E", "/workload"},
		"token of something that is no map": {Files{UserData: userData(t, map[string]string{"workload": seal(t, "text"), "env": env})}, "HPL11001E", "/workload"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			v, err := Process(input(t, tt.files))
			if err == nil {
				t.Fatalf("accepted: %+v", v.Plan())
			}
			e := hpl.From(err)
			if e.Code != tt.code || e.Path != tt.path {
				t.Errorf("got %s at %s, want %s at %s", e.Code, e.Path, tt.code, tt.path)
			}
			if strings.Contains(e.Line(), "a_b") || strings.Contains(e.Line(), "eth0") {
				t.Errorf("the line repeats the host's text: %s", e.Line())
			}
		})
	}
	t.Run("no cidata", func(t *testing.T) {
		in := input(t, Files{UserData: userData(t, good)})
		in.Cidata = nil
		if _, err := Process(in); err == nil || hpl.From(err).Code != "HPL11001E" {
			t.Errorf("got %v", err)
		}
	})
}

func sealFor(t testing.TB, key, plain string) string {
	t.Helper()
	token, err := Seal(PrefixCCRT, &rsaKey(t, key).PublicKey, []byte(plain))
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// Every token that does not open says the same, whatever failed.
func TestOneErrorForEveryToken(t *testing.T) {
	_, env := goodSections(t)
	key := rsaKey(t, "encrypt.key")
	good := seal(t, "type: workload\n")
	parts := strings.Split(good, ".")
	flip := func(s string, i int) string {
		b, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		b[i%len(b)] ^= 1
		return base64.StdEncoding.EncodeToString(b)
	}
	bad := []string{
		parts[0] + "." + flip(parts[1], 9) + "." + parts[2],
		parts[0] + "." + parts[1] + "." + flip(parts[2], 1),
		parts[0] + "." + parts[1] + "." + flip(parts[2], 9),
		parts[0] + "." + parts[1] + "." + flip(parts[2], 20),
		parts[0] + "." + parts[1] + ".AAAA",
		parts[0] + "." + parts[1] + ".",
		sealFor(t, "other.key", "type: workload\n"),
		seal(t, "\xff\xfe"),
		seal(t, ""),
	}
	seen := map[string]bool{}
	for _, token := range bad {
		r, err := newRun(nil, DefaultPolicy(false), now)
		if err != nil {
			t.Fatal(err)
		}
		r.keys = []*rsa.PrivateKey{key}
		r.files.UserData = userData(t, map[string]string{"workload": token, "env": env})
		_, err = r.verdict()
		if err == nil {
			t.Fatalf("accepted %s", token)
		}
		seen[err.Error()] = true
	}
	if len(seen) != 1 {
		t.Errorf("got %d different errors: %v", len(seen), seen)
	}
}

func TestCheckExpiry(t *testing.T) {
	begin, end := now, now.Add(24*time.Hour)
	v := &Verified{plan: &Plan{SignerNotBefore: begin, SignerNotAfter: end}}
	tests := map[string]struct {
		now time.Time
		ok  bool
	}{
		"before": {begin.Add(-time.Second), false}, "first": {begin, true}, "last": {end, true}, "after": {end.Add(time.Second), false},
	}
	for name, tt := range tests {
		err := v.CheckExpiry(tt.now)
		if (err == nil) != tt.ok || err != nil && hpl.From(err).Code != "HPL12007E" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := (&Verified{plan: &Plan{}}).CheckExpiry(now); err != nil {
		t.Errorf("a bare key has no dates: %v", err)
	}
}

func manyKeys(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "k%d: v\n", i)
	}
	return b.String()
}
