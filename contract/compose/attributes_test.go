package compose

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/schema"
	"github.com/google/go-cmp/cmp"

	"hpcr/contract/archive"
)

// schemaNode is what of a JSON schema names attributes.
type schemaNode struct {
	Ref        string                `json:"$ref"`
	Properties map[string]schemaNode `json:"properties"`
	Patterns   map[string]schemaNode `json:"patternProperties"`
	Additional json.RawMessage       `json:"additionalProperties"`
	Items      json.RawMessage       `json:"items"`
	OneOf      []schemaNode          `json:"oneOf"`
	AnyOf      []schemaNode          `json:"anyOf"`
	AllOf      []schemaNode          `json:"allOf"`
}

// schemaAttributes are all attributes of the Compose Specification; nothing
// below one that is refused.
func schemaAttributes(t *testing.T) map[string]bool {
	t.Helper()
	text, err := os.ReadFile("testdata/compose-spec.json")
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		schemaNode
		Defs map[string]schemaNode `json:"$defs"`
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	all := map[string]bool{}
	var walk func(n schemaNode, pattern string, seen []string)
	sub := func(raw json.RawMessage) (n schemaNode, ok bool) {
		return n, len(raw) > 0 && raw[0] == '{' && json.Unmarshal(raw, &n) == nil
	}
	walk = func(n schemaNode, pattern string, seen []string) {
		if n.Ref != "" {
			name := path.Base(n.Ref)
			target, ok := doc.Defs[name]
			if !ok {
				t.Fatalf("no definition of %s", n.Ref)
			}
			if !slices.Contains(seen, name) {
				walk(target, pattern, append(slices.Clone(seen), name))
			}
		}
		for _, list := range [][]schemaNode{n.OneOf, n.AnyOf, n.AllOf} {
			for _, one := range list {
				walk(one, pattern, seen)
			}
		}
		for key, v := range n.Properties {
			name := join(pattern, key)
			all[name] = true
			if refused[name] == "" {
				walk(v, name, seen)
			}
		}
		for key, v := range n.Patterns {
			if !strings.HasPrefix(key, "^x-") {
				walk(v, join(pattern, "*"), seen)
			}
		}
		if v, ok := sub(n.Additional); ok {
			walk(v, join(pattern, "*"), seen)
		}
		if v, ok := sub(n.Items); ok {
			walk(v, join(pattern, "#"), seen)
		}
	}
	walk(doc.schemaNode, "", nil)
	return all
}

// The lists hold each attribute of the schema once, and no others.
func TestEveryAttributeIsDecided(t *testing.T) {
	vendored, err := os.ReadFile("testdata/compose-spec.json")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(vendored, []byte(schema.Schema)) {
		t.Error("the loader follows another schema than testdata/compose-spec.json: copy it, and decide what is new")
	}
	ours := map[string]bool{}
	for name := range supported {
		ours[name] = true
		if refused[name] != "" {
			t.Errorf("%s is both supported and refused", name)
		}
	}
	for name := range refused {
		ours[name] = true
	}
	if diff := cmp.Diff(schemaAttributes(t), ours); diff != "" {
		t.Errorf("(-schema +code) %s", diff)
	}
}

// Each refused attribute is refused by its name, with any value that has the
// right shape for the loader.
func TestEachRefusedAttribute(t *testing.T) {
	for name := range refused {
		t.Run(name, func(t *testing.T) {
			var ok bool
			for _, value := range []any{"x", true, map[string]any{"a": "b"}, []any{"x"}, []any{map[string]any{"command": "x"}}, map[string]any{}, 1} {
				_, err := Load([]archive.File{{Name: "docker-compose.yaml", Data: placed(t, name, value)}}, nil, Options{Privileged: true})
				for _, e := range apart(err) {
					ok = ok || strings.Contains(e.Error(), "HPL06009E") && strings.Contains(e.Error(), strings.TrimPrefix(jsonPath(name), "/")+": "+refused[name])
				}
			}
			if !ok {
				t.Errorf("no value is refused at %s by what the list says", jsonPath(name))
			}
		})
	}
}

// placed is a compose file with one attribute set.
func placed(t *testing.T, name string, value any) []byte {
	t.Helper()
	keys := strings.Split(name, ".")
	tree := value
	for _, key := range slices.Backward(keys) {
		switch key {
		case "#":
			tree = []any{with(tree, map[string]any{"type": "volume", "target": "/t", "source": "v"})}
		case "*":
			tree = map[string]any{"one": tree}
		default:
			tree = map[string]any{key: tree}
		}
	}
	file := tree.(map[string]any)
	services, ok := file["services"].(map[string]any)
	if !ok {
		services = map[string]any{"one": map[string]any{}}
		file["services"] = services
	}
	services["one"].(map[string]any)["image"] = "a@" + digest
	text, err := json.Marshal(file)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func with(v any, more map[string]any) any {
	if m, ok := v.(map[string]any); ok {
		maps.Copy(m, more)
	}
	return v
}

func jsonPath(name string) string {
	return Root + "/" + strings.NewReplacer(".", "/", "*", "#1", "#", "#1").Replace(name)
}

func apart(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var all []error
		for _, e := range joined.Unwrap() {
			all = append(all, apart(e)...)
		}
		return all
	}
	if err == nil {
		return nil
	}
	return []error{err}
}
