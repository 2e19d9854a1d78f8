package contract

import (
	"strings"
	"testing"
)

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

// warnings are changes of the base that a good contract may carry.
var warnings = map[string]struct{ section, old, new, path string }{
	"unknown key in workload":  {"workload", "images:", "image: x\nimages:", "/workload/image"},
	"leftover logDNA":          {"env", "  syslog:\n", "  logDNA: {}\n  syslog:\n", "/env/logging/logDNA"},
	"short old seed":           {"env", "seed: envseed-ABCDEFGHIJKLMNOP", "seed: short", "/env/volumes/data/seed"},
	"seed with a blank":        {"env", "seed: envseed-ABCDEFGHIJKLMNOP", "seed: envseed with blanks", "/env/volumes/data/seed"},
	"mask as a seed":           {"env", "seed: envseed-ABCDEFGHIJKLMNOP", "seed: '***************'", "/env/volumes/data/seed"},
	"floor for no volume":      {"workload", "images:", "x-hpcr: {volumes: {data: {existing: false, minGeneration: 2}}}\nimages:", "/workload/x-hpcr/volumes/data/existing"},
	"archive in several lines": {"workload", "archive: H4sI", "archive: |\n    H4sI\n    ", "/workload/compose/archive"},
}

func TestWarnings(t *testing.T) {
	base := baseSections(t)
	for name, tt := range warnings {
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
