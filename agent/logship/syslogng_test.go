package logship

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hpcr/agent/secret"
	"hpcr/test/peers"
)

// TestSyslogNG: another receiver than rsyslog reads the same fields, and
// everything of a few thousand lines.
func TestSyslogNG(t *testing.T) {
	ca, err := peers.NewCA("syslog-ng's")
	if err != nil {
		t.Fatal(err)
	}
	r, err := peers.StartSyslogNG(t.Context(), t.TempDir(), ca, os.Stderr)
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
	s := open(t, Config{Host: peers.Loopback, Port: r.Port, CA: ca.PEM, Cert: client.Cert, Key: secret.New(client.Key), Hostname: "guest-1"})
	web := s.Source(Origin{Name: "web", Facility: FacilityUser, App: "web", Foreign: true, Data: []Param{{"service", "web"}, {"image", `a"]\b`}}})
	web.Send(Entry{Severity: SeverityError, MsgID: "stderr", Text: []byte("ü\x1b[2J HPL11000E [x]")})
	const n = 5000
	for i := range n {
		web.Send(Entry{Severity: SeverityInfo, MsgID: "stdout", Text: fmt.Appendf(nil, "n=%d", i)})
	}
	drain(t, s)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	var got []string
	for end := time.Now().Add(30 * time.Second); len(got) < n+2 && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if got, err = r.Messages(); err != nil {
			t.Fatal(err)
		}
	}
	if len(got) != n+2 {
		t.Fatalf("%d of %d messages arrived", len(got), n+2)
	}
	want := []string{
		`46|guest-1|hpcr-logging|log.probe|[meta sequenceId="1"]|authentication probe`,
		`11|guest-1|web|stderr|[meta sequenceId="2"][hpcr@32473 service="web" image="a\"\]\\b"]|ü\x1b[2J \u0048PL11000E [x]`,
	}
	if diff := cmp.Diff(want, got[:2]); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	for i, line := range got[2:] {
		if !strings.HasSuffix(line, fmt.Sprintf("|n=%d", i)) {
			t.Fatalf("message %d: %q", i, line)
		}
	}
}
