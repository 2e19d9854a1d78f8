package contract

import (
	"encoding/base64"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hpcr/agent/secret"
)

// optional finds the commented-out fields of a starter.
var optional = regexp.MustCompile(`(?m)^( *)#(\S)`)

// fillStarter replaces what is left open by values of the vectors, as an
// author would: by the field's name.
func fillStarter(t testing.TB, text string) string {
	t.Helper()
	b64 := func(elem ...string) string { return base64.StdEncoding.EncodeToString(readFile(t, elem...)) }
	archive := "compose-plain.tgz"
	if strings.Contains(text, "\n  play:\n") {
		archive = "play.tgz"
	}
	for field, value := range map[string]string{
		"archive":              b64(vectors, "archives", archive),
		"hostname":             "logs.example.com",
		"server":               b64(vectors, "keys", "ca.crt"),
		"cert":                 b64("testdata/syslog", "client.crt"),
		"key":                  b64("testdata/syslog", "client.key"),
		"seed":                 "0123456789abcdef",
		"username":             "puller",
		"password":             "password",
		"publicKey":            "LS0tLS1CRUdJTg==",
		"image":                "registry.example.com/web@sha256:" + strings.Repeat("a", 64),
		"ca":                   b64(vectors, "keys", "ca.crt"),
		"attestationPublicKey": b64(vectors, "keys", "attest-user.pub"),
	} {
		text = regexp.MustCompile(`(?m)^(\s*(?:- )?)`+field+`: FILL-IN(\r?)$`).ReplaceAllString(text, "${1}"+field+": "+value+"${2}")
	}
	return strings.ReplaceAll(text, "- FILL-IN", "- "+b64(vectors, "keys", "sign.pub"))
}

func lintText(t testing.TB, text string, keys ...*secret.Secret) Report {
	t.Helper()
	rep, err := Lint(LintInput{UserData: []byte(text), Keys: keys, Policy: DefaultPolicy(false), Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

// A starter, untouched, gets exactly one error for each value that is to be
// filled in, at its line; filled in, it has nothing to find but what this
// version cannot do. That holds with every optional field in use as well.
func TestStarters(t *testing.T) {
	for _, kind := range []string{"compose", "play"} {
		for form, edit := range map[string]func(string) string{
			"as it is":             func(s string) string { return s },
			"with all its options": func(s string) string { return optional.ReplaceAllString(s, "$1$2") },
			"with CR LF line ends": func(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") },
		} {
			t.Run(kind+" "+form, func(t *testing.T) {
				b, known := Starter(kind)
				if !known {
					t.Fatal("no starter")
				}
				text := edit(string(b))
				rep := lintText(t, text)
				var got, want []int
				for i, line := range strings.Split(text, "\n") {
					if strings.HasSuffix(strings.TrimSuffix(line, "\r"), FillIn) && !strings.Contains(line, "#") && !strings.HasPrefix(line, "attestationPublicKey") {
						want = append(want, i+1)
					}
				}
				for _, f := range rep.Findings {
					if f.Severity == SeverityError && f.Path != "/attestationPublicKey" && !demand(f) {
						got = append(got, f.File.Line)
						if f.Message != "this value is still to be filled in" || f.Fix == "" || f.Fix == f.Message {
							t.Errorf("%+v", f)
						}
					}
				}
				if diff := cmp.Diff(asSet(want), asSet(got)); diff != "" || len(got) != len(want) || len(want) < 5 {
					t.Errorf("lines with errors (-want +got):\n%s", diff)
				}
				for _, f := range lintText(t, fillStarter(t, text)).Findings {
					switch {
					case f.Severity == SeverityNote && (f.Path == "/workload/play" || strings.Contains(f.Message, "variables")):
					case form == "with all its options" && demand(f):
					default:
						t.Errorf("filled in: %+v", f)
					}
				}
			})
		}
	}
	if _, known := Starter("kube"); known {
		t.Error("a starter for a workload that does not exist")
	}
}

// demand is what x-hpcr.require says of a contract that is plain and unsigned.
func demand(f Finding) bool {
	return strings.HasPrefix(f.Path, "/workload/x-hpcr/require") && f.Message != "this value is still to be filled in"
}

func asSet(lines []int) map[int]bool {
	m := map[int]bool{}
	for _, l := range lines {
		m[l] = true
	}
	return m
}

// A seed that is in print is none, whoever asks.
func TestGuestRefusesFillIn(t *testing.T) {
	s := baseSections(t)
	s["workload"] = strings.Replace(s["workload"], "workloadseed-0123456789", FillIn, 1)
	r := runSections(t, s, false)
	if _, err := r.verdict(); err == nil || r.firstError().HostPath != "/workload/volumes/#1/seed" {
		t.Errorf("%v", err)
	}
}
