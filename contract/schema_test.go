package contract

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// The schema for editors, docs/contract.schema.json, against the rules.

func contractSchema(t testing.TB) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(string(readFile(t, "..", "docs", "contract.schema.json"))))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler() // checks the schema itself by its own
	c.AssertFormat()
	if err := c.AddResource("urn:hpcr:contract", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("urn:hpcr:contract")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// value is a node as a validator of JSON sees it.
func (n *node) value() any {
	switch n.kind {
	case mapNode:
		m := map[string]any{}
		for i, k := range n.keys {
			m[k.text] = n.vals[i].value()
		}
		return m
	case listNode:
		l := []any{}
		for _, v := range n.vals {
			l = append(l, v.value())
		}
		return l
	}
	var v any
	switch n.tag {
	case "!!int", "!!float", "!!bool", "!!null":
		if json.Unmarshal([]byte(n.text), &v) == nil {
			return v
		}
		if n.tag == "!!null" {
			return nil
		}
	}
	return n.text
}

// instance is a contract with its sections parsed, as far as they open and
// parse; what does not stays text. ok is false if user-data is no mapping.
func instance(t testing.TB, in badInput) (any, bool) {
	t.Helper()
	r := in.run(t, true)
	r.plan = &Plan{}
	r.envelope()
	if !r.top.present() {
		return nil, false
	}
	r.unseal()
	r.parse()
	m := r.top.n.value().(map[string]any)
	for _, s := range []*section{&r.workload, &r.env} {
		if s.body.present() {
			m[s.name] = s.body.n.value()
		}
	}
	return m, true
}

// Each bad contract is bad by the schema too, or its case says why a schema
// cannot tell.
func TestSchemaRefusesBadContracts(t *testing.T) {
	s := contractSchema(t)
	refused := 0
	for _, c := range loadBad(t) {
		if c.In == "meta-data" || c.In == "network-config" {
			continue
		}
		v, ok := instance(t, c.build(t))
		if !ok {
			continue // no mapping: nothing for a schema
		}
		switch err := s.Validate(v); {
		case err != nil && c.Schema != "":
			t.Errorf("%s: the schema refuses what it is said to accept (%s): %v", c.Name, c.Schema, err)
		case err == nil && c.Schema == "":
			t.Errorf("%s: the schema accepts it", c.Name)
		case err != nil:
			refused++
		}
	}
	t.Logf("%d refused", refused)
}

// beyondSchema are the vectors that only more than a schema can refuse.
var beyondSchema = map[string]string{
	"signed-cert-expired":         "a date",
	"signed-other-key":            "a signature",
	"signed-wrong-order":          "a signature",
	"signed-with-newline-between": "a signature",
	"signed-plain-stripped":       "a signature",
	"bad-token-undecryptable":     "a key",
	"workload-compose-missing":    "an archive's content",
	"workload-compose-build":      "an archive's content",
	"workload-compose-nodigest":   "an archive's content",
}

func TestSchemaAgreesWithTheVectors(t *testing.T) {
	s := contractSchema(t)
	for _, tt := range loadManifest(t).Contracts {
		in := badInput{policy: DefaultPolicy(false)}
		in.files.UserData = readFile(t, vectors, tt.File)
		v, ok := instance(t, in)
		if !ok {
			continue
		}
		want := tt.Ours.Exit == 0 || beyondSchema[tt.Name] != ""
		if err := s.Validate(v); (err == nil) != want {
			t.Errorf("%s: %v, want %v", tt.Name, err, want)
		}
		// As it stands, sections as text, an editor has less to say.
		if n, yerr := parseYAML("user-data", in.files.UserData); yerr == nil && want {
			if err := s.Validate(n.value()); err != nil {
				t.Errorf("%s, unopened: %v", tt.Name, err)
			}
		}
	}
}

// A section's own file is judged by the same schema.
func TestSchemaOfSectionFiles(t *testing.T) {
	s := contractSchema(t)
	refused := map[string]bool{"env-kms.yaml": true, "env-cryptopt.yaml": true}
	files, err := filepath.Glob(filepath.Join(vectors, "plain", "*.yaml"))
	if err != nil || len(files) < 20 {
		t.Fatal(len(files), err)
	}
	for _, f := range append(files, filepath.Join(badDir, "workload.yaml"), filepath.Join(badDir, "env.yaml")) {
		n, yerr := parseYAML("section", readFile(t, f))
		if yerr != nil {
			t.Fatal(yerr)
		}
		if err := s.Validate(n.value()); (err != nil) != refused[filepath.Base(f)] {
			t.Errorf("%s: %v", f, err)
		}
	}
	for name, text := range map[string]string{
		"workload": "type: workload\ncompose: {}\n", "env": "type: env\nlogging: {}\n", "neither": "type: work\n",
	} {
		n, yerr := parseYAML("section", []byte(text))
		if yerr != nil {
			t.Fatal(yerr)
		}
		if s.Validate(n.value()) == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// What the rules only warn of passes the schema.
func TestSchemaTakesWarnings(t *testing.T) {
	s := contractSchema(t)
	for name, tt := range warnings {
		sections := baseSections(t)
		sections[tt.section] = strings.Replace(sections[tt.section], tt.old, tt.new, 1)
		in := badInput{policy: DefaultPolicy(false)}
		in.files.UserData = userData(t, sections)
		v, _ := instance(t, in)
		if err := s.Validate(v); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
