package contract

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hpcr/agent/hpl"
)

// playSections turns the base's workload into a play one.
func playSections(t testing.TB, play string) map[string]string {
	t.Helper()
	s := baseSections(t)
	before, after, ok := strings.Cut(s["workload"], "compose:\n")
	if !ok {
		t.Fatal("no compose in the base")
	}
	_, after, _ = strings.Cut(after, "images:\n")
	s["workload"] = before + play + "images:\n" + after
	return s
}

func playRun(t testing.TB, play string, lint bool) *run {
	t.Helper()
	r := runSections(t, playSections(t, play), lint)
	r.can = features{play: true}
	return r
}

// What a variable holds is text in the descriptor, whatever it looks like.
func TestTemplatesByValue(t *testing.T) {
	hostile := []string{
		"plain", "5", "true", "null", "~", "", "a: b", "- x", "{a: b}", "[x]", "{{ .Env.A }}", "#x", "'", `"`, "a\nb: c\n", " x ", "*a", "&a", "!!int 5",
		"\u0085\u2028", "\x1b[2J", "\\n", "2026-11-27", "0x10", "<<", "---",
	}
	for _, v := range hostile {
		env := map[string]string{"V": v}
		r := rendering{run: playRun(t, "play: {}\n", false), env: env, unset: map[string]bool{}}
		n, yerr := parseYAML("workload", []byte("kind: Pod\nspec: {image: '{{ .Env.V }}', list: ['a{{.Env.V}}b', 7, keep]}\n"))
		if yerr != nil {
			t.Fatal(yerr)
		}
		for name, doc := range map[string]*node{"template": r.fill(root("x", "workload", n))} {
			b, err := dump(doc)
			if err != nil {
				t.Fatalf("%s: %q: %v", name, v, err)
			}
			back, yerr := parseYAML("workload", b)
			if yerr != nil {
				t.Fatalf("%s: %q: %v\n%s", name, v, yerr, b)
			}
			if diff := cmp.Diff(doc.value(), back.value()); diff != "" {
				t.Errorf("%s: %q: %s\n%s", name, v, diff, b)
			}
			switch name {
			case "template":
				want := map[string]any{"kind": "Pod", "spec": map[string]any{"image": v, "list": []any{"a" + v + "b", 7.0, "keep"}}}
				if diff := cmp.Diff(any(want), back.value()); diff != "" {
					t.Errorf("%q: %s", v, diff)
				}
			}
		}
		if n.get("spec").get("image").text != "{{ .Env.V }}" {
			t.Error("the contract itself was changed")
		}
	}
}

func encodedVector(t testing.TB, archive string) string {
	t.Helper()
	return (&badCase{New: "{archives/" + archive + "}"}).text(t, "")
}

// Templates that would not end soon are refused, not run.
func TestTemplatesEnd(t *testing.T) {
	for _, text := range []string{
		`{{ range 1000000000 }}{{ end }}`,
		`{{ $n := 1000000000 }}{{ range $n }}{{ end }}`,
		`{{ with 1000000000 }}{{ range . }}{{ end }}{{ end }}`,
		`{{ range len .Env.A }}{{ end }}`,
		`{{ range .Env }}{{ range $.Env }}{{ end }}{{ end }}`,
		`{{ range .Env }}x{{ else }}{{ range 1000000000 }}{{ end }}{{ end }}`,
		`{{ if .Env.NONE }}{{ else }}{{ range 1000000000 }}{{ end }}{{ end }}`,
		`{{ define "x" }}{{ template "x" }}{{ end }}{{ template "x" }}`,
		`{{ block "x" . }}{{ end }}`,
		`{{ printf "%999999d" 1 | len }}`,
		`{{ $x := print .Env.A .Env.A }}{{ $x = print $x $x }}`,
		`{{ if (js .Env.A) }}{{ end }}`,
		`{{ with html .Env.A }}{{ end }}`,
		strings.Repeat(`{{ range .Env }}{{ end }}`, maxRanges+1),
	} {
		_, err := playRun(t, "play:\n  templates:\n    - {apiVersion: v1, kind: Pod, x: '"+strings.ReplaceAll(text, "'", "''")+"'}\n", false).verdict()
		if e := hpl.From(err); err == nil || e.Code != "HPL15002E" || e.Path != "/workload/play/templates/0/#3" {
			t.Errorf("%.80s: %v", text, err)
		}
	}
}
