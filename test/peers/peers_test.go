package peers

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newCA(t *testing.T, name string) *CA {
	t.Helper()
	ca, err := NewCA(name)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func TestRegistryServesOnlyWhoTrustsAndAuthenticates(t *testing.T) {
	ca := newCA(t, "registry authority")
	r, err := StartRegistry(ca, "puller", "pull-password")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}()
	image, err := WebImage("amd64", []byte("not really busybox"))
	if err != nil {
		t.Fatal(err)
	}
	index, err := Index(image)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := r.Push(t.Context(), "demo/web", index)
	if err != nil {
		t.Fatal(err)
	}
	if want := "demo/web@" + index.Digest(); ref != want {
		t.Errorf("pushed as %s, want %s", ref, want)
	}

	for name, tc := range map[string]struct {
		trust          *CA
		user, password string
		path           string
		status         int
		body           []byte
	}{
		"the index":          {ca, "puller", "pull-password", "/v2/demo/web/manifests/" + index.Digest(), 200, index.Manifest},
		"the image in it":    {ca, "puller", "pull-password", "/v2/demo/web/manifests/" + image.Digest(), 200, image.Manifest},
		"an unknown digest":  {ca, "puller", "pull-password", "/v2/demo/web/manifests/sha256:" + strings.Repeat("0", 64), 404, nil},
		"a wrong password":   {ca, "puller", "other-password", "/v2/", 401, nil},
		"another authority":  {newCA(t, "other authority"), "puller", "pull-password", "/v2/", 0, nil},
		"no user at all":     {ca, "", "", "/v2/", 401, nil},
		"the version's path": {ca, "puller", "pull-password", "/v2/", 200, nil},
	} {
		t.Run(name, func(t *testing.T) {
			client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: tc.trust.Pool()}, DisableKeepAlives: true}}
			req, err := http.NewRequest(http.MethodGet, "https://"+r.Host()+tc.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			if tc.user != "" {
				req.SetBasicAuth(tc.user, tc.password)
			}
			resp, err := client.Do(req)
			if tc.status == 0 {
				if err == nil {
					t.Fatalf("status %s from a server that the client does not trust", resp.Status)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if err := resp.Body.Close(); err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != tc.status {
				t.Errorf("status %s, want %d: %s", resp.Status, tc.status, body)
			}
			if tc.body != nil {
				if d := cmp.Diff(string(tc.body), string(body)); d != "" {
					t.Errorf("body (-want +got):\n%s", d)
				}
			}
		})
	}
	asked := strings.Join(r.Requests(), "\n")
	if !strings.Contains(asked, "401 GET /v2/") || !strings.Contains(asked, "200 GET /v2/demo/web/manifests/"+index.Digest()) {
		t.Errorf("the registry's own list lacks what it was asked:\n%s", asked)
	}
}

func TestRsyslogTakesMessagesOverMutualTLS(t *testing.T) {
	ca := newCA(t, "log authority")
	r, err := StartRsyslog(t.Context(), t.TempDir(), ca)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.Stop(); err != nil {
			t.Error(err)
		}
	}()
	client, err := ca.Client("guest")
	if err != nil {
		t.Fatal(err)
	}
	message := `<14>1 2026-11-23T12:00:00.000Z guest web 42 - - two
lines and a "quote"`
	if err := send(r, ca, &client, message); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	got, err := r.WaitFor(ctx, func(m string) bool { return strings.Contains(m, " web 42 ") })
	if err != nil {
		t.Fatal(err)
	}
	// One line of the file is one message: rsyslogd writes control
	// characters as octal numbers.
	if want := strings.ReplaceAll(message, "\n", "#012"); got != want {
		t.Errorf("arrived as %q, want %q", got, want)
	}

	// Without a certificate of its authority nothing may arrive; TLS 1.3
	// tells the client late, so the file is the judge.
	stranger, err := newCA(t, "other authority").Client("stranger")
	if err != nil {
		t.Fatal(err)
	}
	for name, id := range map[string]*Identity{"no certificate": nil, "a stranger's": &stranger} {
		if err := send(r, ca, id, "<14>1 - guest refused 1 - - "+name); err != nil {
			t.Logf("%s: %v", name, err)
		}
	}
	if err := send(r, ca, &client, "<14>1 - guest last 1 - - end"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.WaitFor(ctx, func(m string) bool { return strings.Contains(m, " last 1 ") }); err != nil {
		t.Fatal(err)
	}
	messages, err := r.Messages()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(strings.Join(messages, "\n"), "refused") {
		t.Errorf("a client without a certificate got through: %q", messages)
	}
}

// send delivers one message with octet counting (RFC 5425).
func send(r *Rsyslog, ca *CA, id *Identity, message string) error {
	conf := &tls.Config{RootCAs: ca.Pool()}
	if id != nil {
		pair, err := id.TLS()
		if err != nil {
			return err
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	c, err := tls.Dial("tcp", net.JoinHostPort(Loopback, strconv.Itoa(r.Port())), conf)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(c, "%d %s", len(message), message); err != nil {
		return err
	}
	return c.Close()
}

func TestWebImageIsReproducibleAndItsScriptRuns(t *testing.T) {
	one, err := WebImage("s390x", []byte("busybox"))
	if err != nil {
		t.Fatal(err)
	}
	two, err := WebImage("s390x", []byte("busybox"))
	if err != nil {
		t.Fatal(err)
	}
	if one.Digest() != two.Digest() {
		t.Errorf("two builds differ: %s, %s", one.Digest(), two.Digest())
	}
	other, err := WebImage("amd64", []byte("busybox"))
	if err != nil {
		t.Fatal(err)
	}
	if one.Digest() == other.Digest() {
		t.Error("images of two architectures have the same digest")
	}
	if out, err := exec.Command("sh", "-n", "web.sh").CombinedOutput(); err != nil {
		t.Errorf("web.sh: %v: %s", err, out)
	}
}

func TestArchiveIsWhatTarReads(t *testing.T) {
	archive, err := Archive(map[string]string{"docker-compose.yaml": "services: {}\n", "conf/site": "x"})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", "base64 -d | tar -tzf -")
	cmd.Stdin = strings.NewReader(archive)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if d := cmp.Diff("./\n./conf/site\n./docker-compose.yaml\n", string(out)); d != "" {
		t.Errorf("names in the archive (-want +got):\n%s", d)
	}
}

func TestContractSectionsAreStrings(t *testing.T) {
	text, err := Contract{Env: Env{Env: map[string]string{"PORT": "8080"}}}.YAML()
	if err != nil {
		t.Fatal(err)
	}
	sections, err := Sections(text)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"workload": "type: workload\n", "env": "env:\n  PORT: \"8080\"\ntype: env\n"}
	if d := cmp.Diff(want, sections); d != "" {
		t.Errorf("sections (-want +got):\n%s", d)
	}
}

func TestExampleFillsItsTemplates(t *testing.T) {
	values := map[string]string{}
	for _, name := range strings.Fields("REGISTRY REGISTRY_USER REGISTRY_PASSWORD REGISTRY_CA WORKLOAD_SEED ENV_SEED SYSLOG_CA SYSLOG_CERT SYSLOG_KEY") {
		values[name] = "the-" + strings.ToLower(name)
	}
	values["WEB_DIGEST"] = "sha256:" + strings.Repeat("0", 64)
	const dir = "../../docs/examples/web"
	if _, err := Example(dir, values); err == nil || !strings.Contains(err.Error(), "@SYSLOG_PORT@") {
		t.Errorf("a missing value passed: %v", err)
	}
	values["SYSLOG_PORT"] = "6514"
	text, err := Example(dir, values)
	if err != nil {
		t.Fatal(err)
	}
	sections, err := Sections(text)
	if err != nil {
		t.Fatal(err)
	}
	for section, want := range map[string]string{
		"workload": `password: "the-registry_password"`,
		"env":      "port: 6514",
	} {
		if !strings.Contains(sections[section], want) {
			t.Errorf("section %s lacks %q:\n%s", section, want, sections[section])
		}
	}
}
