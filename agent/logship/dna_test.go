package logship

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"strings"
	"testing"

	"hpcr/agent/hpl"
	"hpcr/agent/secret"
)

const ingestionKey = "0123456789abcdef0123456789abcdef"

func dnaConfig(a *authority, port int) Config {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(a.pem)
	return Config{Host: "127.0.0.1", Port: port, Hostname: "guest-1",
		DNA: &DNA{Key: secret.New([]byte(ingestionKey)), Tags: []string{"blue", "a.b"}, TLS: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}}
}

// TestDNA: each message has the key, also after a break, when the caller's own
// copy is gone; nothing is lost or changed for it.
func TestDNA(t *testing.T) {
	a := newAuthority(t, "logs")
	r := newRsyslog(t, a, a.issue(t, nil))
	r.anon = true
	r.configure(t, a, a.issue(t, nil))
	r.start(t)
	c := dnaConfig(a, r.port)
	s := open(t, c)
	c.DNA.Key.Wipe()
	web := s.Source(Origin{Name: "web", Facility: FacilityUser, App: "web", Foreign: true, Data: []Param{{"service", "web"}}})
	web.Send(Entry{Severity: SeverityInfo, MsgID: "stdout", Text: []byte("n=1.")})
	r.waitLine(t, "n=1.")
	r.stop(t)
	web.Send(Entry{Severity: SeverityInfo, MsgID: "stdout", Text: []byte("n=2.")})
	web.Send(Entry{Severity: SeverityInfo, MsgID: "stdout", Text: []byte(strings.Repeat("long ", 3000))})
	web.Send(Entry{Severity: SeverityInfo, MsgID: "stdout", Text: []byte("n=3.")})
	r.start(t)
	r.waitLine(t, "n=3.")
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	r.stop(t)
	const mark = `|[logdna@48950 key="` + ingestionKey + `" tags="blue,a.b"][meta sequenceId="`
	for _, l := range r.lines(t) {
		if !strings.Contains(l, mark) {
			t.Errorf("no key in %.300q", l)
		}
	}
	if got, lost := arrived(t, r); len(got) != 3 || lost != 0 {
		t.Errorf("%v arrived, %d are counted as lost", got, lost)
	}
	if first := r.lines(t)[0]; !strings.HasPrefix(first, "46|guest-1|hpcr-logging|-|log.probe"+mark+`1"]|`) {
		t.Errorf("%q", first)
	}
}

func TestDNAProbe(t *testing.T) {
	a, other := newAuthority(t, "logs"), newAuthority(t, "other")
	r := newRsyslog(t, a, a.issue(t, nil))
	r.anon = true
	r.configure(t, a, a.issue(t, nil))
	r.start(t)
	for name, tt := range map[string]struct {
		change func(*Config)
		says   string
	}{
		"another authority": {func(c *Config) { c.DNA.TLS = dnaConfig(other, r.port).DNA.TLS }, "another authority"},
		"a closed port":     {func(c *Config) { c.Port = freePort(t) }, "cannot be reached"},
		"no key":            {func(c *Config) { c.DNA.Key = nil }, "ingestion key"},
	} {
		t.Run(name, func(t *testing.T) {
			c := dnaConfig(a, r.port)
			tt.change(&c)
			s, err := Open(t.Context(), c, nil)
			if err == nil {
				s.Close()
				t.Fatal("it is accepted")
			}
			e := hpl.From(err)
			if e.Code != "HPL01004E" || !strings.HasPrefix(e.Path, "/env/logging/logDNA/") || !strings.Contains(e.Error(), tt.says) {
				t.Errorf("%v at %s", e, e.Path)
			}
			if strings.Contains(fmt.Sprintf("%+v", err), ingestionKey) {
				t.Errorf("%v shows the key", err)
			}
		})
	}
}
