package compose

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hpcr/contract/archive"
	"hpcr/test/composed"
)

// docs/compose.md has each attribute of the schema once. It says works only of
// what a container was seen to see, by a line of test/composed or a test that is
// named there, and it says of what is refused what the guest says.
func TestComposeDocument(t *testing.T) {
	seen := map[string]string{}
	for _, o := range slices.Concat(composed.Observations, composed.AtTheEnd) {
		for _, name := range o.Attributes {
			seen[name] = o.Line
		}
	}
	used := usedAttributes(t)
	for name, line := range seen {
		if !used[name] {
			t.Errorf("%s stands behind %q, but the project of test/composed does not use it", name, line)
		}
	}
	tests := ""
	for _, pattern := range []string{"../../agent/workload/*_test.go", "../../test/*_test.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			tests += string(text)
		}
	}
	for name, test := range composed.Elsewhere {
		seen[name] = test
		if !strings.Contains(tests, "\nfunc "+test+"(") {
			t.Errorf("there is no test %s to observe %s", test, name)
		}
	}
	text, err := os.ReadFile("../../docs/compose.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.TrimSuffix(line, " |\n"), " | ")
		if !strings.HasPrefix(line, "| `") || len(cells) != 3 {
			continue
		}
		name, status, what := strings.Trim(cells[0], "|` "), cells[1], cells[2]
		if rows[name] {
			t.Errorf("%s stands in the table twice", name)
		}
		rows[name] = true
		switch _, observed := seen[name]; {
		case (refused[name] != "") != (status == "refused"):
			t.Errorf("%s: the table says %s, the code does not", name, status)
		case status == "refused" && what != refused[name]:
			t.Errorf("%s: the table says %q, the guest %q", name, what, refused[name])
		case observed != (status == "works"):
			t.Errorf("%s: the table says %s, and observed is %v", name, status, observed)
		case !slices.Contains([]string{"works", "taken", "no effect", "refused"}, status):
			t.Errorf("%s: %q is none of the four words", name, status)
		}
	}
	if diff := cmp.Diff(schemaAttributes(t), rows); diff != "" {
		t.Errorf("(-schema +table) %s", diff)
	}
}

// usedAttributes are those in the project of test/composed, as it is written
// and as the loader writes it out.
func usedAttributes(t *testing.T) map[string]bool {
	t.Helper()
	files, err := composed.Files("a@"+digest, "amd64", "/mnt/data")
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	var walk func(pattern string, v any)
	walk = func(pattern string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for key, e := range v {
				name := join(pattern, key)
				if pattern != "" && !fixed[pattern] {
					name = pattern + ".*"
				}
				used[name] = true
				walk(name, e)
			}
		case []any:
			for _, e := range v {
				walk(pattern+".#", e)
			}
		}
	}
	var list []archive.File
	for name, text := range files {
		list = append(list, archive.File{Name: name, Data: []byte(text)})
		if strings.HasSuffix(name, ".yaml") {
			doc, err := parse([]byte(text), Root)
			if err != nil {
				t.Fatal(err)
			}
			m, err := doc.model()
			if err != nil {
				t.Fatal(err)
			}
			walk("", m)
		}
	}
	if _, err := Load(list, composed.Env(), Options{Privileged: true}); err != nil {
		t.Fatal(err)
	}
	l := &load{name: "docker-compose.yaml", files: list, env: composed.Env(), unset: map[string]bool{}, order: map[string][]string{}, idle: map[string]bool{}}
	if l.doc, err = l.open(l.name, Root); err != nil {
		t.Fatal(err)
	}
	raw, err := l.rawModel()
	if err != nil {
		t.Fatal(err)
	}
	walk("", raw)
	// An include may be a file's name alone.
	used["include.#.path"] = used["include"]
	return used
}
