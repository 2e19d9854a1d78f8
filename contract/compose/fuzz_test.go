package compose

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/dotenv"

	"hpcr/agent/hpl"
	"hpcr/contract/archive"
)

// FuzzLoad: no panic; every refusal is an *hpl.Error with a path below ours;
// every accepted image carries the digest that the text spells out.
func FuzzLoad(f *testing.F) {
	f.Add([]byte(full), []byte("A=b\n"), []byte(""))
	f.Add([]byte(service("ports: ['80:80']")), []byte(""), []byte("services: {}"))
	f.Add([]byte("services: {a: {image: 'x', build: .}}"), []byte("'"), []byte("{"))
	f.Add([]byte("include: [d/other.yml]\n"+service("extends: {file: d/other.yml, service: b}")), []byte("COMPOSE_PROFILES=p"),
		[]byte("services: {b: {image: 'x@"+digest+"', command: ['$$x'], profiles: [p]}}"))
	f.Fuzz(func(t *testing.T, text, env, other []byte) {
		p, err := Load([]archive.File{
			{Name: "docker-compose.yml", Data: text}, {Name: ".env", Data: env}, {Name: "d/other.yml", Data: other},
		}, map[string]string{"REGISTRY": "r", "TOKEN": "t"}, Options{Privileged: true})
		if err != nil {
			var e *hpl.Error
			if !errors.As(err, &e) || !strings.HasPrefix(e.Path, Root) {
				t.Fatalf("untyped error %v", err)
			}
			return
		}
		for _, s := range p.Services {
			if !strings.Contains(string(text)+string(other), strings.TrimPrefix(s.Image.Digest, "sha256:")) {
				t.Fatalf("digest %q is not in the text", s.Image.Digest)
			}
		}
	})
}

// FuzzFormatEnv: what is written into .env is what compose reads.
func FuzzFormatEnv(f *testing.F) {
	for _, v := range []string{"", "plain", "it's", `a\`, `\'`, "$HOME ${X}", "two\nlines", `"`, " # no comment", `\$`, "\r\n"} {
		f.Add(v)
	}
	f.Fuzz(func(t *testing.T, value string) {
		got, err := dotenv.Parse(strings.NewReader(string(FormatEnv(map[string]string{"A": value, "B": "b"}))))
		if err != nil || got["A"] != value || got["B"] != "b" {
			t.Fatalf("%q came back as %q: %v", value, got, err)
		}
	})
}

// The archive's hostile sibling never gets here: archive refuses it.
func TestHostileVector(t *testing.T) {
	packed, err := os.ReadFile("testdata/archives/compose-hostile.tgz")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := archive.UnpackGzip(packed); err == nil {
		t.Fatal("accepted links and names that climb")
	}
}
