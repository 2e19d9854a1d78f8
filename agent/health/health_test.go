package health

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestReport: the answer depends on the calls and the clock only.
func TestReport(t *testing.T) {
	tests := map[string]struct {
		do   func(*State)
		want Report
	}{
		"new":                   {func(*State) {}, Report{1, true, false, "boot", "", "release", 0}},
		"phase, after 69 s":     {func(s *State) { s.SetPhase("disks"); time.Sleep(69 * time.Second) }, Report{1, true, false, "disks", "", "release", 60}},
		"ready":                 {func(s *State) { s.SetPhase("ready"); s.SetReady() }, Report{1, true, true, "ready", "", "release", 0}},
		"failed":                {func(s *State) { s.SetFailed("HPL02003E") }, Report{1, true, false, "failed", "HPL02003E", "release", 0}},
		"failed, then stopping": {func(s *State) { s.SetFailed("HPL02003E"); s.SetPhase("shutdown") }, Report{1, true, false, "shutdown", "HPL02003E", "release", 0}},
		"stopping":              {func(s *State) { s.SetReady(); s.SetPhase("shutdown") }, Report{1, true, false, "shutdown", "", "release", 0}},
		"beating":               {func(s *State) { s.Beat(); time.Sleep(9 * time.Second) }, Report{1, true, false, "boot", "", "release", 0}},
		"beat missed":           {func(s *State) { s.Beat(); time.Sleep(11 * time.Second) }, Report{1, false, false, "boot", "", "release", 10}},
		"beat again":            {func(s *State) { s.Beat(); time.Sleep(11 * time.Second); s.Beat() }, Report{1, true, false, "boot", "", "release", 10}},
		"phase of an attacker":  {func(s *State) { s.SetPhase("\"canary\"") }, Report{1, true, false, "unknown", "", "release", 0}},
		"code of no catalogue":  {func(s *State) { s.SetFailed("canary") }, Report{1, true, false, "failed", "HPL11000E", "release", 0}},
		"a year":                {func(s *State) { time.Sleep(365 * 24 * time.Hour) }, Report{1, true, false, "boot", "", "release", 31536000}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := New("release")
				tt.do(s)
				got := s.report(time.Now())
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Error(diff)
				}
				body, err := got.body()
				if err != nil || len(body) != bodySize {
					t.Fatalf("%d octets, %v", len(body), err)
				}
				var back Report
				if err := json.Unmarshal(body, &back); err != nil || back != got {
					t.Errorf("%+v, %v", back, err)
				}
			})
		})
	}
}

func TestRateLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New("dev")
		count := func() (n int) {
			for s.admit(time.Now()) {
				n++
			}
			return n
		}
		if n := count(); n != perSecond {
			t.Errorf("burst of %d", n)
		}
		time.Sleep(300 * time.Millisecond)
		if n := count(); n != 3 {
			t.Errorf("%d after 0.3 s", n)
		}
		time.Sleep(time.Hour)
		if n := count(); n != perSecond {
			t.Errorf("%d after an hour", n)
		}
	})
}

// serve runs the endpoint on loopback for the test and returns its address.
func serve(t *testing.T, s *State) string {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return l.Addr().String()
}

// talk sends raw octets and returns all that comes back.
func talk(t *testing.T, addr, request string) string {
	t.Helper()
	c, err := net.Dial("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	if err != nil && len(b) == 0 {
		t.Fatal(err)
	}
	return string(b)
}

func TestAnswers(t *testing.T) {
	s := New("dev")
	s.SetPhase("disks")
	addr := serve(t, s)
	head := func(status, kind string) string {
		return "HTTP/1.1 " + status + "\r\nCache-Control: no-store\r\nContent-Length: 512\r\nContent-Type: " + kind + "\r\nConnection: close\r\n\r\n"
	}
	text := func(status, body string) string { return head(status, "text/plain") + string(pad([]byte(body))) }
	report := func(ready bool, phase string) string {
		return string(pad(fmt.Appendf(nil, `{"schema":1,"live":true,"ready":%t,"phase":"%s","code":"","flavour":"dev","uptimeSeconds":0}`, ready, phase)))
	}
	check := func(name, request, want string) {
		t.Helper()
		if diff := cmp.Diff(want, talk(t, addr, request)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	get := func(path string) string { return "GET " + path + " HTTP/1.1\r\nHost: x\r\n\r\n" }
	check("live", get("/livez"), text("200 OK", "ok"))
	check("not ready", get("/readyz"), text("503 Service Unavailable", "not ready"))
	check("report", get("/healthz"), head("503 Service Unavailable", "application/json")+report(false, "disks"))
	s.SetReady()
	check("ready", get("/readyz?verbose"), text("200 OK", "ok"))
	check("report of ready", get("/healthz"), head("200 OK", "application/json")+report(true, "ready"))
	check("HEAD", "HEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\n", head("200 OK", "application/json"))
	check("unknown", get("/v1/canary"), text("404 Not Found", "not found"))
	check("POST", "POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\ncanary", text("405 Method Not Allowed", "GET or HEAD only"))
	check("OPTIONS *", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", text("405 Method Not Allowed", "GET or HEAD only"))
	check("body", "GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\ncanary", text("400 Bad Request", "no body, please"))
	check("too many", get("/livez"), text("429 Too Many Requests", "too many requests"))
}

func TestServeTCP(t *testing.T) {
	s := New("dev")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.ServeTCP(ctx, "127.0.0.1:0") }()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	taken, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	if err := s.ServeTCP(t.Context(), taken.Addr().String()); err == nil {
		t.Error("a port in use is no error")
	}
}

// TestSlowClients: eight that say nothing keep the endpoint for two seconds,
// not longer; a ninth is then served.
func TestSlowClients(t *testing.T) {
	addr := serve(t, New("dev"))
	for range maxConnections {
		c, err := net.Dial("tcp4", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, "GET /li"); err != nil {
			t.Fatal(err)
		}
	}
	begin := time.Now()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	r, err := client.Get("http://" + addr + "/livez")
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	if took := time.Since(begin); r.StatusCode != 200 || took < headerLimit/2 || took > 3*headerLimit {
		t.Errorf("status %d after %v", r.StatusCode, took)
	}
}

func TestHugeHeader(t *testing.T) {
	addr := serve(t, New("dev"))
	got := talk(t, addr, "GET /livez HTTP/1.1\r\nHost: x\r\nX: "+strings.Repeat("canary", 2000))
	if !strings.HasPrefix(got, "HTTP/1.1 431 ") || strings.Contains(got, "canary") {
		t.Errorf("%.200q", got)
	}
}

func TestVsock(t *testing.T) {
	for cid, want := range map[uint32]bool{unix.VMADDR_CID_HOST: true, unix.VMADDR_CID_LOCAL: false, 0: false, 3: false, unix.VMADDR_CID_ANY: false} {
		if got := fromHost(&unix.SockaddrVM{CID: cid}); got != want {
			t.Errorf("CID %d: %v", cid, got)
		}
	}
	if fromHost(&unix.SockaddrInet4{}) {
		t.Error("an IP address is not the host")
	}
	l, err := listenVsock(unix.VMADDR_PORT_ANY)
	if errors.Is(err, ErrNoVsock) {
		if _, serr := os.Stat("/proc/sys/net/vsock"); serr == nil {
			t.Error(err)
		}
		return // the typed error is what the agent goes on with
	}
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { _, err := l.Accept(); ended <- err }()
	time.Sleep(20 * time.Millisecond)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Error("Close does not end Accept")
	}
}

// TestVsockConn: deadlines and addresses work on the file that stands for a
// vsock connection.
func TestVsockConn(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	other := os.NewFile(uintptr(fds[1]), "other")
	defer other.Close()
	var c net.Conn = &vsockConn{os.NewFile(uintptr(fds[0]), "vsock"), vsockAddr{unix.VMADDR_CID_ANY, 9080}, addrOf(&unix.SockaddrVM{CID: 2, Port: 77})}
	defer c.Close()
	if c.RemoteAddr().String() != "2:77" || c.RemoteAddr().Network() != "vsock" {
		t.Error(c.RemoteAddr())
	}
	if err := c.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
}

// oneConn is a listener of one connection.
type oneConn struct {
	c    chan net.Conn
	done chan struct{}
}

func (l oneConn) Accept() (net.Conn, error) {
	select {
	case c := <-l.c:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l oneConn) Close() error   { close(l.done); return nil }
func (l oneConn) Addr() net.Addr { return vsockAddr{} }

// golden is every line that may ever come back, net/http's own refusals
// included: constant texts, no octet of the request.
var golden = regexp.MustCompile(`^(HTTP/1\.[01] (200 OK|400 Bad Request|404 Not Found|405 Method Not Allowed|417 Expectation Failed|429 Too Many Requests|431 Request Header Fields Too Large|501 Not Implemented|503 Service Unavailable|505 HTTP Version Not Supported)(: ` + refusal + `)?` +
	`|HTTP/1\.1 100 Continue|Cache-Control: no-store|Content-Length: (512|0)|Content-Type: (text/plain|application/json|text/plain; charset=utf-8)|Connection: close|` +
	`|Date: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT` + // net/http's own, with 417 only
	`|(ok|not ready|not found|GET or HEAD only|no body, please|too many requests) +` +
	`|(400 Bad Request|431 Request Header Fields Too Large|501 Not Implemented|505 HTTP Version Not Supported)(: ` + refusal + `)?|` + refusal +
	`|\{"schema":1,"live":true,"ready":false,"phase":"disks","code":"","flavour":"release","uptimeSeconds":\d*0\} +)$`)

// refusal is what net/http says to a request that it does not take.
const refusal = `(missing required Host header|too many Host headers|malformed Host header|invalid header name|invalid header value|unsupported protocol version|Unsupported transfer encoding)`

// FuzzRaw: whatever octets a client sends, the answer is of the fixed
// vocabulary, and short.
func FuzzRaw(f *testing.F) {
	for _, s := range []string{
		"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", "GET /healthz HTTP/1.0\r\n\r\n", "HEAD / HTTP/1.1\r\nHost: \r\n\r\n",
		"POST /readyz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n", "\x16\x03\x01\x02", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"GET /livez HTTP/9.9\r\n\r\n", "GET /livez HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "GET /livez HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: canary\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, request []byte) {
		s := New("release")
		s.SetPhase("disks")
		client, server := net.Pipe()
		l := oneConn{make(chan net.Conn, 1), make(chan struct{})}
		l.c <- server
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Serve(ctx, l) }()
		go func() {
			client.Write(request) // the server may close before it has read all
			client.Write([]byte("\r\n\r\n"))
		}()
		if err := client.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		answer, _ := io.ReadAll(io.LimitReader(client, 64<<10)) // no answer at all is fine
		client.Close()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if len(answer) > 4096 {
			t.Errorf("%d octets", len(answer))
		}
		lines := bufio.NewScanner(bytes.NewReader(answer))
		for lines.Scan() {
			if !golden.MatchString(lines.Text()) {
				t.Errorf("%q", lines.Text())
			}
		}
	})
}
