package logship

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"hpcr/agent/hpl"
	"hpcr/agent/secret"
)

const (
	// DefaultCloudPort is HTTPS.
	DefaultCloudPort = 443
	// DefaultIAM gives tokens for API keys.
	DefaultIAM = "https://iam.cloud.ibm.com"

	cloudBatch    = 512 << 10 // octets of messages a request; the service takes 2 MB of JSON
	cloudPause    = 500 * time.Millisecond
	cloudLimit    = 30 * time.Second // for a request, its answer included
	cloudAnswer   = 64 << 10         // octets of an answer that are read
	cloudHeader   = 16 << 10
	maxToken      = 16 << 10
	minTokenLife  = time.Minute
	maxTokenLife  = 24 * time.Hour
	maxRetryAfter = time.Minute

	// cloudApplication is the applicationName of all messages; subsystemName is
	// the service's, or the agent's own part's.
	cloudApplication = "hpcr"
)

// Cloud is /env/logging/logRouter: IBM Cloud Logs' ingestion service
// (POST /logs/v1/singles), with a bearer token that its IAM gives for an API key.
type Cloud struct {
	IAM    string         // URL; "" = DefaultIAM
	APIKey *secret.Secret // the caller's; a copy is kept for new tokens until Close
	TLS    *tls.Config    // whom to trust; the names are set here
}

// service is the ingestion service and IAM.
type service struct {
	logs, iam string // URLs
	key       *secret.Secret
	client    *http.Client

	token     string    // not a Secret: each request's header needs it as a string
	renew     time.Time // when the token is old
	notBefore time.Time // as the service asked, or as failures of batches demand
	failed    int       // batches, one after the other
	probe     []*item   // not yet accepted: its number is used once
}

func newService(c Config, dial DialFunc) (*service, error) {
	port := c.Port
	if port == 0 {
		port = DefaultCloudPort
	}
	iam := c.Cloud.IAM
	if iam == "" {
		iam = DefaultIAM
	}
	if c.Cloud.APIKey == nil || len(c.Cloud.APIKey.Bytes()) == 0 {
		return nil, hpl.New("HPL01004E", cloudAt+"/iamApiKey", "give the API key of a service ID that may send logs")
	}
	u, err := url.Parse(iam)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, hpl.New("HPL01004E", "/env/x-hpcr/logging/iam", "give an https URL, such as "+DefaultIAM)
	}
	return &service{
		logs: "https://" + net.JoinHostPort(c.Host, strconv.Itoa(port)) + "/logs/v1/singles",
		iam:  strings.TrimSuffix(iam, "/") + "/identity/token",
		key:  secret.New(bytes.Clone(c.Cloud.APIKey.Bytes())),
		client: &http.Client{
			Timeout: cloudLimit,
			// Neither key nor token goes where somebody else points to.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			Transport: &http.Transport{
				DialContext: dial, TLSClientConfig: c.Cloud.TLS.Clone(), TLSHandshakeTimeout: dialLimit,
				ResponseHeaderTimeout: cloudLimit, IdleConnTimeout: time.Minute, MaxIdleConns: 2,
				MaxResponseHeaderBytes: cloudHeader, DisableCompression: true,
			},
		},
	}, nil
}

// stage says what an error came from.
type stage string

const (
	stageToken stage = "token"
	stageLogs  stage = "logs"
)

type stageError struct {
	stage  stage
	status int // of HTTP; 0 = no answer
	err    error
}

func (e *stageError) Error() string {
	if e.status != 0 {
		return fmt.Sprintf("%s: HTTP status %d", e.stage, e.status)
	}
	return fmt.Sprintf("%s: %v", e.stage, e.err)
}
func (e *stageError) Unwrap() error { return e.err }

// batchRefused is the service's word that it will never take a batch.
type batchRefused struct{ status int }

func (e *batchRefused) Error() string {
	return fmt.Sprintf("the log service refused them: HTTP status %d", e.status)
}

func (e *batchRefused) tooLarge() bool { return e.status == http.StatusRequestEntityTooLarge }

// open proves that the service takes messages. A probe that fails is sent again,
// with its number: another would leave a hole, which to the owner is a loss.
func (s *service) open(ctx context.Context, probe func() []*item) (link, error) {
	if wait := time.Until(s.notBefore); wait > 0 {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
		}
	}
	c := &cloudLink{s: s}
	if s.probe == nil {
		s.probe = probe()
	}
	if err := c.post(ctx, s.probe); err != nil {
		return nil, err
	}
	s.probe = nil
	return c, nil
}

// do sends a request and reads its answer, both bounded.
func (s *service) do(r *http.Request, at stage) (status int, answer []byte, err error) {
	r.Header.Set("Accept", "application/json")
	r.Header.Set("User-Agent", "hpcr")
	resp, err := s.client.Do(r)
	if err != nil {
		return 0, nil, &stageError{stage: at, err: err}
	}
	answer, err = io.ReadAll(io.LimitReader(resp.Body, cloudAnswer+1))
	err = errors.Join(err, resp.Body.Close())
	if err == nil && len(answer) > cloudAnswer {
		err = errors.New("the answer is too long")
	}
	if err != nil {
		return 0, nil, &stageError{stage: at, err: err}
	}
	if n, e := strconv.Atoi(resp.Header.Get("Retry-After")); e == nil && n > 0 && resp.StatusCode >= 400 {
		s.notBefore = time.Now().Add(min(time.Duration(n)*time.Second, maxRetryAfter))
	}
	return resp.StatusCode, answer, nil
}

// login gets a token for the key, unless the present one is good enough.
func (s *service) login(ctx context.Context) error {
	if s.token != "" && time.Now().Before(s.renew) {
		return nil
	}
	body := []byte("grant_type=urn%3Aibm%3Aparams%3Aoauth%3Agrant-type%3Aapikey&apikey=")
	body = append(body, url.QueryEscape(string(s.key.Bytes()))...)
	defer clear(body)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.iam, bytes.NewReader(body))
	if err != nil {
		return &stageError{stage: stageToken, err: err}
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	status, answer, err := s.do(r, stageToken)
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return &stageError{stage: stageToken, status: status}
	}
	token, life, err := parseToken(answer)
	clear(answer)
	if err != nil {
		return &stageError{stage: stageToken, err: err}
	}
	// A clock that the host sets may jump: what is counted is time that passes.
	s.token, s.renew = token, time.Now().Add(life-life/10)
	return nil
}

var errToken = errors.New("the answer holds no bearer token")

// parseToken reads IAM's answer (RFC 6749 §5.1).
func parseToken(b []byte) (token string, life time.Duration, err error) {
	var a struct {
		Token   string  `json:"access_token"`
		Type    string  `json:"token_type"`
		Expires float64 `json:"expires_in"`
	}
	if err := json.Unmarshal(b, &a); err != nil {
		return "", 0, errToken // the JSON package's words may quote it
	}
	if a.Token == "" || len(a.Token) > maxToken || a.Type != "" && !strings.EqualFold(a.Type, "bearer") ||
		strings.ContainsFunc(a.Token, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return "", 0, errToken
	}
	life = minTokenLife
	if a.Expires > 0 {
		life = time.Duration(min(a.Expires, maxTokenLife.Seconds())) * time.Second
	}
	return a.Token, max(life, minTokenLife), nil
}

// cloudLink is the service as the shipper sees it. An answer of 2xx is the
// service's word that it has the batch.
type cloudLink struct {
	s     *service
	total uint64
}

func (c *cloudLink) written() uint64        { return c.total }
func (c *cloudLink) acked() uint64          { return c.total }
func (c *cloudLink) sure() bool             { return true }
func (c *cloudLink) ended() <-chan struct{} { return nil }

func (c *cloudLink) finish() bool {
	c.s.client.CloseIdleConnections()
	return true
}

func (c *cloudLink) abort() error {
	c.s.client.CloseIdleConnections()
	return nil
}

// send waits longer with each batch that fails, even if probes between them do not.
func (c *cloudLink) send(ctx context.Context, batch []*item) error {
	err := c.post(ctx, batch)
	if err == nil || errors.As(err, new(*batchRefused)) {
		c.s.failed = 0
		return err
	}
	if next := time.Now().Add(backoff(c.s.failed, rand.Float64())); next.After(c.s.notBefore) {
		c.s.notBefore = next
	}
	c.s.failed++
	return err
}

func (c *cloudLink) post(ctx context.Context, batch []*item) error {
	body := cloudBody(batch)
	for renewed := false; ; renewed = true {
		if err := c.s.login(ctx); err != nil {
			return err
		}
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.s.logs, bytes.NewReader(body))
		if err != nil {
			return &stageError{stage: stageLogs, err: err}
		}
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Authorization", "Bearer "+c.s.token)
		status, _, err := c.s.do(r, stageLogs)
		switch {
		case err != nil:
			return err
		case status/100 == 2:
			c.total += uint64(len(body))
			return nil
		case status == http.StatusUnauthorized && !renewed:
			c.s.token = ""
			continue
		case status == http.StatusBadRequest || status == http.StatusRequestEntityTooLarge || status == http.StatusUnprocessableEntity:
			return &batchRefused{status}
		default:
			return &stageError{stage: stageLogs, status: status}
		}
	}
}

// cloudEntry is one message of the ingestion service's.
type cloudEntry struct {
	Application string            `json:"applicationName"`
	Subsystem   string            `json:"subsystemName"`
	Computer    string            `json:"computerName,omitempty"`
	Severity    int               `json:"severity"`
	Timestamp   float64           `json:"timestamp"` // milliseconds since 1970
	Text        map[string]string `json:"text"`
}

func cloudBody(batch []*item) []byte {
	entries := make([]cloudEntry, 0, len(batch))
	for _, it := range batch {
		entries = append(entries, it.cloud())
	}
	var body bytes.Buffer
	e := json.NewEncoder(&body)
	e.SetEscapeHTML(false) // each < would be six octets, and a page more than the service takes
	if err := e.Encode(entries); err != nil {
		panic(err) // strings and finite numbers always have a form
	}
	return body.Bytes()
}

// cloudSeverity maps RFC 5424's 0–7 to 6 critical, 5 error, 4 warning, 3 info, 1 debug.
var cloudSeverity = [8]int{6, 6, 6, 5, 4, 3, 3, 1}

// cloud takes an item apart again, which render made, and maybe a disk kept.
func (it *item) cloud() cloudEntry {
	e := cloudEntry{Application: cloudApplication, Timestamp: float64(it.at.UnixMilli()), Text: map[string]string{"sequence": strconv.FormatUint(uint64(it.seq), 10)}}
	head, rest := string(it.msg[:it.cut]), string(it.msg[it.cut:])
	f := strings.SplitN(head, " ", 7)
	if len(f) < 7 {
		e.Text["message"] = string(it.msg) // of a file that is not as we write it
		return e
	}
	if n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(f[0], "<"), ">1")); err == nil && n >= 0 {
		e.Severity = cloudSeverity[n%8]
		e.Text["facility"] = strconv.Itoa(n / 8)
	}
	if t, err := time.Parse(time.RFC3339Nano, f[1]); err == nil {
		e.Timestamp = float64(t.UnixMicro()) / 1000
	}
	e.Computer, e.Subsystem = f[2], f[3]
	for i, key := range map[int]string{4: "process", 5: "event"} {
		if f[i] != "-" {
			e.Text[key] = f[i]
		}
	}
	params, text := structured(strings.TrimPrefix(rest, `"]`))
	for _, p := range params {
		e.Text[p.Name] = p.Value
	}
	e.Text["message"] = text
	return e
}

// structured reads the structured data of RFC 5424 §6.3 at the begin of s.
// Elements without parameters become one with the value true.
func structured(s string) (params []Param, text string) {
	for strings.HasPrefix(s, "[") {
		id, rest, inside := s[1:], "", false
		if i := strings.IndexAny(id, " ]"); i >= 0 {
			inside, rest, id = id[i] == ' ', id[i+1:], id[:i]
		}
		if !inside {
			name, _, _ := strings.Cut(id, "@")
			params = append(params, Param{name, "true"})
		}
		for inside {
			name, value, ok := strings.Cut(strings.TrimPrefix(rest, " "), `="`)
			if !ok {
				return params, s
			}
			var b strings.Builder
			i := 0
			for ; i < len(value) && value[i] != '"'; i++ {
				if value[i] == '\\' && i+1 < len(value) {
					i++
				}
				b.WriteByte(value[i])
			}
			if i >= len(value) {
				return params, s
			}
			params = append(params, Param{name, b.String()})
			rest = value[i+1:]
			if strings.HasPrefix(rest, "]") {
				inside, rest = false, rest[1:]
			}
		}
		s = rest
	}
	return params, strings.TrimPrefix(s, " ")
}
