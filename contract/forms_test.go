package contract

import (
	"bytes"
	"regexp"
	"strings"
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

// Property: any text is read back the same, and stands as the library writes it.
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
	if err := yaml.Unmarshal(written(t, v).WorkloadDataDecrypted.Bytes(), &got); err != nil {
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

// written is the plan as the agent gets it, the contract's text with it.
func written(t testing.TB, v *Verified) *Plan {
	t.Helper()
	var wire bytes.Buffer
	if err := v.Encode(&wire); err != nil {
		t.Fatal(err)
	}
	again, err := Decode(wire.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	return again.Plan()
}

// What a token inside a section holds stands open in both files, whether the
// section has seeds or not; a section without either stays byte for byte.
func TestNestedTokensStandOpenInTheForms(t *testing.T) {
	for _, seeds := range []bool{true, false} {
		for _, nested := range []bool{true, false} {
			s := baseSections(t)
			s["env"] = strings.Replace(s["env"], "type: env\n", "type: env # a comment\n", 1)
			if nested {
				s["env"] = strings.Replace(s["env"], "password: abc\n", "password: "+seal(t, "of-a-token")+"\n", 1)
			}
			if !seeds {
				for name, text := range s {
					before, volumes, _ := strings.Cut(text, "\nvolumes:\n")
					s[name] = before + regexp.MustCompile(`(?m)\A(  .*\n)+`).ReplaceAllString(volumes, "\n")
				}
			}
			r := runSections(t, s, false)
			r.keys = append(r.keys, rsaKey(t, "encrypt.key"))
			v, err := r.verdict()
			if err != nil {
				t.Fatal(err)
			}
			p := written(t, v)
			masked := string(p.UserDataMasked.Bytes())
			for name, text := range map[string]string{"user-data.decrypted": masked, "workload-data.decrypted": string(p.WorkloadDataDecrypted.Bytes())} {
				if strings.Contains(text, PrefixHPCR) || nested != strings.Contains(text, "password: of-a-token\n") {
					t.Errorf("seeds %t, nested %t: %s:\n%.800s", seeds, nested, name, text)
				}
			}
			if asItStands := strings.Contains(masked, "# a comment"); asItStands == (seeds || nested) {
				t.Errorf("seeds %t, nested %t: env stands as it is: %t", seeds, nested, asItStands)
			}
		}
	}
}
