package contract

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v4"
)

var formTexts = []string{
	"a\nb\n", "a\nb", "a\n\nb\n\n\n", "one line", "", "\n", " leading\nblank", "trailing \nblank", "tab\there\n", "\ttab\nfirst",
	"a\r\nb\n", "a: b # c\n- d\n", "ünï\ncode\n", "nul\x00\nx", "emoji \U0001f600\nx", "bom \ufeff\nx", "\u2028\n", "a\n ", "a\n\n", "---\n...\n", "a\n  b\n c\n",
	"del\x7f\nx", "\u0085\nx",
}

// What is written says the same to the library, and is what the library
// itself writes wherever we write directly.
func TestAppendEntry(t *testing.T) {
	for _, text := range formTexts {
		checkEntry(t, text)
	}
}

func FuzzAppendEntry(f *testing.F) {
	for _, text := range formTexts {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) { checkEntry(t, text) })
}

func checkEntry(t *testing.T, text string) {
	t.Helper()
	out, err := appendEntry(nil, "env", text)
	if err != nil {
		return // not UTF-8, for example
	}
	out, err = appendEntry(out, "workload", "x\n")
	if err != nil {
		t.Fatal(err)
	}
	var back map[string]string
	if err := yaml.Unmarshal(out, &back); err != nil {
		t.Fatalf("%q: %v\n%s", text, err, out)
	}
	if literal(text) {
		if diff := cmp.Diff(map[string]string{"env": text, "workload": "x\n"}, back); diff != "" {
			t.Fatal(diff)
		}
		want, err := yaml.Dump(map[string]string{"env": text, "workload": "x\n"}, yaml.WithV3Defaults(), yaml.WithLineWidth(-1))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(out)); diff != "" {
			t.Fatal(diff)
		}
	}
}

// workload-data.decrypted is the mappings, whatever their texts look like.
func TestWorkloadDataIsTheSections(t *testing.T) {
	s := baseSections(t)
	s["env"] += "  D: |4\n        indented\n\n      less\n  E: \"a\\n b\\n\\n\"\n  F: >-\n    folded\n    line\n"
	v, err := runSections(t, s, false).verdict()
	if err != nil {
		t.Fatal(err)
	}
	var got, want struct {
		Env, Workload map[string]any
	}
	if err := yaml.Unmarshal(v.Plan().WorkloadDataDecrypted.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal([]byte(s["env"]), &want.Env); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal([]byte(s["workload"]), &want.Workload); err != nil {
		t.Fatal(err)
	}
	for _, section := range []map[string]any{want.Env, want.Workload} {
		for _, vol := range section["volumes"].(map[string]any) {
			for key := range vol.(map[string]any) {
				if contains(seedKeys, key) {
					vol.(map[string]any)[key] = SeedMask
				}
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
