//go:build vm

package network

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// What 'make bench' compares: the same clients, in turns, through our ingress
// and through nginx's stream module to the same server. Every part is a process
// of its own, so that a side's processor time is that side's.
const (
	benchTurns    = 5
	benchBulk     = 192 << 20 // octets, over benchStreams connections
	benchStreams  = 4
	benchRequests = 16_000 // over benchKept connections
	benchKept     = 16
	benchShakes   = 1200 // benchAtOnce under way
	benchAtOnce   = 8
	benchIdle     = 5000

	benchRole = "HPCR_NETWORK_BENCH_ROLE" // of TestBenchChild
)

const nginxConf = `load_module %[1]s;
daemon off; master_process on; worker_processes 2; worker_rlimit_nofile 20000;
error_log stderr warn; pid %[2]s/nginx.pid;
events { worker_connections 8192; }
stream {
  ssl_certificate %[2]s/site.crt; ssl_certificate_key %[2]s/site.key;
  ssl_protocols TLSv1.3; ssl_ecdh_curve X25519; ssl_session_tickets off; ssl_session_cache off;
  server { listen 127.0.0.1:8444 ssl backlog=4096; proxy_pass 127.0.0.1:8080; }
}
`

// TestBenchChild is one of the processes: our ingress, or the server behind
// both. It serves until its input ends.
func TestBenchChild(t *testing.T) {
	role, dir, _ := strings.Cut(os.Getenv(benchRole), ":")
	switch role {
	case "":
		return // nobody's child
	case "server":
		l, err := net.Listen("tcp4", "127.0.0.1:8080")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go serveBench(l)
	case "ingress":
		n, err := start(testLog(t))
		if err != nil {
			t.Fatal(err)
		}
		defer n.Close()
		n.names.add("c1", nil, addr("127.0.0.1"), []string{"server"})
		if err := n.Ingress(Ingress{Name: "bench", Listen: 8443, TLS: pki{t: t, dir: dir}.server("site", nil, ""), To: "server", Port: 8080}); err != nil {
			t.Fatal(err)
		}
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin) // its end is the parent's word
}

// serveBench answers each line, a number, with that many octets.
func serveBench(l net.Listener) {
	page := make([]byte, 1<<20)
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			line := make([]byte, 16)
			for {
				if _, err := io.ReadFull(c, line); err != nil {
					return
				}
				left, err := strconv.Atoi(strings.TrimSpace(string(line)))
				for ; err == nil && left > 0; left -= len(page) {
					_, err = c.Write(page[:min(left, len(page))])
				}
				if err != nil {
					return
				}
			}
		}()
	}
}

type benchSide struct {
	name, at string
	pid      int
	client   *tls.Config
}

// TestBenchTLS prints its figures as JSON.
func TestBenchTLS(t *testing.T) {
	if _, err := start(testLog(t)); err != nil { // the loopback
		t.Fatal(err)
	}
	p := newPKI(t)
	p.issue("site", "DNS:shop.example", "serverAuth", 1)
	child(t, "server", p.dir)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(p.read("ca.crt"))
	client := func(curve tls.CurveID) *tls.Config {
		return &tls.Config{RootCAs: roots, ServerName: "shop.example", MinVersion: tls.VersionTLS13, CurvePreferences: []tls.CurveID{curve}}
	}
	pid := child(t, "ingress", p.dir)
	sides := []*benchSide{
		{"ours", "127.0.0.1:8443", pid, client(tls.X25519)},
		{"nginx", "127.0.0.1:8444", nginx(t, p.dir), client(tls.X25519)},
		{"hybrid", "127.0.0.1:8443", pid, client(tls.X25519MLKEM768)},
	}
	for _, load := range []struct {
		name, unit string
		per        float64
		do         func(*benchSide) error
		wall, cpu  float64 // budgets of the ratios; 0 = none
		hybrid     bool
	}{
		{"tls: time for a MiB", "ms", benchBulk >> 20, bulk, 1, 0, false},
		{"tls: time of a request on a kept connection", "µs", benchRequests, kept, 1.2, 1.3, false}, // the aims are missed: docs/budgets.md
		{"tls: time of a new connection with a request", "µs", benchShakes, shakes, 1 / 0.9, 0, true},
	} {
		wall, cpu := map[string][]float64{}, map[string][]float64{}
		for turn := range benchTurns + 1 {
			for _, s := range sides {
				if s.name == "hybrid" && !load.hybrid {
					continue
				}
				before := cpuOf(t, s.pid)
				begin := time.Now()
				if err := load.do(s); err != nil {
					t.Fatalf("%s, %s: %v", load.name, s.name, err)
				}
				took, used := time.Since(begin), cpuOf(t, s.pid)-before
				if turn > 0 { // the first is to get warm
					scale := map[string]float64{"ms": 1e3, "µs": 1e6}[load.unit] / load.per
					wall[s.name], cpu[s.name] = append(wall[s.name], took.Seconds()*scale), append(cpu[s.name], used.Seconds()*scale)
				}
			}
		}
		figureOf(t, load.name, load.unit, wall["ours"], wall["nginx"], load.wall)
		figureOf(t, strings.Replace(load.name, "time", "processor time", 1), load.unit, cpu["ours"], cpu["nginx"], load.cpu)
		if load.hybrid {
			figureOf(t, load.name+", X25519MLKEM768 against nginx's X25519", load.unit, wall["hybrid"], wall["nginx"], 0)
		}
	}

	// Connections that nobody uses.
	var idle []net.Conn
	for range benchIdle {
		c, err := tls.Dial("tcp4", sides[0].at, sides[0].client)
		if err != nil {
			t.Fatalf("connection %d: %v", len(idle), err)
		}
		idle = append(idle, c)
		if _, err := request(c, 1); err != nil {
			t.Fatalf("connection %d: %v", len(idle), err)
		}
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
	if err != nil {
		t.Fatal(err)
	}
	say(t, map[string]any{"name": fmt.Sprintf("tls: resident memory with %d idle connections", benchIdle), "unit": "MiB", "value": kib / 1024, "most": 256})
	for _, c := range idle {
		c.(*tls.Conn).NetConn().Close()
	}
}

func figureOf(t *testing.T, name, unit string, ours, theirs []float64, most float64) {
	t.Helper()
	a, b := middleOf(ours), middleOf(theirs)
	say(t, map[string]any{"name": name, "unit": unit, "value": a, "peer": "nginx, stream", "peerValue": b, "ratio": a / b, "most": most})
}

func say(t *testing.T, figure map[string]any) {
	t.Helper()
	b, err := json.Marshal(figure)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("figure: %s\n", b)
}

func middleOf(all []float64) float64 {
	slices.Sort(all)
	return all[len(all)/2]
}

func request(c io.ReadWriter, octets int) (int64, error) {
	if _, err := fmt.Fprintf(c, "%15d\n", octets); err != nil {
		return 0, err
	}
	return io.CopyN(io.Discard, c, int64(octets))
}

// together runs f n times at once and returns what failed.
func together(n int, f func() error) error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { errs[i] = f() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (s *benchSide) with(f func(*tls.Conn) error) error {
	c, err := tls.Dial("tcp4", s.at, s.client)
	if err != nil {
		return err
	}
	defer c.Close()
	return f(c)
}

func bulk(s *benchSide) error {
	return together(benchStreams, func() error {
		return s.with(func(c *tls.Conn) error { _, err := request(c, benchBulk/benchStreams); return err })
	})
}

func kept(s *benchSide) error {
	return together(benchKept, func() error {
		return s.with(func(c *tls.Conn) error {
			for range benchRequests / benchKept {
				if _, err := request(c, 1024); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

func shakes(s *benchSide) error {
	return together(benchAtOnce, func() error {
		for range benchShakes / benchAtOnce {
			if err := s.with(func(c *tls.Conn) error { _, err := request(c, 1024); return err }); err != nil {
				return err
			}
		}
		return nil
	})
}

// cpuOf is what a process and its children have used.
func cpuOf(t *testing.T, pid int) (sum time.Duration) {
	t.Helper()
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range append(strings.Fields(string(children)), strconv.Itoa(pid)) {
		tasks, err := filepath.Glob("/proc/" + p + "/task/*/schedstat")
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			text, err := os.ReadFile(task)
			if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
				continue // a thread that has ended
			}
			word, _, _ := strings.Cut(string(text), " ")
			n, perr := strconv.ParseInt(word, 10, 64)
			if err := errors.Join(err, perr); err != nil {
				t.Fatal(err)
			}
			sum += time.Duration(n)
		}
	}
	return sum
}

// child starts this program again in a role and waits until it serves.
func child(t *testing.T, role, dir string) (pid int) {
	t.Helper()
	c := exec.Command("/proc/self/exe", "-test.run=^TestBenchChild$", "-test.timeout=30m")
	c.Env = append(os.Environ(), benchRole+"="+role+":"+dir)
	to, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	from, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		to.Close()
		rest, _ := io.ReadAll(from) // what it says of itself
		if err := c.Wait(); err != nil {
			t.Errorf("the %s: %v\n%s", role, err, rest)
		}
	})
	var said bytes.Buffer
	for one := make([]byte, 1); !bytes.HasSuffix(said.Bytes(), []byte("ready\n")); {
		if _, err := from.Read(one); err != nil {
			t.Fatalf("the %s does not start: %v: %s", role, err, said.String())
		}
		said.Write(one)
	}
	return c.Process.Pid
}

// nginx is the bench's to fetch: there is no way out of here.
func nginx(t *testing.T, dir string) (pid int) {
	t.Helper()
	program, module := os.Getenv("HPCR_BENCH_NGINX"), os.Getenv("HPCR_BENCH_NGINX_STREAM")
	if program == "" || module == "" {
		t.Fatal("'make bench' says where nginx is")
	}
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	conf := filepath.Join(dir, "nginx.conf")
	text := fmt.Appendf(nil, nginxConf, module, dir)
	if err := os.WriteFile(conf, text, 0o600); err != nil {
		t.Fatal(err)
	}
	c := exec.Command(program, "-p", dir, "-c", conf, "-e", "stderr")
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(c.Process.Signal(syscall.SIGTERM), c.Wait()); err != nil {
			t.Errorf("nginx: %v", err)
		}
	})
	at := netip.MustParseAddrPort("127.0.0.1:8444").String()
	for {
		conn, err := net.Dial("tcp4", at)
		if err == nil {
			conn.Close()
			return c.Process.Pid
		}
		select {
		case <-ctx.Done():
			t.Fatalf("nginx does not listen: %v", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
