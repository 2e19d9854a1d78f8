package contract

import (
	"bytes"
	"encoding/base64"
	"errors"
	"strings"
	"testing"

	"hpcr/agent/hpl"
	"hpcr/contract/trust"
)

func gpgKey(t testing.TB) string {
	return base64.StdEncoding.EncodeToString(readFile(t, "trust", "testdata", "owner.asc"))
}

// What explain says of an image is what the guest does: it refuses what is
// verified by nothing, and asks for a signature by the rule that is named. Lint
// and guest give one verdict.
func TestImageKeys(t *testing.T) {
	const (
		app    = "registry.example.com/team/app"
		digest = "@sha256:50d858e0985ecc7f60418aaf0cc5ab587f42c2570a884095a9e8ccacd0f6545c"
	)
	gpg := gpgKey(t)
	pem := base64.StdEncoding.EncodeToString(readFile(t, "trust", "testdata", "p256.pem"))
	weak := base64.StdEncoding.EncodeToString(readFile(t, "trust", "testdata", "short.pem"))
	private := base64.StdEncoding.EncodeToString(readFile(t, "trust", "testdata", "private.asc"))
	const junk = "LS0tLS1CRUdJTg=="
	tests := map[string]struct {
		pod    bool
		image  string
		rhs    string // reference, blank, key
		cosign string
		by     string
		code   hpl.Code
		path   string // of the refusal; "" = the image's
		note   bool
	}{
		"a digest":                                          {image: app + digest, by: ByDigest},
		"a tag":                                             {image: app + ":1", by: ByNothing, code: "HPL06010E"},
		"a tag and a key":                                   {image: app + ":1", rhs: app + " " + gpg, by: ByRHS},
		"no tag and a key":                                  {image: app, rhs: app + " " + gpg, by: ByRHS},
		"a tag and the key of another one":                  {image: app + ":1", rhs: app + ":100 " + gpg, by: ByNothing, code: "HPL06010E"},
		"a tag and the key of a neighbour":                  {image: app + "s:1", rhs: app + " " + gpg, by: ByNothing, code: "HPL06010E"},
		"a tag and a key that is none":                      {image: app + ":1", rhs: app + " " + junk, by: ByNothing, code: badImageKey, path: "/workload/images/rhs/#1/publicKey"},
		"a tag and a private key":                           {image: app + ":1", rhs: app + " " + private, by: ByNothing, code: badImageKey, path: "/workload/images/rhs/#1/publicKey"},
		"a digest and a key that is none":                   {image: app + digest, rhs: app + " " + junk, by: ByDigest, note: true},
		"a digest and a key":                                {image: app + digest, rhs: app + " " + gpg, by: ByDigest, note: true},
		"a digest and a key for something else":             {image: app + digest, rhs: app + "s " + gpg, by: ByDigest},
		"a cosign key":                                      {image: app + ":1", cosign: app + " " + pem, by: ByCosign},
		"a cosign key and a digest":                         {image: app + digest, cosign: app + " " + pem, by: ByCosign},
		"a weak cosign key and a digest":                    {image: app + digest, cosign: app + " " + weak, by: ByNothing, code: schema, path: "/workload/x-hpcr/images/cosign/#1/publicKey"},
		"a cosign key for all below":                        {image: app + ":1", cosign: "registry.example.com/* " + pem, by: ByCosign},
		"both keys":                                         {image: app + ":1", cosign: app + " " + pem, rhs: app + " " + gpg, by: ByRHS + ", " + ByCosign},
		"both keys and a digest":                            {image: app + digest, cosign: app + " " + pem, rhs: app + " " + gpg, by: ByCosign, note: true},
		"a variable and a key":                              {image: "${REGISTRY}/team/app:1", rhs: app + " " + gpg, by: ByRHS},
		"a variable for the digest":                         {image: app + "@${DIGEST}", rhs: app + " " + gpg, by: ByNothing, code: "HPL06010E"},
		"a variable for the digest, and a cosign key":       {image: app + "@${DIGEST}", cosign: app + " " + pem, by: ByCosign},
		"a pod's digest":                                    {pod: true, image: app + digest, by: ByDigest},
		"a pod's tag":                                       {pod: true, image: app + ":1", by: ByNothing, code: "HPL06010E"},
		"a pod's tag and a key":                             {pod: true, image: app + ":1", rhs: app + " " + gpg, by: ByRHS},
		"a pod's digest and a key":                          {pod: true, image: app + digest, rhs: app + " " + gpg, by: ByRHS},
		"a pod's digest and a key that is none":             {pod: true, image: app + digest, rhs: app + " " + junk, by: ByNothing, code: badImageKey, path: "/workload/images/rhs/#1/publicKey"},
		"a pod's tag and a key that is none":                {pod: true, image: app + ":1", rhs: app + " " + junk, by: ByNothing, code: badImageKey, path: "/workload/images/rhs/#1/publicKey"},
		"a pod's variable and a key":                        {pod: true, image: "{{ .Env.REGISTRY }}/team/app:1", rhs: app + " " + gpg, by: ByRHS},
		"a pod's variable for the digest, and a key":        {pod: true, image: app + "@{{ .Env.DIGEST }}", rhs: app + " " + gpg, by: ByRHS},
		"a pod's cosign key, and a variable for the digest": {pod: true, image: app + "@{{ .Env.DIGEST }}", cosign: app + ":2 " + pem, by: ByNothing, code: "HPL06010E"},
	}
	for sentence, tt := range tests {
		t.Run(sentence, func(t *testing.T) {
			place := "/workload/compose/services/#1/image"
			s := withCompose(t, "docker-compose.yml", "services:\n  web: {image: '"+tt.image+"'}\n")
			if tt.pod {
				place = "/workload/play/templates/0/spec/containers/0/image"
				s["workload"] = "type: workload\nplay:\n  templates:\n    - {apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: c, image: '" + tt.image + "'}]}}\n"
			} else {
				s["workload"] = "type: workload\n" + archiveOf(t, s["workload"])
			}
			for field, line := range map[string]string{"images:\n  rhs": tt.rhs, "x-hpcr:\n  images:\n    cosign": tt.cosign} {
				if ref, key, ok := strings.Cut(line, " "); ok {
					s["workload"] += field + ": {'" + ref + "': {publicKey: " + key + "}}\n"
				}
			}
			s["workload"] += "env: {REGISTRY: registry.example.com, DIGEST: '" + digest[1:] + "'}\n"
			s["env"] = s["env"][:strings.Index(s["env"], "volumes:")] + "cacerts: []\n"
			text := userData(t, s)
			if tt.path == "" {
				tt.path = place
			}

			x := explain(t, string(text))
			if len(x.Services) != 1 || x.Services[0].VerifiedBy != tt.by {
				t.Errorf("explain: %+v, want %s", x.Services, tt.by)
			}
			note := false
			var lint *Finding
			for i, f := range x.Warnings {
				note = note || f.Severity == SeverityNote && strings.HasSuffix(f.Path, "/publicKey")
				if f.Severity == SeverityError && lint == nil {
					lint = &x.Warnings[i]
				}
			}
			if note != tt.note {
				t.Errorf("a note on the key: %v, want %v: %+v", note, tt.note, x.Warnings)
			}
			r, err := newRun(nil, DefaultPolicy(false), now)
			if err != nil {
				t.Fatal(err)
			}
			r.files.UserData = text
			v, err := r.verdict()
			if tt.code == "" {
				if err != nil || lint != nil {
					t.Fatalf("guest %v, lint %+v", err, lint)
				}
				var wire bytes.Buffer
				if err := v.Encode(&wire); err != nil {
					t.Fatal(err)
				}
				back, err := Decode(wire.Bytes())
				if err != nil {
					t.Fatalf("over the wire: %v", err)
				}
				var by []string
				for _, rule := range back.Plan().Trust.For(back.Plan().Compose.Services[0].Signed()) {
					by = append(by, string(rule.Kind))
				}
				if got := strings.Join(by, ", "); got != tt.by && (tt.by != ByDigest || got != "") {
					t.Errorf("the agent verifies by %q, explain says %q", got, tt.by)
				}
				return
			}
			var e *hpl.Error
			if !errors.As(err, &e) || e.Code != tt.code || e.Path != tt.path {
				t.Errorf("guest: %v, want %s at %s", err, tt.code, tt.path)
			}
			if lint == nil || lint.Code != tt.code || lint.HostPath != tt.path {
				t.Errorf("lint: %+v", x.Warnings)
			}
		})
	}
}

// archiveOf is the compose key of a workload's text.
func archiveOf(t testing.TB, workload string) string {
	t.Helper()
	at := strings.Index(workload, "compose:")
	end := strings.Index(workload[at:], "images:")
	if at < 0 || end < 0 {
		t.Fatal("no archive")
	}
	return workload[at : at+end]
}

// The child's word about keys is checked again.
func TestDecodeImageKeys(t *testing.T) {
	good := trust.Rule{Kind: trust.RHS, Ref: "registry.example.com/team/app", Key: readFile(t, "trust", "testdata", "owner.asc")}
	for sentence, change := range map[string]func(*Plan){
		"an image that nothing vouches for": func(p *Plan) { p.Compose.Services[0].Image.Digest = "" },
		"an image with half a digest":       func(p *Plan) { p.Compose.Services[0].Image.Digest = "sha256:50" },
		"a key that is none":                func(p *Plan) { bad := good; bad.Key = []byte("x"); p.Trust = trust.Policy{bad} },
		"a reference that is none":          func(p *Plan) { bad := good; bad.Ref = "x y"; p.Trust = trust.Policy{bad} },
		"one reference twice":               func(p *Plan) { p.Trust = trust.Policy{good, good} },
		"a signature store without TLS":     func(p *Plan) { p.Lookaside = []Lookaside{{"a.example", "http://b.example/"}} },
		"a signature store of no registry":  func(p *Plan) { p.Lookaside = []Lookaside{{"a/b", "https://b.example/"}} },
	} {
		t.Run(sentence, func(t *testing.T) {
			r, err := newRun(nil, DefaultPolicy(false), now)
			if err != nil {
				t.Fatal(err)
			}
			r.files.UserData = userData(t, baseSections(t))
			v, err := r.verdict()
			if err != nil {
				t.Fatal(err)
			}
			change(v.Plan())
			var wire bytes.Buffer
			if err := v.Encode(&wire); err != nil {
				t.Fatal(err)
			}
			if _, err := Decode(wire.Bytes()); err == nil {
				t.Error("taken")
			}
		})
	}
}
