package peers

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"sync"
)

// IngestionPath is where messages go, TokenPath where keys do.
const (
	IngestionPath = "/logs/v1/singles"
	TokenPath     = "/identity/token"
)

// Ingestion is an HTTPS server on the loopback that behaves as IBM Cloud Logs'
// ingestion service and as its IAM: a token for the API key, messages for the
// last token (cloud.ibm.com/docs/cloud-logs?topic=cloud-logs-send-logs-api).
type Ingestion struct {
	key    string
	server *http.Server
	port   int
	served chan error

	mu       sync.Mutex
	tokens   int
	requests int
	got      []IngestionEntry
	answer   Answer
}

// Answer is asked first: n counts requests since it was set; true = it has answered.
type Answer func(n int, w http.ResponseWriter, r *http.Request) bool

// IngestionEntry is one message as it came.
type IngestionEntry struct {
	Application string            `json:"applicationName"`
	Subsystem   string            `json:"subsystemName"`
	Computer    string            `json:"computerName"`
	Severity    int               `json:"severity"`
	Timestamp   float64           `json:"timestamp"`
	Text        map[string]string `json:"text"`
}

// StartIngestion serves with a certificate of ca for the loopback and GuestHost.
func StartIngestion(ca *CA, key string) (*Ingestion, error) {
	id, err := ca.Server("ingestion", GuestHost, Loopback)
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(id.Cert, id.Key)
	if err != nil {
		return nil, fmt.Errorf("certificate of the ingestion service: %w", err)
	}
	l, err := net.Listen("tcp", net.JoinHostPort(Loopback, "0"))
	if err != nil {
		return nil, fmt.Errorf("start the ingestion service: %w", err)
	}
	s := &Ingestion{key: key, port: l.Addr().(*net.TCPAddr).Port, served: make(chan error, 1)}
	s.server = &http.Server{Handler: s, ErrorLog: log.New(io.Discard, "", 0), TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}}
	go func() { s.served <- s.server.ServeTLS(l, "", "") }()
	return s, nil
}

// Port is on the loopback.
func (s *Ingestion) Port() int { return s.port }

// Change sets the answer that is asked first; nil = none.
func (s *Ingestion) Change(a Answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer, s.requests = a, 0
}

// Tokens is how many were given.
func (s *Ingestion) Tokens() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tokens
}

// Entries are the messages so far.
func (s *Ingestion) Entries() []IngestionEntry {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]IngestionEntry(nil), s.got...)
}

// Close ends the server.
func (s *Ingestion) Close() error {
	err := s.server.Close()
	if serr := <-s.served; !errors.Is(serr, http.ErrServerClosed) {
		err = errors.Join(err, serr)
	}
	return err
}

func (s *Ingestion) ServeHTTP(w http.ResponseWriter, r *http.Request) {
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
	case TokenPath:
		s.give(w, r, body)
	case IngestionPath:
		s.take(w, r, body)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

func (s *Ingestion) give(w http.ResponseWriter, r *http.Request, body []byte) {
	form, err := url.ParseQuery(string(body))
	if err != nil || form.Get("apikey") != s.key || form.Get("grant_type") != "urn:ibm:params:oauth:grant-type:apikey" ||
		r.Header.Get("Content-Type") != "application/x-www-form-urlencoded" {
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprint(w, `{"errorCode":"BXNIM0415E","errorMessage":"Provided API key could not be found."}`)
		return
	}
	s.tokens++
	fmt.Fprintf(w, `{"access_token":"token-%d","refresh_token":"not_supported","token_type":"Bearer","expires_in":3600,"expiration":1700000000,"scope":"ibm openid"}`, s.tokens)
}

func (s *Ingestion) take(w http.ResponseWriter, r *http.Request, body []byte) {
	if s.tokens == 0 || r.Header.Get("Authorization") != fmt.Sprintf("Bearer token-%d", s.tokens) {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	var entries []IngestionEntry
	if r.Header.Get("Content-Type") != "application/json" || len(body) > 2<<20 || json.Unmarshal(body, &entries) != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	s.got = append(s.got, entries...)
}

// LogRouterTo is the logging of a guest that reports to an ingestion service on
// this machine's loopback; LogRouterIAM is what x-hpcr needs for it.
func LogRouterTo(port int, key string) *Logging {
	return &Logging{LogRouter: &LogRouter{Hostname: GuestHost, Port: port, IAMAPIKey: key}}
}

// LogRouterIAM is env.x-hpcr for an IAM on this machine's loopback.
func LogRouterIAM(port int) map[string]any {
	return map[string]any{"logging": map[string]any{"iam": fmt.Sprintf("https://%s:%d", GuestHost, port)}}
}
