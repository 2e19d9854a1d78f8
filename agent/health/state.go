package health

import (
	"bytes"
	"encoding/json"
	"regexp"
	"sync"
	"time"

	"hpcr/agent/hpl"
)

const (
	schema     = 1
	bodySize   = 512
	uptimeStep = 10 * time.Second
	beatLimit  = 10 * time.Second
	perSecond  = 10 // answers; also the burst
)

// State is what the endpoint answers from. All methods may be called from any
// goroutine.
type State struct {
	flavour string
	started time.Time

	mu    sync.Mutex
	phase string
	ready bool
	code  hpl.Code
	beat  time.Time // zero = the agent does not beat

	tokens float64 // of the rate limit
	filled time.Time
}

// Report is the JSON of /healthz.
type Report struct {
	Schema        int    `json:"schema"`
	Live          bool   `json:"live"`
	Ready         bool   `json:"ready"`
	Phase         string `json:"phase"`
	Code          string `json:"code"`
	Flavour       string `json:"flavour"`
	UptimeSeconds int64  `json:"uptimeSeconds"`
}

// New starts the uptime. Flavour is "dev" or "release".
func New(flavour string) *State {
	now := time.Now()
	return &State{flavour: word(flavour), started: now, phase: "boot", tokens: perSecond, filled: now}
}

var wordForm = regexp.MustCompile(`^[a-z][a-z0-9-]{0,23}$`)

// word keeps anything but the boot list's own names out of the answer.
func word(s string) string {
	if wordForm.MatchString(s) {
		return s
	}
	return "unknown"
}

// SetPhase names the phase of the boot, or "shutdown". The guest is not ready
// in any phase.
func (s *State) SetPhase(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.phase, s.ready = word(name), false
}

// SetReady is the verdict "succeeded".
func (s *State) SetReady() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.phase, s.ready, s.code = "ready", true, ""
}

// SetFailed is the verdict "failed"; the code stays to the end. A code that
// the catalogue does not know is reported as HPL11000E.
func (s *State) SetFailed(code hpl.Code) {
	if _, ok := hpl.Lookup(code); !ok {
		code = "HPL11000E"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.phase, s.ready, s.code = "failed", false, code
}

// Beat says that the agent's main loop turns. From the first beat on, silence
// of more than ten seconds means not live.
func (s *State) Beat() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.beat = time.Now()
}

// report is a pure function of the state and the clock.
func (s *State) report(now time.Time) Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Report{
		Schema:        schema,
		Live:          s.beat.IsZero() || now.Sub(s.beat) <= beatLimit,
		Ready:         s.ready,
		Phase:         s.phase,
		Code:          string(s.code),
		Flavour:       s.flavour,
		UptimeSeconds: int64(now.Sub(s.started).Truncate(uptimeStep) / time.Second),
	}
}

// Report is what /healthz says now.
func (s *State) Report() Report { return s.report(time.Now()) }

// admit takes one token of ten a second.
func (s *State) admit(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := now.Sub(s.filled); d > 0 {
		s.tokens = min(perSecond, s.tokens+d.Seconds()*perSecond)
		s.filled = now
	}
	if s.tokens < 1 {
		return false
	}
	s.tokens--
	return true
}

// pad makes every body the same size: blanks, then a line feed.
func pad(b []byte) []byte {
	out := bytes.Repeat([]byte{' '}, bodySize)
	copy(out[:bodySize-1], b)
	out[bodySize-1] = '\n'
	return out
}

func (r Report) body() ([]byte, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	return pad(b), nil
}
