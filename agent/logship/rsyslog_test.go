package logship

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rsyslog is the documented receiver: Debian's rsyslogd with the gtls driver,
// x509/certvalid, mutual TLS.
type rsyslog struct {
	dir  string
	port int
	anon bool // clients need no certificate
	cmd  *exec.Cmd
	out  bytes.Buffer
}

func newRsyslog(t testing.TB, a *authority, server leaf) *rsyslog {
	t.Helper()
	if _, err := exec.LookPath("rsyslogd"); err != nil {
		t.Fatalf("%v: install the test tools with 'make deps'", err)
	}
	r := &rsyslog{dir: t.TempDir(), port: freePort(t)}
	r.configure(t, a, server)
	t.Cleanup(func() {
		r.stop(t)
		if t.Failed() {
			t.Logf("rsyslogd:\n%s", r.out.String())
		}
	})
	return r
}

func (r *rsyslog) configure(t testing.TB, a *authority, server leaf) {
	t.Helper()
	auth := "x509/certvalid"
	if r.anon {
		auth = "anon"
	}
	conf := fmt.Sprintf(`global(
  workDirectory="%[1]s"
  DefaultNetstreamDriver="gtls"
  DefaultNetstreamDriverCAFile="%[2]s"
  DefaultNetstreamDriverCertFile="%[3]s"
  DefaultNetstreamDriverKeyFile="%[4]s"
)
module(load="imtcp" StreamDriver.Name="gtls" StreamDriver.Mode="1" StreamDriver.AuthMode="%[6]s")
template(name="parsed" type="string" string="%%pri%%|%%hostname%%|%%app-name%%|%%procid%%|%%msgid%%|%%structured-data%%|%%msg%%\n")
input(type="imtcp" address="127.0.0.1" port="%[5]d" ruleset="remote")
ruleset(name="remote") { action(type="omfile" file="%[1]s/log" template="parsed") }
`, r.dir, file(t, r.dir, "ca.pem", a.pem), file(t, r.dir, "cert.pem", server.cert), file(t, r.dir, "key.pem", server.key), r.port, auth)
	file(t, r.dir, "conf", []byte(conf))
}

func (r *rsyslog) start(t testing.TB) {
	t.Helper()
	r.cmd = exec.Command("rsyslogd", "-n", "-f", filepath.Join(r.dir, "conf"), "-i", filepath.Join(r.dir, "pid"))
	r.cmd.Stdout, r.cmd.Stderr = &r.out, &r.out
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp", r.addr())
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("rsyslogd does not listen: %v", err)
		}
	}
}

func (r *rsyslog) addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(r.port)) }

func (r *rsyslog) stop(t testing.TB) {
	t.Helper()
	if r.cmd == nil {
		return
	}
	if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Errorf("stop rsyslogd: %v", err)
	}
	if err := r.cmd.Wait(); err != nil {
		t.Logf("rsyslogd: %v", err)
	}
	r.cmd = nil
}

func (r *rsyslog) lines(t *testing.T) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(r.dir, "log"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
}

// waitLine waits for a line with the text.
func (r *rsyslog) waitLine(t *testing.T, text string) string {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		for _, l := range r.lines(t) {
			if strings.Contains(l, text) {
				return l
			}
		}
	}
	t.Fatalf("rsyslogd got no line with %q; it has %d lines", text, len(r.lines(t)))
	return ""
}

func open(t testing.TB, c Config) *Shipper {
	t.Helper()
	s, err := Open(t.Context(), c, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func drain(t *testing.T, s *Shipper) {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	if err := s.Drain(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestRsyslog(t *testing.T) {
	a := newAuthority(t, "logs")
	r := newRsyslog(t, a, a.issue(t, nil))
	r.start(t)
	s := open(t, config(t, a, a.issue(t, nil), r.port))
	defer s.Close()
	s.Source(Origin{Name: "disk", Facility: FacilityDaemon, App: "hpcr-disk-mount", ProcID: "7"}).Send(Entry{Severity: SeverityWarning, MsgID: "HPL07003I", Text: []byte("mounted")})
	web := s.Source(Origin{Name: "web", Facility: FacilityUser, App: "web", Foreign: true, Data: []Param{{"service", "web"}, {"stream", "stdout"}}})
	web.Send(Entry{Severity: SeverityInfo, Text: []byte("first")})
	web.Send(Entry{Severity: SeverityInfo, Text: []byte("sec"), More: true})
	web.Send(Entry{Severity: SeverityInfo, Text: []byte("ond")})
	s.Source(Origin{Name: "evil", Facility: FacilityUser, App: "evil app", Foreign: true}).Send(Entry{Severity: SeverityInfo, Text: []byte("a\n<0>1 - fake\x1b[2J\x9b\x00 HPL11000E")})
	s.Source(Origin{Name: "kernel", App: "kernel"}).Send(Entry{Severity: SeverityInfo, Text: []byte("oops")})
	long := strings.Repeat("grüße ", 2900)
	s.Source(Origin{Name: "long", Facility: FacilityUser, App: "long"}).Send(Entry{Severity: SeverityInfo, Text: []byte(long)})
	drain(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	r.waitLine(t, `part="3" more="false"`)
	want := []string{
		`46|guest-1|hpcr-logging|-|log.probe|[meta sequenceId="1"]|authentication probe`,
		`28|guest-1|hpcr-disk-mount|7|HPL07003I|[meta sequenceId="2"]|mounted`,
		`14|guest-1|web|-|-|[meta sequenceId="3"][hpcr@32473 service="web" stream="stdout"]|first`,
		`14|guest-1|web|-|-|[meta sequenceId="4"][hpcr@32473 service="web" stream="stdout" part="1" more="true"]|sec`,
		`14|guest-1|web|-|-|[meta sequenceId="5"][hpcr@32473 service="web" stream="stdout" part="2" more="false"]|ond`,
		`14|guest-1|evil_app|-|-|[meta sequenceId="6"]|a\x0a<0>1 - fake\x1b[2J\x9b\x00 \u0048PL11000E`,
		`6|guest-1|kernel|-|-|[meta sequenceId="7"]|oops`,
	}
	got := r.lines(t)
	if len(got) != len(want)+3 {
		t.Fatalf("got %d lines:\n%.600s", len(got), strings.Join(got, "\n"))
	}
	for i, w := range want {
		if strings.Replace(got[i], "| ", "|", 1) != w {
			t.Errorf("line %d:\ngot  %q\nwant %q", i, got[i], w)
		}
	}
	var joined strings.Builder
	for i, line := range got[len(want):] {
		head := fmt.Sprintf(`14|guest-1|long|-|-|[meta sequenceId="%d"][hpcr@32473 part="%d" more="%v"]|`, 8+i, i+1, i < 2)
		rest, ok := strings.CutPrefix(line, head)
		if !ok {
			t.Fatalf("part %d: %.120q", i+1, line)
		}
		joined.WriteString(rest)
	}
	if joined.String() != long {
		t.Errorf("the parts do not make the whole: %d of %d octets", joined.Len(), len(long))
	}
}

var seqID = regexp.MustCompile(`meta sequenceId="(\d+)"`)

// TestServerRestart: what is sent while the server is away arrives, whole and
// in order; every number that is missing at the receiver is accounted for.
func TestServerRestart(t *testing.T) {
	a := newAuthority(t, "logs")
	r := newRsyslog(t, a, a.issue(t, nil))
	r.start(t)
	s := open(t, config(t, a, a.issue(t, nil), r.port))
	defer s.Close()
	n := 0
	web := s.Source(Origin{Name: "web", App: "web"})
	send := func(count int) {
		for range count {
			n++
			web.Send(Entry{Severity: SeverityInfo, Text: fmt.Appendf(nil, "message %d.", n)})
		}
	}
	send(500)
	drain(t, s)
	r.waitLine(t, "message 500.")
	send(100) // on their way while the server goes
	r.stop(t)
	send(5000)
	r.start(t)
	send(10)
	r.waitLine(t, "message 5610.")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	r.stop(t)
	texts, numbers := map[string]bool{}, map[int]bool{}
	highest := 0
	for _, l := range r.lines(t) {
		_, text, _ := strings.Cut(l, "|message ")
		texts[text] = true
		m := seqID.FindStringSubmatch(l)
		if m == nil {
			t.Fatalf("no number: %q", l)
		}
		number, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		numbers[number], highest = true, max(highest, number)
	}
	for i := 1; i <= n; i++ {
		if !texts[strconv.Itoa(i)+"."] {
			t.Errorf("message %d is lost", i)
		}
	}
	for i := 1; i <= highest; i++ {
		if !numbers[i] {
			t.Errorf("number %d is missing", i)
		}
	}
	r2 := strings.Join(r.lines(t), "\n")
	if !strings.Contains(r2, "|log.reconnected|") {
		t.Error("the reconnection is not told")
	}
}

// TestServerHangs: a server that stops reading, while its kernel goes on to
// acknowledge, and then dies, costs nothing.
func TestServerHangs(t *testing.T) {
	a := newAuthority(t, "logs")
	r := newRsyslog(t, a, a.issue(t, nil))
	r.start(t)
	s := open(t, config(t, a, a.issue(t, nil), r.port))
	defer s.Close()
	web := s.Source(Origin{Name: "web", App: "web"})
	web.Send(Entry{Text: []byte("before.")})
	r.waitLine(t, "before.")
	if err := r.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	const n = 60
	for i := range n {
		web.Send(Entry{Text: fmt.Appendf(nil, "while it hangs %d.", i)})
		time.Sleep(100 * time.Millisecond)
	}
	drain(t, s) // all of it is written
	if err := r.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	r.cmd.Wait()
	r.start(t)
	r.waitLine(t, "|log.reconnected|")
	got := strings.Join(r.lines(t), "\n")
	for i := range n {
		if !strings.Contains(got, fmt.Sprintf("while it hangs %d.", i)) {
			t.Errorf("message %d is lost", i)
		}
	}
	if st := s.Stats(); st.Repeated < n || st.Reconnects != 1 || st.Lost != 0 {
		t.Errorf("%+v", st)
	}
}
