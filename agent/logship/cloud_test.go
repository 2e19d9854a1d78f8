package logship

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hpcr/agent/hpl"
	"hpcr/agent/secret"
)

const (
	apiKey   = "key+of/iam=1"
	logsPath = "/logs/v1/singles"
)

// ingestion behaves as IBM Cloud Logs' ingestion service and its IAM: a token for
// the key, messages for a token. answer may change what it says.
type ingestion struct {
	*httptest.Server
	mu       sync.Mutex
	tokens   int // given so far; the last is valid
	got      []map[string]any
	requests int
	answer   func(n int, w http.ResponseWriter, r *http.Request) bool // true = it has answered
}

func newIngestion(t *testing.T) *ingestion {
	s := &ingestion{}
	s.Server = httptest.NewUnstartedServer(s)
	s.Config.ErrorLog = nil
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func (s *ingestion) change(f func(n int, w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer, s.requests = f, 0
}

func (s *ingestion) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests++
	answer, n := s.answer, s.requests
	s.mu.Unlock()
	if answer != nil && answer(n, w, r) {
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil || r.Method != http.MethodPost {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch r.URL.Path {
	case "/identity/token":
		form, err := url.ParseQuery(string(body))
		if err != nil || form.Get("apikey") != apiKey || form.Get("grant_type") != "urn:ibm:params:oauth:grant-type:apikey" ||
			r.Header.Get("Content-Type") != "application/x-www-form-urlencoded" {
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprint(w, `{"errorCode":"BXNIM0415E","errorMessage":"Provided API key could not be found."}`)
			return
		}
		s.tokens++
		fmt.Fprintf(w, `{"access_token":"token-%d","refresh_token":"not_supported","token_type":"Bearer","expires_in":3600,"expiration":1700000000,"scope":"ibm openid"}`, s.tokens)
	case logsPath:
		if r.Header.Get("Authorization") != fmt.Sprintf("Bearer token-%d", s.tokens) || s.tokens == 0 {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		var entries []map[string]any
		if r.Header.Get("Content-Type") != "application/json" || len(body) > 2<<20 || json.Unmarshal(body, &entries) != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		s.got = append(s.got, entries...)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

func (s *ingestion) config(t *testing.T, key string) Config {
	t.Helper()
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	port := 0
	if _, err := fmt.Sscan(u.Port(), &port); err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	return Config{Host: "127.0.0.1", Port: port, Hostname: "guest-1",
		Cloud: &Cloud{IAM: s.URL, APIKey: secret.New([]byte(key)), TLS: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}}
}

// messages are the texts of what arrived, but for the shipper's own.
func (s *ingestion) messages() (out []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.got {
		if e["subsystemName"] != ownApp {
			out = append(out, e["text"].(map[string]any)["message"].(string))
		}
	}
	return out
}

func (s *ingestion) wait(t *testing.T, n int) []string {
	t.Helper()
	for end := time.Now().Add(time.Minute); len(s.messages()) < n; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d of %d messages arrived", len(s.messages()), n)
		}
	}
	return s.messages()
}

func TestCloudFields(t *testing.T) {
	s := newIngestion(t)
	ship := open(t, s.config(t, apiKey))
	defer ship.Close()
	ship.Source(Origin{Name: "agent", Facility: FacilityDaemon, App: "hpcr-agent", ProcID: "7"}).
		Send(Entry{Time: noon, Severity: SeverityNotice, MsgID: "boot.verdict", Text: []byte(`ready "now" ü`)})
	ship.Source(Origin{Name: "web", Facility: FacilityUser, App: "web", Foreign: true, Data: []Param{{"service", "web"}, {"image", `a"]\b`}, {"stream", "stderr"}}}).
		Send(Entry{Time: noon, Severity: SeverityError, MsgID: "stderr", Text: []byte("[not=\"data\"] HPL11000E\x1b[2J")})
	ship.Source(Origin{Name: "empty", App: "empty"}).Send(Entry{Time: noon, Severity: SeverityDebug})
	s.wait(t, 3)
	s.mu.Lock()
	defer s.mu.Unlock()
	base := map[string]any{"applicationName": "hpcr", "computerName": "guest-1", "timestamp": float64(noon.UnixMicro()) / 1000}
	with := func(subsystem string, severity float64, text map[string]any) map[string]any {
		out := map[string]any{"subsystemName": subsystem, "severity": severity, "text": text}
		for k, v := range base {
			out[k] = v
		}
		return out
	}
	want := []map[string]any{
		with("hpcr-agent", 3, map[string]any{"sequence": "2", "facility": "3", "process": "7", "event": "boot.verdict", "message": `ready "now" ü`}),
		with("web", 5, map[string]any{"sequence": "3", "facility": "1", "event": "stderr", "service": "web", "image": `a"]\b`, "stream": "stderr", "message": `[not="data"] \u0048PL11000E\x1b[2J`}),
		with("empty", 1, map[string]any{"sequence": "4", "facility": "0", "message": ""}),
	}
	if diff := cmp.Diff(want, s.got[1:]); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if text := s.got[0]["text"].(map[string]any); text["event"] != "log.probe" || text["sequence"] != "1" {
		t.Errorf("the first is %v", s.got[0])
	}
}

// TestCloudTroubles: whatever the service does for a while, every message
// arrives, in order; one that it took but did not say so may arrive twice.
func TestCloudTroubles(t *testing.T) {
	status := func(code int) func(int, http.ResponseWriter, *http.Request) bool {
		return func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n > 2 || r.URL.Path != logsPath {
				return false
			}
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(code)
			return true
		}
	}
	for name, tt := range map[string]struct {
		answer func(n int, w http.ResponseWriter, r *http.Request) bool
		renews bool // a new token is taken
	}{
		"busy":           {answer: status(http.StatusTooManyRequests)},
		"broken":         {answer: status(http.StatusInternalServerError)},
		"away":           {answer: status(http.StatusServiceUnavailable)},
		"forgets tokens": {answer: status(http.StatusUnauthorized), renews: true},
		"resets in the middle of a request": {answer: func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n > 2 || r.URL.Path != logsPath {
				return false
			}
			if _, err := io.ReadFull(r.Body, make([]byte, 10)); err != nil {
				return false
			}
			panic(http.ErrAbortHandler)
		}},
		"points elsewhere": {answer: func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n > 2 {
				return false
			}
			http.Redirect(w, r, "https://thief.example.com/", http.StatusTemporaryRedirect)
			return true
		}},
		"answers without end": {answer: func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n > 1 || r.URL.Path != logsPath {
				return false
			}
			for {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return true
				}
			}
		}},
		"has headers without end": {answer: func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n > 1 || r.URL.Path != logsPath {
				return false
			}
			w.Header().Set("X", strings.Repeat("x", 4*cloudHeader))
			return true
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newIngestion(t)
			ship := open(t, s.config(t, apiKey))
			defer ship.Close()
			web := ship.Source(Origin{Name: "web", App: "web"})
			s.change(tt.answer)
			const n = 200
			for i := range n {
				web.Send(Entry{Text: fmt.Appendf(nil, "n=%d", i)})
			}
			last := -1
			for _, m := range s.wait(t, n) {
				i := 0
				if _, err := fmt.Sscanf(m, "n=%d", &i); err != nil {
					t.Fatalf("%q: %v", m, err)
				}
				if i > last+1 {
					t.Fatalf("%d came after %d", i, last)
				}
				last = i
			}
			if st := ship.Stats(); st.Lost != 0 {
				t.Errorf("%+v", st)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if tt.renews != (s.tokens > 1) {
				t.Errorf("%d tokens were taken", s.tokens)
			}
		})
	}
}

// TestCloudRefuses: what the service will never take is counted, and the rest goes on.
func TestCloudRefuses(t *testing.T) {
	s := newIngestion(t)
	ship := open(t, s.config(t, apiKey))
	defer ship.Close()
	web := ship.Source(Origin{Name: "web", App: "web"})
	s.change(func(n int, w http.ResponseWriter, r *http.Request) bool {
		if n > 1 {
			return false
		}
		w.WriteHeader(http.StatusUnprocessableEntity)
		return true
	})
	web.Send(Entry{Text: []byte("poison")})
	waitStats(t, ship, "the refusal is counted", func(st Stats) bool { return st.Lost == 1 })
	web.Send(Entry{Text: []byte("after")})
	if got := s.wait(t, 1); len(got) != 1 || got[0] != "after" {
		t.Errorf("%q", got)
	}
	drain(t, ship)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.got {
		if text := e["text"].(map[string]any); text["event"] == "log.lost" && text["lost"] == "1" && text["source"] == "web" && strings.Contains(text["message"].(string), "HTTP status 422") {
			return
		}
	}
	t.Errorf("the loss is not told: %v", s.got)
}

// TestCloudRefusesAll: a service that takes nothing but the probe is not talked to
// without end.
func TestCloudRefusesAll(t *testing.T) {
	s := newIngestion(t)
	ship := open(t, s.config(t, apiKey))
	defer ship.Close()
	requests := make(chan bool, 1000)
	s.change(func(int, http.ResponseWriter, *http.Request) bool { return false })
	s.change(func(n int, w http.ResponseWriter, r *http.Request) bool {
		requests <- true
		w.WriteHeader(http.StatusBadRequest)
		return true
	})
	ship.Source(Origin{Name: "web", App: "web"}).Send(Entry{Text: []byte("x")})
	time.Sleep(2 * time.Second)
	if n := len(requests); n != 2 {
		t.Errorf("%d requests for one message and the record of its loss", n)
	}
}

func TestCloudProbe(t *testing.T) {
	only := func(path string, code int, body string) func(int, http.ResponseWriter, *http.Request) bool {
		return func(_ int, w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != path {
				return false
			}
			w.WriteHeader(code)
			fmt.Fprint(w, body)
			return true
		}
	}
	const iam = "/identity/token"
	for name, tt := range map[string]struct {
		key    string
		change func(*testing.T, *Config)
		answer func(int, http.ResponseWriter, *http.Request) bool
		path   string
		says   string
	}{
		"a wrong key":                      {key: "another", path: "iamApiKey", says: "IAM does not know this API key"},
		"no key":                           {key: "", path: "iamApiKey", says: "give the API key"},
		"a key without the role":           {answer: only(logsPath, 403, ""), path: "iamApiKey", says: "role Sender"},
		"a token that is refused":          {answer: only(logsPath, 401, ""), path: "iamApiKey", says: "refuses the API key"},
		"another web server":               {answer: only(logsPath, 404, "<html>"), path: "hostname", says: "no such address"},
		"a service that is down":           {answer: only(logsPath, 503, ""), path: "hostname", says: "HTTP status 503"},
		"messages that nobody wants":       {answer: only(logsPath, 400, ""), path: "hostname", says: "HTTP status 400"},
		"a redirect":                       {answer: only(logsPath, 302, ""), path: "hostname", says: "HTTP status 302"},
		"an IAM that is down":              {answer: only(iam, 500, ""), path: "iamApiKey", says: "IAM answers with HTTP status 500"},
		"an IAM that says no JSON":         {answer: only(iam, 200, "<html>"), path: "iamApiKey", says: "holds no token"},
		"an IAM with a token of two lines": {answer: only(iam, 200, `{"access_token":"a\r\nX: b"}`), path: "iamApiKey", says: "holds no token"},
		"a foreign certificate": {change: func(_ *testing.T, c *Config) { c.Cloud.TLS.RootCAs = x509.NewCertPool() }, path: "iamApiKey",
			says: "neither the system's nor in cacerts"},
		"a closed port": {change: func(t *testing.T, c *Config) { c.Port = freePort(t) }, path: "hostname", says: "cannot be reached"},
		"a closed port of IAM": {change: func(t *testing.T, c *Config) { c.Cloud.IAM = fmt.Sprintf("https://127.0.0.1:%d", freePort(t)) }, path: "iamApiKey",
			says: "IAM could not be used: it cannot be reached"},
		"an IAM without TLS": {change: func(_ *testing.T, c *Config) { c.Cloud.IAM = "http://127.0.0.1" }, path: "iam", says: "https URL"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newIngestion(t)
			s.change(tt.answer)
			key := tt.key
			if key == "" && name != "no key" {
				key = apiKey
			}
			c := s.config(t, key)
			if tt.change != nil {
				tt.change(t, &c)
			}
			ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
			defer stop()
			ship, err := Open(ctx, c, nil)
			if err == nil {
				ship.Close()
				t.Fatal("it is accepted")
			}
			e := hpl.From(err)
			if e.Code != "HPL01004E" || !strings.HasSuffix(e.Path, "/"+tt.path) || !strings.Contains(e.Error(), tt.says) {
				t.Errorf("%v at %s", e, e.Path)
			}
			for _, secret := range []string{key, "token-1"} {
				if secret != "" && strings.Contains(fmt.Sprintf("%v %+v", e, err), secret) {
					t.Errorf("%q shows %q", err, secret)
				}
			}
		})
	}
}

// TestCloudDoesNotFollow: a redirect gets neither key nor token elsewhere.
func TestCloudDoesNotFollow(t *testing.T) {
	thief := newIngestion(t)
	visits := make(chan string, 10)
	thief.change(func(_ int, w http.ResponseWriter, r *http.Request) bool {
		visits <- r.URL.Path
		return false
	})
	s := newIngestion(t)
	s.change(func(_ int, w http.ResponseWriter, r *http.Request) bool {
		http.Redirect(w, r, thief.URL+r.URL.Path, http.StatusPermanentRedirect)
		return true
	})
	if ship, err := Open(t.Context(), s.config(t, apiKey), nil); err == nil {
		ship.Close()
		t.Error("it is accepted")
	}
	if len(visits) > 0 {
		t.Errorf("the thief was asked for %s", <-visits)
	}
}

// TestKeptForCloud: messages that a disk kept have their fields.
func TestKeptForCloud(t *testing.T) {
	f := newForm(Origin{App: "web", Facility: FacilityUser, Data: []Param{{"service", "web"}}}, "guest")
	items, _ := f.render(Entry{Time: noon, Text: []byte("one")}, 0)
	items[0].seq = 9
	back, err := decodeSegment(encodeSegment(items))
	if err != nil {
		t.Fatal(err)
	}
	markEarlier(back[0])
	e := back[0].cloud()
	want := map[string]string{"sequence": "9", "facility": "1", "service": "web", "kept": "true", "message": "one"}
	if diff := cmp.Diff(want, e.Text); diff != "" || e.Subsystem != "web" {
		t.Errorf("%s\n%+v", diff, e)
	}
}

// FuzzCloud: answers of IAM never panic and never give a token that a header
// cannot hold; any message becomes JSON with its text.
func FuzzCloud(f *testing.F) {
	f.Add([]byte(`{"access_token":"t","expires_in":3600}`), "text", `a"]\`)
	f.Add([]byte(`{"access_token":"a\nb","expires_in":1e300}`), `[x y="z"] text`, "")
	f.Add([]byte(`[]`), "[", "]")
	f.Fuzz(func(t *testing.T, b []byte, text, value string) {
		if token, life, err := parseToken(b); err == nil {
			if strings.ContainsAny(token, "\r\n \x00") || token == "" || life < minTokenLife || life > maxTokenLife {
				t.Errorf("%q for %v", token, life)
			}
		}
		items, _ := newForm(Origin{App: value, Data: []Param{{"service", value}}, Foreign: true}, value).render(Entry{Text: []byte(text)}, 0)
		if body := cloudBody(items); !json.Valid(body) {
			t.Errorf("%q", body)
		}
		if len(items) == 1 {
			if got, want := items[0].cloud().Text["message"], string(appendText(nil, []byte(text), true)); got != want {
				t.Errorf("%q became %q", want, got)
			}
		}
		odd := &item{msg: bytes.Clone(b), cut: len(b) / 2}
		cloudBody([]*item{odd})
	})
}
