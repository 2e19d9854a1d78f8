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
		for name, doc := range map[string]*node{"template": r.fill(root("x", "workload", n)), "config map": configMap(env)} {
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
			case "config map":
				if got := back.get("data").get("V"); !got.isString() || got.text != v {
					t.Errorf("%q: %+v", v, got)
				}
			}
		}
		if n.get("spec").get("image").text != "{{ .Env.V }}" {
			t.Error("the contract itself was changed")
		}
	}
}

func TestPlay(t *testing.T) {
	const pods = `play:
  resources:
    - {apiVersion: v1, kind: ConfigMap, metadata: {name: own}, data: {keep: '{{ .Env.C }}'}}
  templates:
    - apiVersion: v1
      kind: Pod
      metadata: {name: "{{ .Env.A }}"}
      spec: {note: '{{ if .Env.NONE }}x{{ else }}{{ range $k, $v := .Env }}{{ $k }}={{ $v }};{{ end }}{{ end }}'}
`
	r := playRun(t, pods, false)
	v, err := r.verdict()
	if err != nil {
		t.Fatal(err)
	}
	var got []any
	for _, d := range v.Plan().Play.Documents {
		n, yerr := parseYAML("play", d.Bytes())
		if yerr != nil {
			t.Fatal(yerr)
		}
		got = append(got, n.value())
	}
	m := func(pairs ...any) map[string]any {
		out := map[string]any{}
		for i := 0; i < len(pairs); i += 2 {
			out[pairs[i].(string)] = pairs[i+1]
		}
		return out
	}
	want := []any{
		m("apiVersion", "v1", "kind", "ConfigMap", "metadata", m("name", "contract.config.map"), "data", m("A", "w", "C", "x", "FROM_ENV", "e", "GREETING", "hello")),
		m("apiVersion", "v1", "kind", "ConfigMap", "metadata", m("name", "own"), "data", m("keep", "{{ .Env.C }}")),
		m("apiVersion", "v1", "kind", "Pod", "metadata", m("name", "w"), "spec", m("note", "A=w;C=x;FROM_ENV=e;GREETING=hello;")),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if len(r.findings) != 1 || r.findings[0].Severity != SeverityNote || r.findings[0].Path != "/workload/play/templates" {
		t.Errorf("the variable that nobody sets: %+v", r.findings)
	}
	first := v.Plan().Play.Documents[0]
	if v.Wipe(); first.Len() != 0 {
		t.Error("not wiped")
	}
	archived, err := playRun(t, "play:\n  archive: "+string(encodedVector(t, "play.tgz"))+"\n", false).verdict()
	if err != nil || len(archived.Plan().Play.Files) == 0 || len(archived.Plan().Play.Documents) != 1 {
		t.Errorf("an archive: %v", err)
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
