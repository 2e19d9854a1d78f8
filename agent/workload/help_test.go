package workload

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"hpcr/agent/secret"
	"hpcr/contract/archive"
	"hpcr/contract/compose"
	"hpcr/network"
)

// daemon is a containerd process that a test may kill and start again.
type daemon struct {
	dir, sock string
	cmd       *exec.Cmd
	stderr    *bytes.Buffer
}

func newDaemon(t *testing.T) *daemon {
	t.Helper()
	dir, err := os.MkdirTemp(lab, "d")
	if err != nil {
		t.Fatal(err)
	}
	return daemonIn(t, dir)
}

// newSmallStore is a daemon whose images lie on a tmpfs of so many bytes.
func newSmallStore(t *testing.T, size int) *daemon {
	t.Helper()
	dir, err := os.MkdirTemp(lab, "d")
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("small", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return daemonIn(t, dir)
}

func daemonIn(t *testing.T, dir string) *daemon {
	t.Helper()
	if err := os.Mkdir(dir+"/mnt", 0o755); err != nil { // a contract's volume
		t.Fatal(err)
	}
	d := &daemon{dir: dir, sock: filepath.Join(dir, "s/c.sock"), stderr: &bytes.Buffer{}}
	d.start(t)
	t.Cleanup(func() {
		d.kill(t)
		if t.Failed() {
			t.Logf("containerd: %s", d.stderr)
		}
		if left := processes(t, d.dir); len(left) > 0 {
			t.Errorf("processes are left over: %q", left)
		}
	})
	return d
}

func (d *daemon) start(t *testing.T) {
	t.Helper()
	d.cmd = exec.Command(filepath.Join(lab, "containerd"), "--root", d.dir+"/r", "--state", d.dir+"/s", "--address", d.sock)
	d.cmd.Stderr = d.stderr
	d.cmd.Env = append(os.Environ(), "PATH="+lab)
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

func (d *daemon) kill(t *testing.T) {
	t.Helper()
	if d.cmd == nil {
		return
	}
	if err := d.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	defer func() { d.cmd = nil }()
	var exit *exec.ExitError
	if err := d.cmd.Wait(); err != nil && !asExit(err, &exit) {
		t.Fatal(err)
	}
}

func asExit(err error, target **exec.ExitError) bool {
	e, ok := err.(*exec.ExitError)
	*target = e
	return ok
}

// hub is a registry on loopback with TLS by a CA of its own and basic auth.
type testHub struct {
	host  string
	ca    *x509.Certificate
	cert  tls.Certificate
	mangl func(w http.ResponseWriter, r *http.Request) bool // answers instead
	open  func(w http.ResponseWriter, r *http.Request) bool // likewise, without a password
	blobs http.Handler
}

const user, password = "puller", "t0ken-of-the-registry"

func newHub(t *testing.T, names ...string) *testHub {
	t.Helper()
	h := &testHub{}
	h.ca, h.cert = makeCert(t, names...)
	h.blobs = registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h.open != nil && h.open(w, r) {
			return
		}
		u, p, _ := r.BasicAuth()
		if u != user || p != password {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if h.mangl != nil && h.mangl(w, r) {
			return
		}
		h.blobs.ServeHTTP(w, r)
	}))
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{h.cert}}
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	h.host = srv.Listener.Addr().String()
	return h
}

func makeCert(t *testing.T, names ...string) (*x509.Certificate, tls.Certificate) {
	t.Helper()
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	caKey, leafKey := key(), key()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: names,
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	sign := func(c, by *x509.Certificate, pub *ecdsa.PublicKey) []byte {
		der, err := x509.CreateCertificate(rand.Reader, c, by, pub, caKey)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	caDER := sign(ca, ca, &caKey.PublicKey)
	parsed, err := x509.ParseCertificate(caDER)
	if err != nil {
		t.Fatal(err)
	}
	return parsed, tls.Certificate{Certificate: [][]byte{sign(leaf, parsed, &leafKey.PublicKey)}, PrivateKey: leafKey}
}

func (h *testHub) trust() *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(h.ca)
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
}

func (h *testHub) auths(t *testing.T) []Auth {
	t.Helper()
	a := Auth{Host: h.host, Username: secret.FromString(user), Password: secret.FromString(password)}
	t.Cleanup(func() { a.Username.Wipe(); a.Password.Wipe() })
	return []Auth{a}
}

type basic struct{ next http.RoundTripper }

func (b basic) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.SetBasicAuth(user, password)
	return b.next.RoundTrip(r)
}

// busybox is a small real image; change edits its configuration.
func busybox(t *testing.T, change func(*v1.ConfigFile)) v1.Image {
	t.Helper()
	bin, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("%v: install busybox-static with 'make deps'", err)
	}
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	put := func(h *tar.Header, data []byte) {
		h.Size = int64(len(data))
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"bin/", "etc/", "tmp/", "data/"} {
		put(&tar.Header{Name: d, Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	}
	put(&tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755}, bin)
	for _, a := range []string{"sh", "sleep", "cat", "id", "ls", "nc", "wget", "httpd", "echo", "env", "hostname", "stat", "grep", "touch", "mount", "mknod", "head", "yes", "nslookup", "ip"} {
		put(&tar.Header{Name: "bin/" + a, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}, nil)
	}
	put(&tar.Header{Name: "etc/passwd", Typeflag: tar.TypeReg, Mode: 0o644}, []byte("root:x:0:0::/:/bin/sh\napp:x:1234:1234::/data:/bin/sh\n"))
	put(&tar.Header{Name: "etc/group", Typeflag: tar.TypeReg, Mode: 0o644}, []byte("root:x:0:\napp:x:1234:\nextra:x:77:app\n"))
	put(&tar.Header{Name: "data/shipped", Typeflag: tar.TypeReg, Mode: 0o640, Uid: 1234, Gid: 77}, []byte("from the image\n"))
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		t.Fatal(err)
	}
	conf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	conf = conf.DeepCopy()
	conf.OS, conf.Architecture = "linux", runtime.GOARCH
	conf.Config.Cmd = []string{"sh", "-c", "echo ready; exec sleep 1000"}
	conf.Config.Env = []string{"PATH=/bin", "FROM_IMAGE=yes"}
	if change != nil {
		change(conf)
	}
	if img, err = mutate.ConfigFile(img, conf); err != nil {
		t.Fatal(err)
	}
	return img
}

// push stores an image under the tag 1 and returns its pinned reference.
func (h *testHub) push(t *testing.T, repo string, img v1.Image) string {
	t.Helper()
	h.put(t, h.host+"/"+repo+":1", img)
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return h.host + "/" + repo + ":1@" + digest.String()
}

func (h *testHub) put(t *testing.T, tag string, img v1.Image) {
	t.Helper()
	ref, err := name.NewTag(tag)
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{TLSClientConfig: h.trust()}
	defer tr.CloseIdleConnections()
	if err := remote.Write(ref, img, remote.WithTransport(basic{tr}), remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
}

// retag gives an image of the hub another tag.
func (h *testHub) retag(t *testing.T, repo, digest, tag string) {
	t.Helper()
	ref, err := name.NewDigest(h.host + "/" + repo + "@" + digest)
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{TLSClientConfig: h.trust()}
	defer tr.CloseIdleConnections()
	desc, err := remote.Get(ref, remote.WithTransport(basic{tr}), remote.WithContext(t.Context()))
	if err == nil {
		err = remote.Tag(ref.Context().Tag(tag), desc, remote.WithTransport(basic{tr}), remote.WithContext(t.Context()))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// digestOfTag is what the tag 1 names now.
func digestOfTag(t *testing.T, h *testHub, repo string) string {
	t.Helper()
	ref, err := name.NewTag(h.host + "/" + repo + ":1")
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{TLSClientConfig: h.trust()}
	defer tr.CloseIdleConnections()
	desc, err := remote.Head(ref, remote.WithTransport(basic{tr}), remote.WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	return desc.Digest.String()
}

// sink keeps what containers say.
type sink struct {
	mu   sync.Mutex
	text map[string]*bytes.Buffer
	max  int
	ends []string // streams that ended before their containers
}

func (s *sink) ended(stream Stream, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ends = append(s.ends, fmt.Sprint(stream.Service, " ", stream.Name(), " ", stream.Container, " ", stream.Image, " ", err))
}

func (s *sink) closed() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.ends)
}

func (s *sink) writer(stream Stream) io.Writer {
	service := stream.Service
	if stream.Stderr {
		service += "!"
	}
	return writerFunc(func(p []byte) (int, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.text[service] == nil {
			s.text[service] = &bytes.Buffer{}
		}
		s.max = max(s.max, len(p))
		return s.text[service].Write(p)
	})
}

func (s *sink) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.text)
}

func (s *sink) get(service string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.text[service] == nil {
		return ""
	}
	return s.text[service].String()
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// project loads compose text as the guest would.
func project(t *testing.T, text string, env map[string]string) *compose.Project {
	t.Helper()
	p, err := compose.Load([]archive.File{{Name: "docker-compose.yaml", Mode: 0o644, Data: []byte(text)}}, env, compose.Options{Privileged: true})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// bench is one test's surroundings.
type bench struct {
	*daemon
	hub *testHub
	out *sink
}

func newBench(t *testing.T) *bench {
	return &bench{daemon: newDaemon(t), hub: newHub(t), out: &sink{text: map[string]*bytes.Buffer{}}}
}

func (b *bench) options(t *testing.T, p *compose.Project) Options {
	return Options{
		Project: p, Auths: b.hub.auths(t), TLS: b.hub.trust(), Roots: []string{b.dir + "/mnt"}, Output: b.out.writer, StreamEnded: b.out.ended,
		Address: b.sock, Runc: filepath.Join(lab, "runc"),
		Store: b.dir, State: b.dir + "/w", Volumes: b.dir + "/v", Netns: b.dir + "/n", Log: testLog(t),
	}
}

// up runs a project and stops it when the test ends.
func (b *bench) up(t *testing.T, text string) *Workload {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	w, err := Run(ctx, b.options(t, project(t, text, map[string]string{"TOKEN": "hush\n"})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.down(t, w) })
	return w
}

func (b *bench) down(t *testing.T, w *Workload) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 30*time.Second)
	defer cancel()
	if err := w.Stop(ctx); err != nil {
		t.Errorf("stop: %v", err)
	}
}

func testLog(t *testing.T) *slog.Logger {
	var mu sync.Mutex
	over := false
	t.Cleanup(func() { mu.Lock(); over = true; mu.Unlock() })
	return slog.New(slog.NewTextHandler(writerFunc(func(p []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		if !over {
			t.Log(strings.TrimSuffix(string(p), "\n"))
		}
		return len(p), nil
	}), nil))
}

// wire is a network of one cable for each container, made by hand with ip. It
// records what it was asked for.
type wire struct {
	t        *testing.T
	internal bool
	next     byte
	asked    map[string][]string // id → names and ports
	closed   bool
}

func (w *wire) Attach(id, netns string, names []string, ports []network.Port) (netip.Addr, error) {
	w.next++
	addr := netip.AddrFrom4([4]byte{10, 77, w.next, 2})
	for _, p := range ports {
		names = append(names, fmt.Sprintf("%d:%d/%s", p.HostPort, p.ContainerPort, p.Proto))
	}
	w.asked[id] = names
	out, err := exec.Command("sh", "-ec", fmt.Sprintf(`
		ln -sfn %[1]s /run/netns/%[2]s-%[3]d
		ip link add %[2]sh%[3]d type veth peer name %[2]sp%[3]d
		ip link set %[2]sp%[3]d netns %[2]s-%[3]d name eth0
		ip addr add 10.77.%[3]d.1/24 dev %[2]sh%[3]d
		ip link set %[2]sh%[3]d up
		ip -n %[2]s-%[3]d addr add %[4]s/24 dev eth0
		ip -n %[2]s-%[3]d link set eth0 up
		ip -n %[2]s-%[3]d link set lo up`, netns, id, w.next, addr)).CombinedOutput()
	if err != nil {
		return addr, fmt.Errorf("%w: %s", err, out)
	}
	return addr, nil
}

func (w *wire) Detach(id string) error { delete(w.asked, id); return nil }
func (w *wire) Gateway() netip.Addr    { return netip.AddrFrom4([4]byte{10, 77, 0, 1}) }
func (w *wire) ResolvConf() []byte     { return []byte("nameserver 10.77.0.1\n") }
func (w *wire) Close() error           { w.closed = true; return nil }

func waitFor(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatalf("waited for nothing: %s", what)
}

func alive(pid uint32) bool { return syscall.Kill(int(pid), 0) == nil }
