package contract

import (
	"encoding/base64"
	"strings"
	"testing"
)

// Each contract has the word HERE where lint's first error must point: in the
// section's own lines, and in the file around it.
func TestPlaces(t *testing.T) {
	const port = "type: env\nlogging:\n  syslog:\n    hostname: h\n    port: HERE\n"
	block := func(header, indent string) string {
		return header + "\n" + indent + strings.ReplaceAll(strings.TrimSuffix(port, "\n"), "\n", "\n"+indent) + "\n"
	}
	tests := map[string]struct {
		env  string
		file bool // the file's place is HERE's; else it is the value's
	}{
		"a literal block":                   {block("env: |", "  "), true},
		"one with a deep indent":            {block("env: |-", "       "), true},
		"one whose indent is said":          {block("env: |2", "  "), true},
		"one that begins with blank lines":  {strings.Replace(block("env: |", "  "), "|\n", "|\n\n\n", 1), true},
		"one with a comment behind the bar": {block("env: | # plain", "  "), true},
		"CR LF line ends":                   {strings.ReplaceAll(block("env: |", "  "), "\n", "\r\n"), true},
		"a quoted text":                     {"env: \"" + strings.ReplaceAll(port, "\n", `\n`) + "\"\n", false},
		"a folded block":                    {strings.ReplaceAll(block("env: >", "  "), "\n  ", "\n\n  "), false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			text := "# a comment\n" + tt.env
			var f *Finding
			for _, g := range lintText(t, text).Findings {
				if g.Path == "/env/logging/syslog/port" {
					f = &g
				}
			}
			if f == nil {
				t.Fatalf("no finding in %q", text)
			}
			if tt.file {
				if got := strings.Split(text, "\n")[f.File.Line-1][f.File.Column-1:]; !strings.HasPrefix(got, "HERE") {
					t.Errorf("the file's place %v is at %q", f.File, got)
				}
			} else if f.File.Line != 2 || f.File.Column != 6 {
				t.Errorf("the file's place is %v", f.File)
			}
			if f.Document != "env" || f.Line == 0 || f.Column != 11 {
				t.Errorf("the section's place is %s:%d:%d", f.Document, f.Line, f.Column)
			}
		})
	}
}

// Every finding on a bad contract has a place in the file, and one in its
// document.
func TestEveryFindingHasAPlace(t *testing.T) {
	for _, c := range loadBad(t) {
		r := c.build(t).run(t, true)
		lines := strings.Count(string(r.files.UserData), "\n") + 1
		for _, f := range r.lintReport().Findings {
			elsewhere := f.Document == "meta-data" || f.Document == "network-config"
			if !elsewhere && (f.File.Line < 1 || f.File.Line > lines || f.File.Column < 1) || f.Line < 1 || f.Column < 1 || f.Message == "" || f.Fix == "" || f.Document == "" {
				t.Errorf("%s: %+v of %d lines", c.Name, f, lines)
			}
		}
	}
}

// All that is wrong with a compose file is said at once, each at its place.
func TestAllComposeFindings(t *testing.T) {
	s := withCompose(t, "docker-compose.yml", `services:
  a:
    image: nginx
    build: .
  b:
    restart: always
  c:
    imgae: x
models: {m: {model: x}}
`)
	rep := lintText(t, string(userData(t, s)))
	type found struct {
		path string
		line int
	}
	got := map[found]bool{}
	for _, f := range rep.Findings {
		if f.Document != "compose" || f.Fix == "" || f.Column < 1 {
			t.Errorf("%+v", f)
		}
		got[found{f.Path, f.Line}] = true
	}
	for _, want := range []found{
		{"/workload/compose/services/a/image", 3}, {"/workload/compose/services/a/build", 4},
		{"/workload/compose/services/b/image", 6}, {"/workload/compose/services/c", 8},
		{"/workload/compose/models", 9},
	} {
		if !got[want] {
			t.Errorf("%v is missing in %v", want, got)
		}
	}
}

// What is inside a token has the token's place in the file.
func TestPlaceInToken(t *testing.T) {
	s := baseSections(t)
	text := "env: " + seal(t, strings.Replace(s["env"], "6514", "high", 1)) + "\nworkload: " + seal(t, s["workload"]) + "\n"
	rep := lintText(t, text, keyFile(t, "encrypt.key"))
	if len(rep.Findings) != 1 || rep.Findings[0].File != (Position{1, 6}) || rep.Findings[0].Line != 9 {
		t.Errorf("%+v", rep.Findings)
	}
	if strings.Contains(text, base64.StdEncoding.EncodeToString([]byte("high"))) {
		t.Error("not encrypted")
	}
}
