package contract

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v4"

	"hpcr/agent/hpl"
)

// badCase is one contract of testdata/bad/cases.yaml: the good contract beside
// it, changed in one place, breaking one rule. {FILE} stands for the base64 of
// a file of the vectors, for the text itself if it is a token.
type badCase struct {
	Name   string
	In     string         // workload, env, user-data (both, joined), meta-data, network-config
	Old    string         // what New replaces; empty = all
	New    string         //
	Repeat int            // New stands so many times, {i} counting from 0
	Around string         // what stands around New, in place of {}
	Beside map[string]any // further top-level keys
	Sealed string         // the section becomes a token for this key
	Signed string         // env names this signingKey, and sign.key signs
	Policy string         // the image's, over the defaults

	Code     hpl.Code
	Host     string // path for the console
	Path     string // path for lint, if it is another
	Document string // where Line counts, if not in In
	Line     int
	Schema   string // why docs/contract.schema.json lets it pass
}

const badDir = "testdata/bad"

func loadBad(t testing.TB) []badCase {
	t.Helper()
	var cases []badCase
	if err := yaml.Load(readFile(t, badDir, "cases.yaml"), &cases, yaml.WithKnownFields()); err != nil {
		t.Fatal(err)
	}
	return cases
}

// baseSections are a good contract in block style, one rule a line.
func baseSections(t testing.TB) map[string]string {
	t.Helper()
	return map[string]string{
		"workload": string(readFile(t, badDir, "workload.yaml")),
		"env":      string(readFile(t, badDir, "env.yaml")),
	}
}

var vectorFile = regexp.MustCompile(`\{([a-z]+/[a-z0-9-]+\.[a-z]+)\}`)

func (c *badCase) text(t testing.TB, base string) string {
	t.Helper()
	s := vectorFile.ReplaceAllStringFunc(c.New, func(name string) string {
		b := readFile(t, vectors, filepath.FromSlash(strings.Trim(name, "{}")))
		if IsToken(string(b)) {
			return string(b)
		}
		return base64.StdEncoding.EncodeToString(b)
	})
	if c.Repeat > 0 {
		var b strings.Builder
		for i := range c.Repeat {
			b.WriteString(strings.ReplaceAll(s, "{i}", strconv.Itoa(i)))
		}
		s = b.String()
	}
	if c.Around != "" {
		s = strings.Replace(c.Around, "{}", s, 1)
	}
	if c.Old == "" {
		return s
	}
	changed := strings.Replace(base, c.Old, s, 1)
	if changed == base && c.Sealed == "" {
		t.Fatalf("%q is not in the base", c.Old)
	}
	return changed
}

// badInput is a bad contract as guest and lint get it.
type badInput struct {
	files    Files
	sections map[string]string // as far as it has any, in plain text
	policy   Policy
}

func (c *badCase) build(t testing.TB) badInput {
	t.Helper()
	in := badInput{sections: baseSections(t), policy: DefaultPolicy(false)}
	if c.Policy != "" {
		var err error
		text := (&badCase{New: c.Policy}).text(t, "")
		if in.policy, err = ParsePolicy([]byte(text), false); err != nil {
			t.Fatal(err)
		}
	}
	if c.In == "workload" || c.In == "env" {
		in.sections[c.In] = c.text(t, in.sections[c.In])
	}
	if c.Signed != "" {
		in.sections["env"] += "signingKey: " + encoded(t, c.Signed) + "\n"
	}
	top := map[string]any{"workload": in.sections["workload"], "env": in.sections["env"]}
	if c.Sealed != "" {
		token, err := Seal(PrefixHPCR, &rsaKey(t, strings.Replace(c.Sealed, ".pub", ".key", 1)).PublicKey, []byte(in.sections[c.In]))
		if err != nil {
			t.Fatal(err)
		}
		top[c.In] = token
	}
	if c.Signed != "" {
		top["envWorkloadSignature"] = sign(t, rsaKey(t, "sign.key"), top["workload"].(string)+top["env"].(string))
	}
	for k, v := range c.Beside {
		if s, ok := v.(string); ok {
			v = (&badCase{New: s}).text(t, "")
		}
		top[k] = v
	}
	b, err := yaml.Marshal(top)
	if err != nil {
		t.Fatal(err)
	}
	in.files.UserData = b
	switch c.In {
	case "user-data":
		in.files.UserData = []byte(c.text(t, string(b)))
	case "meta-data":
		in.files.MetaData = []byte(c.text(t, ""))
	case "network-config":
		in.files.NetworkConfig = []byte(c.text(t, ""))
	}
	return in
}

func (in badInput) run(t testing.TB, lint bool) *run {
	t.Helper()
	r, err := newRun(nil, in.policy, now)
	if err != nil {
		t.Fatal(err)
	}
	r.keys = append(r.keys, rsaKey(t, "encrypt.key"))
	r.lint, r.files = lint, in.files
	return r
}

func (c *badCase) path() string {
	if c.Path == "" {
		return c.Host
	}
	return c.Path
}

func (c *badCase) document() string {
	if c.Document == "" {
		return c.In
	}
	return c.Document
}

// complaint runs guest and lint and says how their verdict differs from what
// the case wants, "" if it does not.
func (c *badCase) complaint(t testing.TB, in badInput) string {
	t.Helper()
	_, err := in.run(t, false).verdict()
	if err == nil {
		return "the guest accepts it"
	}
	if e := hpl.From(err); e.Code != c.Code || e.Path != c.Host {
		return "the guest says " + string(e.Code) + " at " + e.Path
	}
	lint := in.run(t, true)
	if lint.lintReport().OK {
		return "lint accepts it"
	}
	f := lint.firstError()
	if f.Code != c.Code || f.Path != c.path() || f.HostPath != c.Host || f.Document != c.document() || f.Line != c.Line {
		return "lint says " + string(f.Code) + " at " + f.Path + ", " + f.Document + ":" + strconv.Itoa(f.Line)
	}
	if f.Column < 1 || f.Message == "" || f.Fix == "" {
		return "lint does not help: " + f.Message + "; " + f.Fix
	}
	return ""
}

// Guest and lint agree on the first error of each bad contract: its code and
// path; lint knows its document and line.
func TestBadContracts(t *testing.T) {
	cases := loadBad(t)
	seen := map[string]bool{}
	for _, c := range cases {
		if seen[c.Name] {
			t.Errorf("%s stands twice", c.Name)
		}
		seen[c.Name] = true
		t.Run(c.Name, func(t *testing.T) {
			if s := c.complaint(t, c.build(t)); s != "" {
				t.Error(s)
			}
		})
	}
	if len(seen) < 150 {
		t.Errorf("only %d bad contracts", len(seen))
	}
}

func TestBaseSectionsAreGood(t *testing.T) {
	r := runSections(t, baseSections(t), true)
	if rep := r.lintReport(); !rep.OK || len(rep.Findings) != 0 {
		t.Fatalf("%+v", rep.Findings)
	}
}

// Every message of the bad contracts is fit for the console.
func TestFindingsAreFitForTheConsole(t *testing.T) {
	for _, c := range loadBad(t) {
		r := c.build(t).run(t, true)
		r.lintReport()
		checkHostForm(t, r)
	}
}

// TestWriteBadContracts writes the corpus as cidata devices into a folder that
// other tests name, with what a guest has to say of each.
func TestWriteBadContracts(t *testing.T) {
	dir := os.Getenv("HPCR_BAD_CONTRACTS")
	if dir == "" {
		t.Skip("no folder is named")
	}
	type expected struct {
		Name, Cidata, Host string
		Code               hpl.Code
		Policy             Policy
		Now                time.Time
	}
	var all []expected
	for i, c := range loadBad(t) {
		in := c.build(t)
		e := expected{c.Name, strconv.Itoa(i) + ".iso", c.Host, c.Code, in.policy, now}
		device, err := WriteCidata(in.files)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, e.Cidata), device, 0o644); err != nil {
			t.Fatal(err)
		}
		all = append(all, e)
	}
	b, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"cases.json": b, "key.pem": readFile(t, vectors, "keys", "encrypt.key")} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
