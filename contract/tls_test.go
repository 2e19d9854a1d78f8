package contract

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"hpcr/agent/hpl"
)

const (
	workloadEndpoints = `x-hpcr:
  tls:
    ingress:
      - {name: site, listen: 8443, to: "web:8080", identity: shop, clientAuthority: staff, serverName: shop.example.com}
      - {name: open, listen: 8444, to: "web:8080"}
    egress:
      - {name: db, listen: 5432, to: "db.example.com:5433", authority: corp, identity: shop}
      - {name: api, listen: 443, to: "[2001:db8::1]:443", authority: corp, serverName: api.example.com}
images:`
	envEndpoints = `x-hpcr:
  management: {listen: 9443, clientAuthority: staff}
  tls:
    identities:
      shop: {cert: {CRT}, key: {KEY}, renewable: true}
      spare: {cert: {CRT}, key: {KEY}}
    authorities: {staff: {CA}, corp: {CA}, other: {CA}}
cacerts:`
)

func withEndpoints(t *testing.T) map[string]string {
	t.Helper()
	s := baseSections(t)
	s["workload"] = strings.Replace(s["workload"], "images:", workloadEndpoints, 1)
	s["env"] = strings.Replace(s["env"], "cacerts:", strings.NewReplacer("{CRT}", encoded(t, "sign-valid.crt"), "{KEY}", encoded(t, "sign.key"), "{CA}", encoded(t, "ca.crt")).Replace(envEndpoints), 1)
	return s
}

// The two sections become one plan, which the wire keeps; what nothing uses
// does not reach the agent, and is said.
func TestEndpoints(t *testing.T) {
	r := runSections(t, withEndpoints(t), false)
	v, err := r.verdict()
	if err != nil {
		t.Fatal(err)
	}
	certs, err := certificates(pemBlocks(readFile(t, vectors, "keys", "ca.crt")))
	if err != nil {
		t.Fatal(err)
	}
	ca := certificatesPEM(certs)
	want := TLS{
		Ingress: []Ingress{
			{Name: "site", Listen: 8443, Service: "web", Port: 8080, Identity: "shop", ClientCA: ca, ServerName: "shop.example.com"},
			{Name: "open", Listen: 8444, Service: "web", Port: 8080},
		},
		Egress: []Egress{
			{Name: "db", Listen: 5432, Host: "db.example.com", Port: 5433, CA: ca, Identity: "shop", ServerName: "db.example.com"},
			{Name: "api", Listen: 443, Host: "2001:db8::1", Port: 443, CA: ca, ServerName: "api.example.com"},
		},
		Management: &Management{Listen: 9443, ClientCA: ca},
	}
	check := func(got TLS) {
		t.Helper()
		if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(TLS{}, "Identities")); diff != "" {
			t.Error(diff)
		}
		if len(got.Identities) != 1 || got.Identities[0].Name != "shop" || got.Identities[0].Path != "/env/x-hpcr/tls/identities/#1" || !got.Identities[0].Renewable ||
			!bytes.HasPrefix(got.Identities[0].Key.Bytes(), []byte("-----BEGIN PRIVATE KEY-----")) {
			t.Errorf("identities %+v", got.Identities)
		}
	}
	check(v.Plan().TLS)
	var paths []string
	for _, w := range v.Plan().Warnings {
		paths = append(paths, w.Path)
	}
	if got := strings.Join(paths, " "); got != "/env/x-hpcr/tls/identities/#2 /env/x-hpcr/tls/authorities/#3" {
		t.Errorf("warnings at %s", got)
	}
	var wire bytes.Buffer
	if err := v.Encode(&wire); err != nil {
		t.Fatal(err)
	}
	w, err := Decode(wire.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	check(w.Plan().TLS)
	w.Wipe()
	if n := w.Plan().TLS.Identities[0].Key.Len(); n != 0 {
		t.Errorf("%d bytes of a key are left", n)
	}
}

// An ingress of a pod goes to its first container, whose name the pod's
// address has.
func TestEndpointOfAPod(t *testing.T) {
	s := baseSections(t)
	s["workload"] = `type: workload
x-hpcr: {tls: {ingress: [{name: a, listen: 443, to: "shop:80"}, {name: b, listen: 444, to: "shop-side:81"}]}}
play:
  resources:
    - apiVersion: v1
      kind: Pod
      metadata: {name: shop}
      spec:
        containers:
          - {name: main, image: registry.example.com/a@sha256:` + strings.Repeat("a", 64) + `}
          - {name: side, image: registry.example.com/a@sha256:` + strings.Repeat("b", 64) + `}
`
	s["env"] = s["env"][:strings.Index(s["env"], "volumes:")]
	v, err := runSections(t, s, false).verdict()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range v.Plan().TLS.Ingress {
		if i.Service != v.Plan().Compose.Services[0].Name {
			t.Errorf("%s goes to %s", i.Name, i.Service)
		}
	}
}

// What only the two sections together, or the archive, can get wrong.
func TestEndpointsOfBothSections(t *testing.T) {
	host := withCompose(t, "docker-compose.yml", "services:\n  web: {image: 'x@sha256:"+strings.Repeat("b", 64)+"', network_mode: host}\n")
	host["workload"] = strings.Replace(host["workload"], "type: workload\n", "type: workload\nx-hpcr: {tls: {ingress: [{name: a, listen: 443, to: 'web:80'}]}}\n", 1)
	port := withEndpoints(t)
	port["env"] = strings.Replace(port["env"], "listen: 9443", "listen: 8444", 1)
	for path, s := range map[string]map[string]string{"/workload/x-hpcr/tls/ingress/0/to": host, "/env/x-hpcr/management/listen": port} {
		_, err := runSections(t, s, false).verdict()
		if e := hpl.From(err); err == nil || e.Code != schema || e.Path != path {
			t.Errorf("%v, want %s at %s", err, schema, path)
		}
	}
}

// Whoever judges a contract sees what it opens.
func TestExplainEndpoints(t *testing.T) {
	x := explain(t, string(userData(t, withEndpoints(t))))
	want := []ExplainedEndpoint{
		{"ingress", "site", 8443, "web:8080", "shop", "staff"}, {"ingress", "open", 8444, "web:8080", "", ""},
		{"egress", "db", 5432, "db.example.com:5433", "shop", "corp"}, {"egress", "api", 443, "[2001:db8::1]:443", "", "corp"},
	}
	if diff := cmp.Diff(want, x.Endpoints); diff != "" {
		t.Error(diff)
	}
}

// Without env, nothing is said of names in it.
func TestEndpointsWithoutEnv(t *testing.T) {
	s := withEndpoints(t)
	s["env"] = seal(t, s["env"])
	if rep := runSections(t, s, true).lintReport(); !rep.OK {
		t.Errorf("%+v", rep.Findings)
	}
}
