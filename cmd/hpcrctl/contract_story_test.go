package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// fillIn replaces what a starter leaves open, as its author would.
func fillIn(t testing.TB, text string) string {
	t.Helper()
	b64 := func(name string) string { return base64.StdEncoding.EncodeToString([]byte(readFileText(t, name))) }
	archive := "compose-plain.tgz"
	if strings.Contains(text, "\n  play:\n") {
		archive = "play.tgz"
	}
	const syslog = "../../contract/testdata/syslog/"
	for field, value := range map[string]string{
		"archive": b64(filepath.Join(vectors, "archives", archive)), "hostname": "logs.example.com",
		"server": b64(key("ca.crt")), "cert": b64(syslog + "client.crt"), "key": b64(syslog + "client.key"),
		"seed": "CANARY0123456789", "username": "CANARY-user", "password": "CANARY-password", "publicKey": b64("../../contract/trust/testdata/owner.asc"),
		"image": "registry.example.com/web@sha256:" + strings.Repeat("a", 64), "ca": b64(key("ca.crt")), "attestationPublicKey": b64(key("attest-user.pub")),
	} {
		text = regexp.MustCompile(`(?m)^(\s*(?:- )?)`+field+`: FILL-IN$`).ReplaceAllString(text, "${1}"+field+": "+value)
	}
	return strings.ReplaceAll(text, "- FILL-IN", "- "+b64(key("sign.pub")))
}

// From nothing to a contract that lint accepts, with every optional field of
// the starter in use.
func TestStarterStory(t *testing.T) {
	for _, kind := range []string{"compose", "play"} {
		t.Run(kind, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "contract.yaml")
			r := hpcrctl(t, "", "contract", "init", kind, "--out", file)
			if r.code != 0 || r.stdout != "" || !strings.Contains(r.stderr, "FILL-IN") {
				t.Fatalf("exit %d, stdout %q\n%s", r.code, r.stdout, r.stderr)
			}
			starter := readFileText(t, file)
			if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("mode %v, %v", info.Mode(), err)
			}
			if again := hpcrctl(t, "", "contract", "init", kind, "--out", file); again.code != 1 || readFileText(t, file) != starter {
				t.Errorf("overwritten, or exit %d", again.code)
			}
			if out := ok(t, "", "contract", "init", kind, "--out", "-"); out != starter || ok(t, "", "contract", "init", kind) != starter {
				t.Error("standard output is another starter")
			}
			// Untouched: one line for each FILL-IN, at its place in the file.
			lint := hpcrctl(t, "", "contract", "lint", file)
			if lint.code != 1 {
				t.Fatalf("exit %d", lint.code)
			}
			for i, line := range strings.Split(starter, "\n") {
				if name, open := strings.CutSuffix(line, ": FILL-IN"); open && !strings.Contains(line, "#") {
					place := fmt.Sprintf("%s:%d:%d: error HPL05001E: ", file, i+1, len(name)+3)
					if !strings.Contains(lint.stdout, place) {
						t.Errorf("%q is not in\n%s", place, lint.stdout)
					}
				}
			}
			full := fillIn(t, regexp.MustCompile(`(?m)^( *)#(\S)`).ReplaceAllString(starter, "$1$2"))
			signed := ok(t, full, "contract", "sign", "--signing-key", key("sign.key"), "--cert", key("encrypt.crt"), "-")
			if r := hpcrctl(t, signed, "contract", "lint", "--key", key("encrypt.key"), "-"); r.code != 0 || strings.Contains(r.stdout, "warning") {
				t.Errorf("exit %d\n%s", r.code, r.stdout)
			}
			sealed := ok(t, fillIn(t, starter), "contract", "encrypt", "--cert", key("encrypt.crt"), "-")
			want := textOf(fillIn(t, starter), "workload")
			if got := ok(t, sealed, "contract", "open", "--key", key("encrypt.key"), "--section", "workload", "-"); got != want {
				t.Errorf("opened:\n%q\nwant:\n%q", got, want)
			}
			for _, args := range [][]string{{"--json"}, {}} {
				out := ok(t, signed, append(append([]string{"contract", "explain", "--key", key("encrypt.key")}, args...), "-")...)
				if strings.Contains(out, "CANARY") || !strings.Contains(out, "GREETING") || !strings.Contains(out, "logs.example.com") || !strings.Contains(out, "/mnt/data") {
					t.Errorf("explained:\n%s", out)
				}
			}
		})
	}
	for _, args := range [][]string{{}, {"kube"}, {"compose", "play"}} {
		if r := hpcrctl(t, "", append([]string{"contract", "init"}, args...)...); r.code != 2 || r.stdout != "" {
			t.Errorf("init %v: exit %d", args, r.code)
		}
	}
	if r := hpcrctl(t, "", "contract", "init", "compose", "--out", "/does/not/exist"); r.code != 2 {
		t.Errorf("no folder: exit %d", r.code)
	}
}

// textOf takes a section's text out of a contract in literal blocks.
func textOf(contract, section string) string {
	_, rest, _ := strings.Cut("\n"+contract, "\n"+section+": |\n")
	var text strings.Builder
	for line := range strings.Lines(rest) {
		if line != "\n" && !strings.HasPrefix(line, "  ") {
			break
		}
		text.WriteString(strings.TrimPrefix(line, "  "))
	}
	return strings.TrimRight(text.String(), "\n") + "\n"
}

// toolPath is a folder with hpcrctl in it, for lines that the documents print.
func toolPath(t testing.TB) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	script := fmt.Sprintf("#!/bin/sh\n%s=1 exec '%s' \"$@\"\n", asTool, self)
	if err := os.WriteFile(filepath.Join(dir, "hpcrctl"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return "PATH=" + dir + ":" + os.Getenv("PATH")
}

// Provider and deployer, each with a folder of their own, type what the help
// and docs/operations.md say. Nobody but the image reads both halves.
func TestHandOverAsDocumented(t *testing.T) {
	documented := regexp.MustCompile(`(?m)^ +(provider|deployer) {3}(.*)$`)
	help := documented.FindAllStringSubmatch(ok(t, "", "contract", "--help"), -1)
	if len(help) != 3 || help[0][1] != "provider" {
		t.Fatalf("the help has %q", help)
	}
	operations := readFileText(t, "../../docs/operations.md")
	path := toolPath(t)
	folder := map[string]string{"provider": t.TempDir(), "deployer": t.TempDir()}
	put := func(who, name, text string) {
		if err := os.WriteFile(filepath.Join(folder[who], name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for who := range folder {
		put(who, "contract.crt", readKey(t, "encrypt.crt"))
	}
	starter := fillIn(t, ok(t, "", "contract", "init", "compose"))
	put("provider", "workload.yaml", textOf(starter, "workload"))
	put("deployer", "env.yaml", textOf(starter, "env"))
	put("deployer", "sign.key", readKey(t, "sign.key"))
	for _, step := range help {
		if !strings.Contains(operations, step[2]) {
			t.Errorf("docs/operations.md has not %q", step[2])
		}
		sh(t, folder[step[1]], step[2], path)
		if step[1] == "provider" {
			put("deployer", "workload.token", readFileText(t, filepath.Join(folder["provider"], "workload.token")))
		}
	}
	made := readFileText(t, filepath.Join(folder["deployer"], "user-data"))
	if r := hpcrctl(t, made, "contract", "lint", "--key", key("encrypt.key"), "-"); r.code != 0 || strings.Contains(r.stdout, "warning") {
		t.Errorf("exit %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	for section, want := range map[string]string{"workload": textOf(starter, "workload"), "env": textOf(starter, "env")} {
		if got := ok(t, made, "contract", "open", "--key", key("encrypt.key"), "--section", section, "-"); !strings.HasPrefix(got, want) {
			t.Errorf("%s:\n%s", section, got)
		}
	}
	if value(t, made, "workload") != readFileText(t, filepath.Join(folder["provider"], "workload.token")) {
		t.Error("the provider's token was changed")
	}
	// What the deployer can see of the provider's half, and the other way round.
	seen := ok(t, made, "contract", "explain", "-")
	if strings.Contains(seen, "GREETING") || strings.Contains(seen, "logs.example.com") || strings.Count(seen, "not looked at: give the key") != 2 {
		t.Errorf("without a key:\n%s", seen)
	}
	verify := `printf %s "$W$E" | openssl dgst -sha256 -verify <(openssl rsa -in sign.key -pubout) -signature <(printf %s "$SIG" | openssl enc -base64 -d -A)`
	sh(t, folder["deployer"], verify, "W="+value(t, made, "workload"), "E="+value(t, made, "env"), "SIG="+value(t, made, "envWorkloadSignature"))
}

func TestExplainCommand(t *testing.T) {
	good := goodContract(t)
	sealed := ok(t, good, "contract", "encrypt", "--cert", key("encrypt.crt"), "-")
	tests := map[string]struct {
		stdin string
		args  []string
		code  int
		says  string
	}{
		"a plain contract":               {good, nil, 0, "registry.example.com/team/web"},
		"with the key":                   {sealed, []string{"--key", key("encrypt.key")}, 0, "pinned by its digest"},
		"without a key":                  {sealed, nil, 0, "not looked at: give the key"},
		"with another key":               {sealed, []string{"--key", key("other.key")}, 1, "cannot be decrypted"},
		"with two keys":                  {sealed, []string{"--key", key("other.key"), "--key", key("encrypt.key")}, 0, "logs.example.com:6514"},
		"what no guest would accept":     {strings.Replace(good, "port: 6514", "port: high", 1), nil, 0, "this is not a port"},
		"what is no contract":            {"[", nil, 1, "not one YAML document"},
		"a file that does not exist":     {"", []string{"does-not-exist"}, 2, ""},
		"a key that is none":             {good, []string{"--key", key("encrypt.crt")}, 2, ""},
		"a name that would move cursors": {good + "\"x\\e[2J\": y\n", nil, 0, `"x\x1b[2J"`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"contract", "explain"}, tt.args...)
			if tt.code != 2 || len(tt.args) != 1 {
				args = append(args, "-")
			}
			r := hpcrctl(t, tt.stdin, args...)
			if r.code != tt.code || !strings.Contains(r.stdout, tt.says) || strings.Contains(r.stdout, "\x1b") {
				t.Errorf("exit %d, want %d and %q\n%s%s", r.code, tt.code, tt.says, r.stdout, r.stderr)
			}
			if tt.code == 2 {
				return
			}
			r = hpcrctl(t, tt.stdin, append(args, "--json")...)
			var x map[string]any
			if err := json.Unmarshal([]byte(r.stdout), &x); err != nil || r.code != tt.code || strings.Count(r.stdout, "\n") != 1 {
				t.Errorf("exit %d, %v\n%s", r.code, err, r.stdout)
			}
		})
	}
}

// A line of lint is one that compilers write.
func TestLintText(t *testing.T) {
	bad := strings.Replace(goodContract(t), "port: 6514", "port: high", 1)
	line := regexp.MustCompile(`^(.+):(\d+):(\d+): error HPL05001E: /env/logging/syslog/port: this is not a port: give .* \[env:5:11\]$`)
	for name, args := range map[string][]string{"<stdin>": {"-"}, "file": {write(t, bad)}} {
		r := hpcrctl(t, bad, append([]string{"contract", "lint"}, args...)...)
		m := line.FindStringSubmatch(strings.SplitN(r.stdout, "\n", 2)[0])
		if m == nil {
			t.Fatalf("exit %d\n%s", r.code, r.stdout)
		}
		if name == "<stdin>" && m[1] != name || name == "file" && m[1] != args[0] {
			t.Errorf("the file is %q", m[1])
		}
		at := slices.IndexFunc(strings.Split(bad, "\n"), func(l string) bool { return strings.Contains(l, "port: high") }) + 1
		if m[2] != fmt.Sprint(at) || m[3] != "13" {
			t.Errorf("the place is %s:%s, want line %d", m[2], m[3], at)
		}
	}
}

func TestContractCompletion(t *testing.T) {
	for args, want := range map[string]string{
		"contract init ":              "compose",
		"contract encrypt --section ": "attestationPublicKey",
		"contract encrypt --prefix ":  "contract-basic",
		"contract sign --prefix ":     "hyper-protect-basic",
		"contract open --section ":    "workload",
		"contract ":                   "explain",
	} {
		out := ok(t, "", append([]string{"__complete"}, strings.Split(args, " ")...)...)
		if !regexp.MustCompile(`(?m)^` + want + `\b`).MatchString(out) {
			t.Errorf("%q completes to\n%s", args, out)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if out := ok(t, "", "completion", shell); !strings.Contains(out, "hpcrctl") {
			t.Errorf("%s: %.200s", shell, out)
		}
	}
	for _, name := range []string{"init", "lint", "open", "encrypt", "sign", "explain"} {
		if help := ok(t, "", "contract", name, "--help"); !strings.Contains(help, "Examples:") {
			t.Errorf("%s has no examples", name)
		}
	}
}
