package contract

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hpcr/agent/secret"
)

func explain(t testing.TB, text string, keys ...*secret.Secret) *Explanation {
	t.Helper()
	x, err := Explain(LintInput{UserData: []byte(text), Keys: keys, Policy: DefaultPolicy(false), Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func asJSON(t testing.TB, x *Explanation) string {
	t.Helper()
	b, err := json.Marshal(x)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// The shape that scripts read: no field is missing or null, however little is
// known.
func TestExplainShape(t *testing.T) {
	sections := baseSections(t)
	for name, text := range map[string]string{
		"a whole contract": string(userData(t, sections)),
		"tokens":           string(userData(t, map[string]string{"workload": seal(t, sections["workload"]), "env": seal(t, sections["env"])})),
		"no YAML":          "[",
		"nothing":          "",
	} {
		var m map[string]any
		if err := json.Unmarshal([]byte(asJSON(t, explain(t, text))), &m); err != nil {
			t.Fatal(err)
		}
		for _, key := range []string{"services", "volumes", "ports", "environment", "warnings"} {
			if _, ok := m[key].([]any); !ok {
				t.Errorf("%s: %s is %v", name, key, m[key])
			}
		}
		if _, ok := m["logging"].(map[string]any); !ok {
			t.Errorf("%s: logging is %v", name, m["logging"])
		}
	}
}

func TestExplainCompose(t *testing.T) {
	const pinned = "registry.example.com/web:1.2@sha256:50d858e0985ecc7f60418aaf0cc5ab587f42c2570a884095a9e8ccacd0f6545c"
	s := withCompose(t, "docker-compose.yml", `services:
  web:
    image: `+pinned+`
    ports: ["8080:80", "127.0.0.1:5353:53/udp"]
    privileged: true
    environment: {GREETING: "${GREETING}"}
`)
	s["workload"] = "x-hpcr: {volumes: {data: {minGeneration: 2}}}\n" + s["workload"]
	tokens := map[string]string{"workload": seal(t, s["workload"]), "env": seal(t, s["env"])}
	key := keyFile(t, "encrypt.key")
	for form, x := range map[string]*Explanation{
		"plain":  explain(t, string(userData(t, s))),
		"tokens": explain(t, string(userData(t, tokens)), key),
	} {
		want := Explanation{
			Services:    []ExplainedService{{"web", pinned, ByDigest, []string{"privileged"}}},
			Ports:       []ExplainedPort{{"web", "", "8080", "80", "tcp"}, {"web", "127.0.0.1", "5353", "53", "udp"}},
			Volumes:     []ExplainedVolume{{"data", "/mnt/data", "ext4", false, true}, {"logs", "/mnt/logs", "ext4", true, false}},
			Environment: []string{"A", "C", "FROM_ENV", "GREETING"},
			Logging:     ExplainedLogging{"syslog", "logs.example.com", 6514},
			Registries:  []string{"10.0.2.2:5000", "registry.example.com:5000"},
			Signature:   ExplainedSignature{State: "none"},
			Warnings:    []Finding{},
			Sections:    x.Sections,
			Readable:    true,
		}
		if diff := cmp.Diff(want, *x, cmp.AllowUnexported(Finding{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", form, diff)
		}
		for _, sec := range x.Sections {
			if !sec.Looked || (sec.Form == "token") != (form == "tokens") || (sec.SHA256 != "") != (form == "tokens") {
				t.Errorf("%s: %+v", form, sec)
			}
		}
	}
	closed := explain(t, string(userData(t, tokens)))
	if !closed.Readable || len(closed.Sections) != 2 || closed.Sections[0].Looked || closed.Sections[1].Looked || len(closed.Warnings) != 2 {
		t.Errorf("without a key: %+v", closed)
	}
	mixed := explain(t, string(userData(t, map[string]string{"workload": tokens["workload"], "env": s["env"]})))
	if got := mixed.Environment; !slices.Equal(got, []string{"C"}) || mixed.Logging.Kind != "syslog" || len(mixed.Volumes) != 2 {
		t.Errorf("env alone: %+v", mixed)
	}
	if x := explain(t, string(userData(t, tokens)), keyFile(t, "other.key")); x.Readable {
		t.Error("a key that does not fit goes unnoticed")
	}
}

// What the guest would refuse is explained as far as it can be read.
func TestExplainRefusedCompose(t *testing.T) {
	s := withCompose(t, "docker-compose.yml", "services:\n  a: {image: nginx}\n  b: {image: 'x@sha256:"+strings.Repeat("b", 64)+"', build: .}\n")
	x := explain(t, string(userData(t, s)))
	want := []ExplainedService{{"a", "nginx", ByNothing, nil}, {"b", "x@sha256:" + strings.Repeat("b", 64), ByDigest, nil}}
	if diff := cmp.Diff(want, x.Services); diff != "" || len(x.Warnings) != 2 {
		t.Errorf("(-want +got):\n%s\n%+v", diff, x.Warnings)
	}
}

func TestExplainPlay(t *testing.T) {
	for file, want := range map[string][]ExplainedService{
		"workload-play-resources.yaml": {{"demo/main", "registry.example.com/team/web@sha256:50d858e0985ecc7f60418aaf0cc5ab587f42c2570a884095a9e8ccacd0f6545c", ByDigest, nil}},
		"workload-play-templates.yaml": {{"demo/main", "{{ .Env.REGISTRY }}/team/web@sha256:50d858e0985ecc7f60418aaf0cc5ab587f42c2570a884095a9e8ccacd0f6545c", ByDigest, nil}},
		"workload-play-archive.yaml":   {{"demo/main", "registry.example.com/team/web@sha256:50d858e0985ecc7f60418aaf0cc5ab587f42c2570a884095a9e8ccacd0f6545c", ByDigest, nil}},
	} {
		x := explain(t, string(readFile(t, vectors, "contracts", file)))
		if diff := cmp.Diff(want, x.Services); diff != "" {
			t.Errorf("%s (-want +got):\n%s", file, diff)
		}
	}
	s := baseSections(t)
	s["workload"] = `type: workload
images:
  rhs:
    registry.example.com/team/web:
      publicKey: ` + gpgKey(t) + `
play:
  resources:
    - apiVersion: v1
      kind: Pod
      metadata: {name: p}
      spec:
        initContainers: [{name: first, image: "registry.example.com/team/webs:1"}]
        containers:
          - name: web
            image: registry.example.com/team/web:1.2
            ports: [{containerPort: 80, hostPort: 8080, protocol: UDP, hostIP: 127.0.0.1}, {containerPort: 81}]
    - {apiVersion: v1, kind: ConfigMap, metadata: {name: c}, data: {password: hush}}
`
	x := explain(t, string(userData(t, s)))
	want := []ExplainedService{{"p/first", "registry.example.com/team/webs:1", ByNothing, nil}, {"p/web", "registry.example.com/team/web:1.2", ByRHS, nil}}
	if diff := cmp.Diff(want, x.Services); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]ExplainedPort{{"p/web", "127.0.0.1", "8080", "80", "udp"}}, x.Ports); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// everything has each kind of secret that a contract can hold.
func everything(t testing.TB) map[string]string {
	s := withCompose(t, "docker-compose.yml", `services:
  web:
    image: docker.io/library/x@sha256:50d858e0985ecc7f60418aaf0cc5ab587f42c2570a884095a9e8ccacd0f6545c
    command: [serve, --token, "CANARY-command"]
    environment: {LITERAL: CANARY-literal, FROM: "${GREETING}"}
    labels: {l: CANARY-label}
    secrets: [s]
secrets:
  s: {environment: A}
`)
	s["workload"] = strings.NewReplacer("work:word", "CANARY-password", "workloadseed-0000000000", "CANARY-previous-seed", "puller", "CANARY-user",
		"hello", "CANARY-variable", "A: w", "A: CANARY-secret").Replace(s["workload"])
	return s
}

// No value that may be a secret comes out: neither where it belongs, nor where
// it stands by mistake. The second part puts a canary in the place of each
// value of the contract in turn; mount points and the log host show, if they are such.
func TestExplainNeverTellsASecret(t *testing.T) {
	sections := everything(t)
	x := explain(t, string(userData(t, sections)))
	out := asJSON(t, x)
	if len(x.Services) != 1 || len(x.Warnings) != 0 {
		t.Fatalf("the contract is not good: %s", out)
	}
	for _, secret := range []string{"CANARY", "workloadseed", "envseed", "abc", "deployer", "PRIVATE", "MIGH"} {
		if strings.Contains(out, secret) {
			t.Errorf("%s is in the output:\n%s", secret, out)
		}
	}
	tried := 0
	for _, name := range []string{"workload", "env"} {
		n, yerr := parseYAML(name, []byte(sections[name]))
		if yerr != nil {
			t.Fatal(yerr)
		}
		leaves(n, "/"+name, func(path string, leaf *node) {
			old := *leaf
			for _, canary := range []string{"CANARY-1", "/CANARY/2", "CANARY: [ 3", "hyper-protect-basic.CANARY.4"} {
				leaf.text, leaf.tag = canary, "!!str"
				text, err := dumpString(n)
				if err != nil {
					t.Fatal(err)
				}
				broken := map[string]string{"workload": sections["workload"], "env": sections["env"]}
				broken[name] = text
				tried++
				onPurpose := strings.HasSuffix(path, "/mount") && validMount(canary) || path == "/env/logging/syslog/hostname" && validHost(canary)
				if out := asJSON(t, explain(t, string(userData(t, broken)))); strings.Contains(out, "CANARY") && !onPurpose {
					t.Errorf("%s = %q:\n%s", path, canary, out)
				}
			}
			*leaf = old
		})
	}
	if tried < 80 {
		t.Errorf("only %d places were tried", tried)
	}
}

func leaves(n *node, path string, visit func(string, *node)) {
	if n.kind == scalarNode {
		visit(path, n)
		return
	}
	for i, v := range n.vals {
		key := fmt.Sprint(i)
		if n.kind == mapNode {
			key = n.keys[i].text
		}
		leaves(v, path+"/"+key, visit)
	}
}

// Secrets that this version cannot use are none the less secrets.
func TestExplainUnsupportedSecrets(t *testing.T) {
	for _, file := range []string{"kms.yaml", "env-cryptopt.yaml", "workload-play-templates.yaml"} {
		out := asJSON(t, explain(t, string(readFile(t, vectors, "contracts", file)), keyFile(t, "encrypt.key")))
		for _, secret := range []string{"not-a-real-key", "0123456789abcdef", "bluemix", "envseed", "deployer"} {
			if strings.Contains(out, secret) {
				t.Errorf("%s: %s is in the output", file, secret)
			}
		}
	}
}

func TestExplainSignature(t *testing.T) {
	for file, want := range map[string]string{
		"signed-cert-b64.yaml": "valid", "signed-other-key.yaml": "invalid", "encrypted-both.yaml": "none", "signed-missing-key.yaml": "invalid",
	} {
		x := explain(t, string(readFile(t, vectors, "contracts", file)), keyFile(t, "encrypt.key"))
		if x.Signature.State != want || (x.Signature.NotAfter != nil) != (want == "valid") {
			t.Errorf("%s: %+v", file, x.Signature)
		}
	}
	if x := explain(t, string(readFile(t, vectors, "contracts", "signed-cert-b64.yaml"))); x.Signature.State != "unchecked" {
		t.Errorf("without a key: %+v", x.Signature)
	}
}

// Property: no panic; JSON comes out; every finding has a place inside the
// file.
func FuzzExplain(f *testing.F) {
	for _, kind := range []string{"compose", "play"} {
		starter, _ := Starter(kind)
		f.Add(string(starter))
		f.Add(fillStarter(f, string(starter)))
	}
	f.Add(string(readFile(f, vectors, "contracts", "workload-play-archive.yaml")))
	f.Add("workload: {type: workload, play: {resources: [{kind: Pod, spec: {containers: [a, {image: b, ports: x}]}}]}}\nenv: |2\n    type: env\n")
	f.Fuzz(func(t *testing.T, text string) {
		x := explain(t, text)
		asJSON(t, x)
		lines, _ := lastLine([]byte(text)) // YAML has more line ends than "\n"
		for _, finding := range x.Warnings {
			if finding.File.Line < 1 || finding.File.Line > lines || finding.File.Column < 1 {
				t.Fatalf("%+v of %d lines", finding, lines)
			}
		}
	})
}
