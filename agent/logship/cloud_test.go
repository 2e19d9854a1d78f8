package logship

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hpcr/agent/hpl"
	"hpcr/agent/secret"
	"hpcr/test/peers"
)

const apiKey = "key+of/iam=1"

func newIngestion(t *testing.T) (*peers.Ingestion, *peers.CA) {
	t.Helper()
	ca, err := peers.NewCA("the ingestion's")
	if err != nil {
		t.Fatal(err)
	}
	s, err := peers.StartIngestion(ca, apiKey)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, ca
}

func address(s *peers.Ingestion) string { return fmt.Sprintf("https://127.0.0.1:%d", s.Port()) }

func cloudConfig(s *peers.Ingestion, ca *peers.CA, key string) Config {
	return Config{Host: "127.0.0.1", Port: s.Port(), Hostname: "guest-1",
		Cloud: &Cloud{IAM: address(s), APIKey: secret.New([]byte(key)), TLS: &tls.Config{RootCAs: ca.Pool(), MinVersion: tls.VersionTLS12}}}
}

// messages are the texts of what arrived, but for the shipper's own.
func messages(s *peers.Ingestion) (out []string) {
	for _, e := range s.Entries() {
		if e.Subsystem != ownApp {
			out = append(out, e.Text["message"])
		}
	}
	return out
}

func waitMessages(t *testing.T, s *peers.Ingestion, n int) []string {
	t.Helper()
	for end := time.Now().Add(time.Minute); len(messages(s)) < n; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d of %d messages arrived", len(messages(s)), n)
		}
	}
	return messages(s)
}

func TestCloudFields(t *testing.T) {
	s, ca := newIngestion(t)
	ship := open(t, cloudConfig(s, ca, apiKey))
	defer ship.Close()
	ship.Source(Origin{Name: "agent", Facility: FacilityDaemon, App: "hpcr-agent", ProcID: "7"}).
		Send(Entry{Time: noon, Severity: SeverityNotice, MsgID: "boot.verdict", Text: []byte(`ready "now" ü`)})
	ship.Source(Origin{Name: "web", Facility: FacilityUser, App: "web", Foreign: true, Data: []Param{{"service", "web"}, {"image", `a"]\b`}, {"stream", "stderr"}}}).
		Send(Entry{Time: noon, Severity: SeverityError, MsgID: "stderr", Text: []byte("[not=\"data\"] HPL11000E\x1b[2J")})
	ship.Source(Origin{Name: "empty", App: "empty"}).Send(Entry{Time: noon, Severity: SeverityDebug})
	waitMessages(t, s, 3)
	with := func(subsystem string, severity int, text map[string]string) peers.IngestionEntry {
		return peers.IngestionEntry{Application: "hpcr", Computer: "guest-1", Timestamp: float64(noon.UnixMicro()) / 1000, Subsystem: subsystem, Severity: severity, Text: text}
	}
	want := []peers.IngestionEntry{
		with("hpcr-agent", 3, map[string]string{"sequence": "2", "facility": "3", "process": "7", "event": "boot.verdict", "message": `ready "now" ü`}),
		with("web", 5, map[string]string{"sequence": "3", "facility": "1", "event": "stderr", "service": "web", "image": `a"]\b`, "stream": "stderr", "message": `[not="data"] \u0048PL11000E\x1b[2J`}),
		with("empty", 1, map[string]string{"sequence": "4", "facility": "0", "message": ""}),
	}
	got := s.Entries()
	if diff := cmp.Diff(want, got[1:]); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if text := got[0].Text; text["event"] != "log.probe" || text["sequence"] != "1" {
		t.Errorf("the first is %v", got[0])
	}
}

// TestCloudTroubles: whatever the service does for a while, every message
// arrives, in order; one that it took but did not say so may arrive twice.
func TestCloudTroubles(t *testing.T) {
	status := func(code int) func(int, http.ResponseWriter, *http.Request) bool {
		return func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n > 2 || r.URL.Path != peers.IngestionPath {
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
		"busy":   {answer: status(http.StatusTooManyRequests)},
		"broken": {answer: status(http.StatusInternalServerError)},
		"away":   {answer: status(http.StatusServiceUnavailable)},
		"has lost our role, which its owner gives back": {answer: status(http.StatusForbidden)},
		"has moved, and comes back":                     {answer: status(http.StatusNotFound)},
		"forgets tokens":                                {answer: status(http.StatusUnauthorized), renews: true},
		"forgets tokens and is away": {answer: func(n int, w http.ResponseWriter, r *http.Request) bool {
			switch {
			case n == 1:
				w.WriteHeader(http.StatusUnauthorized)
			case n < 5:
				w.WriteHeader(http.StatusServiceUnavailable)
			default:
				return false
			}
			return true
		}, renews: true},
		"resets in the middle of a request": {answer: func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n > 2 || r.URL.Path != peers.IngestionPath {
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
			if n > 1 || r.URL.Path != peers.IngestionPath {
				return false
			}
			for {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return true
				}
			}
		}},
		"has headers without end": {answer: func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n > 1 || r.URL.Path != peers.IngestionPath {
				return false
			}
			w.Header().Set("X", strings.Repeat("x", 4*cloudHeader))
			return true
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, ca := newIngestion(t)
			c := cloudConfig(s, ca, apiKey)
			ship := open(t, c)
			c.Cloud.APIKey.Wipe() // it was the caller's
			defer ship.Close()
			web := ship.Source(Origin{Name: "web", App: "web"})
			s.Change(tt.answer)
			const n = 200
			for i := range n {
				web.Send(Entry{Text: fmt.Appendf(nil, "n=%d", i)})
			}
			last := -1
			for _, m := range waitMessages(t, s, n) {
				i := 0
				if _, err := fmt.Sscanf(m, "n=%d", &i); err != nil {
					t.Fatalf("%q: %v", m, err)
				}
				if i > last+1 {
					t.Fatalf("%d came after %d", i, last)
				}
				last = i
			}
			drain(t, ship)
			if st := ship.Stats(); st.Lost != 0 {
				t.Errorf("%+v", st)
			}
			if n, highest := holes(t, s); n != 0 {
				t.Errorf("%d numbers up to %d never arrived, and nothing was lost", n, highest)
			}
			if n := s.Tokens(); tt.renews != (n > 1) {
				t.Errorf("%d tokens were taken", n)
			}
		})
	}
}

// holes counts the numbers that did not arrive.
func holes(t *testing.T, s *peers.Ingestion) (missing, highest int) {
	t.Helper()
	seen := map[int]bool{}
	for _, e := range s.Entries() {
		n, err := strconv.Atoi(e.Text["sequence"])
		if err != nil {
			t.Fatal(err)
		}
		seen[n], highest = true, max(highest, n)
	}
	return highest - len(seen), highest
}

// TestCloudRequestSize: no text makes a request of more than the 2 MB that the
// service takes; it would refuse all of it, other containers' lines too.
func TestCloudRequestSize(t *testing.T) {
	const limit = 2_000_000
	for name, text := range map[string]string{
		"markup":          strings.Repeat("<&>", 2000),
		"quotes":          strings.Repeat(`"`, 6000),
		"backslashes":     strings.Repeat(`\`, 6000),
		"control octets":  strings.Repeat("\x01", 1500),
		"no UTF-8":        strings.Repeat("\xff", 1500),
		"line separators": strings.Repeat("\u2028", 1500),
		"empty lines":     "",
	} {
		t.Run(name, func(t *testing.T) {
			f := newForm(Origin{App: "w", Foreign: true, Data: []Param{{"service", "w"}, {"stream", "stderr"}}}, "g")
			var batch []*item
			for n := 0; n < cloudBatch; { // as take does
				items, _ := f.render(Entry{Time: noon, MsgID: "stderr", Text: []byte(text)}, 0)
				for _, it := range items {
					it.seq = math.MaxInt32
					n += len(it.msg)
				}
				batch = append(batch, items...)
			}
			body := cloudBody(batch)
			if len(body) > limit {
				t.Errorf("%d messages became %d octets", len(batch), len(body))
			}
			if got, want := batch[0].cloud().Text["message"], string(appendText(nil, []byte(text), true)); !strings.HasPrefix(want, got) || text != "" && got == "" {
				t.Errorf("%q became %q", want, got)
			}
			var back []cloudEntry
			if err := json.Unmarshal(body, &back); err != nil || len(back) != len(batch) || back[0].Text["message"] != batch[0].cloud().Text["message"] {
				t.Errorf("%d of %d messages come back: %v", len(back), len(batch), err)
			}
		})
	}
}

// TestCloudRefuses: what the service will never take is counted, and the rest goes on.
func TestCloudRefuses(t *testing.T) {
	s, ca := newIngestion(t)
	ship := open(t, cloudConfig(s, ca, apiKey))
	defer ship.Close()
	web := ship.Source(Origin{Name: "web", App: "web"})
	s.Change(func(n int, w http.ResponseWriter, r *http.Request) bool {
		if n > 1 {
			return false
		}
		w.WriteHeader(http.StatusUnprocessableEntity)
		return true
	})
	web.Send(Entry{Text: []byte("poison")})
	waitStats(t, ship, "the refusal is counted", func(st Stats) bool { return st.Lost == 1 })
	web.Send(Entry{Text: []byte("after")})
	if got := waitMessages(t, s, 1); len(got) != 1 || got[0] != "after" {
		t.Errorf("%q", got)
	}
	drain(t, ship)
	for _, e := range s.Entries() {
		if e.Text["event"] == "log.lost" && e.Text["lost"] == "1" && e.Text["source"] == "web" && strings.Contains(e.Text["message"], "HTTP status 422") {
			return
		}
	}
	t.Errorf("the loss is not told: %v", s.Entries())
}

// TestCloudSplits: a request that is too large for the service is divided; only
// a message that is too large by itself is lost, counted and told.
func TestCloudSplits(t *testing.T) {
	t.Parallel()
	s, ca := newIngestion(t)
	ship := open(t, cloudConfig(s, ca, apiKey))
	defer ship.Close()
	const limit, n = 6000, 100
	s.Change(func(_ int, w http.ResponseWriter, r *http.Request) bool {
		body, err := io.ReadAll(r.Body)
		if err == nil && len(body) > limit {
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			return true
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		return false
	})
	web, big := ship.Source(Origin{Name: "web", App: "web"}), ship.Source(Origin{Name: "big", App: "big"})
	for i := range n {
		web.Send(Entry{Text: fmt.Appendf(nil, "n=%d", i)})
		if i == n/2 {
			big.Send(Entry{Text: bytes.Repeat([]byte("x"), limit)})
		}
	}
	drain(t, ship)
	var got, losses []string
	for _, e := range s.Entries() {
		switch {
		case e.Subsystem == "web":
			got = append(got, e.Text["message"])
		case e.Text["event"] == "log.lost":
			losses = append(losses, e.Text["lost"]+" of "+e.Text["source"])
			if !strings.Contains(e.Text["message"], "HTTP status 413") {
				t.Errorf("%v", e.Text)
			}
		}
	}
	var want []string
	for i := range n {
		want = append(want, fmt.Sprintf("n=%d", i))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if diff := cmp.Diff([]string{"1 of big"}, losses); diff != "" || ship.Stats().Lost != 1 {
		t.Errorf("%s, %+v", diff, ship.Stats())
	}
}

// TestCloudSaysWhy: after a time without log the owner hears what the service said.
func TestCloudSaysWhy(t *testing.T) {
	t.Parallel()
	s, ca := newIngestion(t)
	ship := open(t, cloudConfig(s, ca, apiKey))
	defer ship.Close()
	s.Change(func(n int, w http.ResponseWriter, _ *http.Request) bool {
		if n < 3 {
			w.WriteHeader(http.StatusForbidden)
		}
		return n < 3
	})
	ship.Source(Origin{Name: "web", App: "web"}).Send(Entry{Text: []byte("x")})
	waitMessages(t, s, 1)
	waitStats(t, ship, "it is back", func(st Stats) bool { return st.Reconnects > 0 })
	drain(t, ship)
	for _, e := range s.Entries() {
		if e.Text["event"] == "log.reconnected" && strings.HasSuffix(e.Text["message"], "HTTP status 403") {
			return
		}
	}
	t.Errorf("nobody says why: %v", s.Entries())
}

// TestCloudRefusesAll: a service that takes nothing but the probe is not talked to
// without end.
func TestCloudRefusesAll(t *testing.T) {
	s, ca := newIngestion(t)
	ship := open(t, cloudConfig(s, ca, apiKey))
	defer ship.Close()
	requests := make(chan bool, 1000)
	s.Change(func(n int, w http.ResponseWriter, r *http.Request) bool {
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

// TestCloudSlowsDown: a service that takes probes and no batch is asked ever less often.
func TestCloudSlowsDown(t *testing.T) {
	t.Parallel()
	s, ca := newIngestion(t)
	ship := open(t, cloudConfig(s, ca, apiKey))
	defer ship.Close()
	batches := make(chan bool, 1000)
	s.Change(func(_ int, w http.ResponseWriter, r *http.Request) bool {
		body, err := io.ReadAll(r.Body)
		if err == nil && strings.Contains(string(body), "log.probe") {
			return true // 200
		}
		batches <- true
		w.WriteHeader(http.StatusGatewayTimeout)
		return true
	})
	ship.Source(Origin{Name: "web", App: "web"}).Send(Entry{Text: []byte("x")})
	time.Sleep(7 * time.Second) // at once, and after 1, 3 and 7 s at most
	if n := len(batches); n < 3 || n > 5 {
		t.Errorf("%d requests in 7 s", n)
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
	const iam = peers.TokenPath
	for name, tt := range map[string]struct {
		key    string
		change func(*testing.T, *Config)
		answer func(int, http.ResponseWriter, *http.Request) bool
		path   string
		says   string
	}{
		"a wrong key":                      {key: "another", path: "iamApiKey", says: "IAM does not know this API key"},
		"no key":                           {key: "", path: "iamApiKey", says: "give the API key"},
		"a key without the role":           {answer: only(peers.IngestionPath, 403, ""), path: "iamApiKey", says: "role Sender"},
		"a token that is refused":          {answer: only(peers.IngestionPath, 401, ""), path: "iamApiKey", says: "refuses the API key"},
		"another web server":               {answer: only(peers.IngestionPath, 404, "<html>"), path: "hostname", says: "no such address"},
		"a service that is down":           {answer: only(peers.IngestionPath, 503, ""), path: "hostname", says: "HTTP status 503"},
		"messages that nobody wants":       {answer: only(peers.IngestionPath, 400, ""), path: "hostname", says: "HTTP status 400"},
		"a redirect":                       {answer: only(peers.IngestionPath, 302, ""), path: "hostname", says: "HTTP status 302"},
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
			s, ca := newIngestion(t)
			s.Change(tt.answer)
			key := tt.key
			if key == "" && name != "no key" {
				key = apiKey
			}
			c := cloudConfig(s, ca, key)
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
	thief, _ := newIngestion(t)
	visits := make(chan string, 10)
	thief.Change(func(_ int, w http.ResponseWriter, r *http.Request) bool {
		visits <- r.URL.Path
		return false
	})
	s, ca := newIngestion(t)
	s.Change(func(_ int, w http.ResponseWriter, r *http.Request) bool {
		http.Redirect(w, r, address(thief)+r.URL.Path, http.StatusPermanentRedirect)
		return true
	})
	if ship, err := Open(t.Context(), cloudConfig(s, ca, apiKey), nil); err == nil {
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
