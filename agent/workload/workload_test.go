package workload

import (
	"bytes"
	"crypto/x509"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"hpcr/agent/hpl"
	"hpcr/agent/secret"
)

func TestPullAndStart(t *testing.T) {
	b := newBench(t)
	ref := b.hub.push(t, "team/app", busybox(t, nil))
	text := `
services:
  web:
    image: ` + ref + `
    network_mode: none
    environment: {GREETING: "hello there"}
    stop_grace_period: 1s
    command: ["sh", "-c", "echo $$GREETING $$FROM_IMAGE; echo oops >&2; exec sleep 1000"]
`
	asking, err := New(t.Context(), b.options(t, project(t, text, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := asking.Resolve(t.Context()); err != nil {
		t.Errorf("a good image does not resolve: %v", err)
	}
	b.down(t, asking)
	w := b.up(t, text)
	waitFor(t, "output", func() bool { return strings.Contains(b.out.get("web!"), "oops") })
	if got := b.out.get("web"); got != "hello there yes\n" {
		t.Errorf("output %q", got)
	}
	if d := w.services[0].def; w.opt.Auths != nil || w.opt.Project.Files != nil || d.Env != nil || d.Command != nil {
		t.Errorf("what has had its effect is kept: %d credentials, %v, %d arguments", len(w.opt.Auths), d.Env, len(d.Command))
	}
	st := w.Services()
	if len(st) != 1 || st[0].Phase != Running || st[0].Pid == 0 || !alive(st[0].Pid) {
		t.Errorf("state %+v", st)
	}
}

func TestPullRefusals(t *testing.T) {
	b := newBench(t)
	good := b.hub.push(t, "team/app", busybox(t, nil))
	foreign := b.hub.push(t, "team/other-arch", busybox(t, func(c *v1.ConfigFile) { c.Architecture = "riscv64" }))
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	digest := good[strings.Index(good, "@"):]
	stranger, _ := makeCert(t)
	for name, tt := range map[string]struct {
		image  string
		change func(*Options)
		want   string
	}{
		"unknown digest":       {image: b.hub.host + "/team/app@sha256:" + strings.Repeat("ab", 32), want: "does not know this digest"},
		"unknown name":         {image: b.hub.host + "/team/none" + digest, want: "does not know this digest"},
		"foreign CA":           {image: good, change: func(o *Options) { o.TLS.RootCAs = x509.NewCertPool(); o.TLS.RootCAs.AddCert(stranger) }, want: "unknown authority"},
		"other host name":      {image: strings.Replace(good, "127.0.0.1", "localhost", 1), want: "for another host name"},
		"wrong password":       {image: good, change: func(o *Options) { o.Auths[0].Password = secret.FromString("not-the-one") }, want: "refused access"},
		"password of another":  {image: good, change: func(o *Options) { o.Auths[0].Host = "registry.example.com" }, want: "refused access"},
		"nobody listens":       {image: "127.0.0.1:1/app" + digest, want: "cannot be reached"},
		"name does not exist":  {image: "registry.invalid/app" + digest, want: "cannot be reached"},
		"no TLS":               {image: strings.TrimPrefix(plain.URL, "http://") + "/app" + digest, want: "does not speak TLS"},
		"another architecture": {image: foreign, want: "no build for this machine's architecture"},
	} {
		t.Run(name, func(t *testing.T) {
			o := b.options(t, project(t, "services:\n  first: {image: '"+good+"'}\n  second: {image: '"+tt.image+"'}\n", nil))
			o.Project.Services = o.Project.Services[1:]
			if tt.change != nil {
				tt.change(&o)
			}
			_, err := Run(t.Context(), o)
			var e *hpl.Error
			if !errors.As(err, &e) || e.Code != "HPL06004E" || e.Path != "/workload/compose/services/#2/image" {
				t.Fatalf("got %v", err)
			}
			t.Run("before anything is pulled", func(t *testing.T) {
				if name == "another architecture" {
					return // the manifest alone does not tell
				}
				w, err := New(t.Context(), o)
				if err != nil {
					t.Fatal(err)
				}
				defer b.down(t, w)
				var early *hpl.Error
				if _, err := w.Resolve(t.Context()); !errors.As(err, &early) || early.Line() != e.Line() {
					t.Errorf("Resolve says %v, Pull %v", early, e)
				}
			})
			if !strings.Contains(e.Detail, tt.want) {
				t.Errorf("got %q (%v), want %q", e.Detail, e.Err, tt.want)
			}
			if strings.Contains(e.Line(), "127.0.0.1") || strings.Contains(e.Line(), "team") || strings.Contains(err.Error(), password) {
				t.Errorf("says too much: %v", err)
			}
		})
	}
}

// A registry, or somebody in its place, that answers with other bytes.
func TestLyingRegistry(t *testing.T) {
	hub := newHub(t)
	good := hub.push(t, "app", busybox(t, nil))
	other := busybox(t, func(c *v1.ConfigFile) { c.Config.Cmd = []string{"evil"} })
	hub.push(t, "evil", other)
	manifest, err := other.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	otherDigest, err := other.Digest()
	if err != nil {
		t.Fatal(err)
	}
	for name, mangle := range map[string]func(w http.ResponseWriter, r *http.Request) bool{
		"another manifest under our digest": func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				return false
			}
			w.Header().Set("Content-Type", "application/vnd.docker.distribution.manifest.v2+json")
			w.Header().Set("Content-Length", strconv.Itoa(len(manifest)))
			w.Header().Set("Docker-Content-Digest", good[strings.Index(good, "@")+1:])
			_, _ = w.Write(manifest)
			return true
		},
		"another manifest under its own digest": func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				return false
			}
			w.Header().Set("Content-Type", "application/vnd.docker.distribution.manifest.v2+json")
			w.Header().Set("Content-Length", strconv.Itoa(len(manifest)))
			w.Header().Set("Docker-Content-Digest", otherDigest.String())
			_, _ = w.Write(manifest)
			return true
		},
		"another layer": func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
				return false
			}
			rec := httptest.NewRecorder()
			hub.blobs.ServeHTTP(rec, r)
			body := rec.Body.Bytes()
			body[len(body)/2] ^= 1
			_, _ = w.Write(body)
			return true
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := &bench{daemon: newDaemon(t), hub: hub, out: &sink{text: map[string]*bytes.Buffer{}}}
			hub.mangl = mangle
			defer func() { hub.mangl = nil }()
			_, err := Run(t.Context(), b.options(t, project(t, "services: {a: {image: '"+good+"'}}", nil)))
			var e *hpl.Error
			if !errors.As(err, &e) || e.Code != "HPL06004E" {
				t.Fatalf("got %v", err)
			}
			t.Logf("%s (%v)", e.Detail, e.Err)
			if !strings.Contains(e.Detail, "other bytes") {
				t.Errorf("got %q (%v)", e.Detail, e.Err)
			}
		})
	}
}

// A redirect or a token server in clear would carry credentials in clear.
func TestNoPlainRedirect(t *testing.T) {
	b := newBench(t)
	good := b.hub.push(t, "app", busybox(t, nil))
	var seen atomic.Bool
	plain := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { seen.Store(true) }))
	defer plain.Close()
	b.hub.mangl = func(w http.ResponseWriter, r *http.Request) bool {
		http.Redirect(w, r, plain.URL+r.URL.Path, http.StatusTemporaryRedirect)
		return true
	}
	_, err := Run(t.Context(), b.options(t, project(t, "services: {a: {image: '"+good+"'}}", nil)))
	var e *hpl.Error
	if !errors.As(err, &e) || !strings.Contains(e.Detail, "only TLS") || seen.Load() {
		t.Fatalf("got %v, plain request seen: %v", err, seen.Load())
	}
}

func TestStartRefusals(t *testing.T) {
	b := newBench(t)
	ref := b.hub.push(t, "app", busybox(t, nil))
	for name, tt := range map[string]struct{ lines, path string }{
		"no such program":       {"command: [/not/there]", "/workload/compose/services/#1"},
		"no such user":          {"user: nobody-known", "/workload/compose/services/#1"},
		"no such device":        {"devices: [/dev/z90crypt]", "/workload/compose/services/#1"},
		"a missing bind source": {"volumes: [{type: bind, source: /nothing/here, target: /x, bind: {create_host_path: false}}]", "/workload/compose/services/#1"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Run(t.Context(), b.options(t, project(t, "services:\n  a:\n    image: "+ref+"\n    network_mode: none\n    "+tt.lines+"\n", nil)))
			var e *hpl.Error
			if !errors.As(err, &e) || e.Code != "HPL08004E" || e.Path != tt.path {
				t.Fatalf("got %v", err)
			}
			if _, err := os.Stat(b.dir + "/w/c1"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the failed container's folder is still there: %v", err)
			}
		})
	}
}

func TestRestartPolicies(t *testing.T) {
	b := newBench(t)
	ref := b.hub.push(t, "app", busybox(t, nil))
	w := b.up(t, `
x-base: &base {image: '`+ref+`', network_mode: none}
services:
  once: {<<: *base, command: [sh, -c, "echo once; exit 3"]}
  some: {<<: *base, restart: "on-failure:2", command: [sh, -c, "echo some; exit 3"]}
  fine: {<<: *base, restart: on-failure, command: [echo, fine]}
  ever: {<<: *base, restart: always, command: [echo, ever]}
`)
	waitFor(t, "restarts", func() bool {
		st := w.Services()
		return st[0].Phase == Exited && st[1].Phase == Exited && st[2].Phase == Exited && st[3].Restarts >= 3
	})
	st := w.Services()
	if st[0].ExitCode != 3 || st[0].Restarts != 0 || st[1].Restarts != 2 || st[2].Restarts != 0 || st[2].ExitCode != 0 {
		t.Errorf("states %+v", st)
	}
	if got := b.out.get("some"); got != "some\nsome\nsome\n" {
		t.Errorf("three runs said %q", got)
	}
}

func TestDependencies(t *testing.T) {
	b := newBench(t)
	ref := b.hub.push(t, "app", busybox(t, nil))
	w := b.up(t, `
x-base: &base {image: '`+ref+`', network_mode: none, stop_grace_period: 1s}
services:
  last:
    <<: *base
    command: [sh, -c, "cat /shared/*; exec sleep 1000"]
    volumes: ["shared:/shared"]
    depends_on: {prepare: {condition: service_completed_successfully}, steady: {condition: service_healthy}}
  prepare: {<<: *base, command: [sh, -c, "sleep 0.3; echo prepared > /shared/a"], volumes: ["shared:/shared"]}
  steady:
    <<: *base
    command: [sh, -c, "sleep 0.3; echo steady > /shared/b; exec sleep 1000"]
    volumes: ["shared:/shared"]
    healthcheck: {test: "cat /shared/b", interval: 100ms, retries: 50}
volumes: {shared: }
`)
	waitFor(t, "output", func() bool { return strings.Count(b.out.get("last"), "\n") == 2 })
	if got := b.out.get("last"); got != "prepared\nsteady\n" {
		t.Errorf("started too early: %q", got)
	}
	for _, s := range w.Services() {
		if s.Name == "steady" && s.Health != HealthHealthy {
			t.Errorf("health %q", s.Health)
		}
	}
}

func TestFailedDependency(t *testing.T) {
	b := newBench(t)
	ref := b.hub.push(t, "app", busybox(t, nil))
	for name, tt := range map[string]struct{ dependency, condition string }{
		"unhealthy": {"healthcheck: {test: [CMD, cat, /not/there], interval: 50ms, retries: 2}", "service_healthy"},
		"no check":  {"init: false", "service_healthy"},
		"ended":     {"command: [sh, -c, 'exit 1']", "service_completed_successfully"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Run(t.Context(), b.options(t, project(t, `
services:
  first: {image: '`+ref+`', network_mode: none, depends_on: {second: {condition: `+tt.condition+`}}}
  second:
    image: `+ref+`
    network_mode: none
    stop_grace_period: 100ms
    `+tt.dependency+`
`, nil)))
			var e *hpl.Error
			if !errors.As(err, &e) || e.Code != "HPL08004E" || e.Path != "/workload/compose/services/#1/depends_on" {
				t.Fatalf("got %v", err)
			}
		})
	}
}

func TestNetworks(t *testing.T) {
	b := newBench(t)
	ref := b.hub.push(t, "app", busybox(t, nil))
	o := b.options(t, project(t, `
services:
  web:
    image: `+ref+`
    container_name: the-web
    ports: ["8080:80", "127.0.0.1:53:53/udp"]
    networks: {front: {aliases: [www]}}
    extra_hosts: ["gate:host-gateway"]
    stop_grace_period: 100ms
    command: [sh, -c, "cat /etc/resolv.conf; grep -E 'gate|web' /etc/hosts; mkdir -p /tmp/w; echo a page > /tmp/w/index.html; exec httpd -f -p 80 -h /tmp/w -u 1234"]
  inner: {image: '`+ref+`', networks: [back], stop_grace_period: 100ms}
  alone: {image: '`+ref+`', network_mode: none, command: [sh, -c, "ip -o link | grep -c ."]}
  guest: {image: '`+ref+`', network_mode: host, command: [sh, -c, "cat /etc/resolv.conf; ip -o link | grep -c c1h1"]}
networks: {front: , back: {internal: true}}
`, nil))
	o.ResolvConf = []byte("nameserver 192.0.2.53\n")
	var wires []*wire
	o.NewBridge = func(internal bool) (Bridge, error) {
		w := &wire{t: t, internal: internal, next: byte(100 * len(wires)), asked: map[string][]string{}}
		wires = append(wires, w)
		return w, nil
	}
	w, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.down(t, w) })
	if len(wires) != 2 || wires[0].internal || !wires[1].internal {
		t.Fatalf("%d networks", len(wires))
	}
	if got := strings.Join(wires[0].asked["c1"], " "); got != "web the-web www 53:53/udp 8080:80/tcp" && got != "web the-web www 8080:80/tcp 53:53/udp" {
		t.Errorf("asked for %q", got)
	}
	var page string
	waitFor(t, "the page", func() bool {
		resp, err := http.Get("http://10.77.1.2/index.html")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		page = string(text)
		return err == nil
	})
	http.DefaultClient.CloseIdleConnections()
	if page != "a page\n" {
		t.Errorf("page %q", page)
	}
	waitFor(t, "outputs", func() bool { return b.out.get("alone") != "" && strings.Count(b.out.get("guest"), "\n") == 2 })
	if got := b.out.get("web"); got != "nameserver 10.77.0.1\n10.77.1.2\tweb\n10.77.0.1\tgate\n" {
		t.Errorf("web sees %q", got)
	}
	if got := b.out.get("alone"); got != "1\n" {
		t.Errorf("a container alone sees %q links", got)
	}
	if got := b.out.get("guest"); got != "nameserver 192.0.2.53\n1\n" {
		t.Errorf("a container on the guest's network sees %q", got)
	}
	b.down(t, w)
	if len(wires[0].asked) != 0 || !wires[0].closed || !wires[1].closed {
		t.Error("networks are left over")
	}
}
