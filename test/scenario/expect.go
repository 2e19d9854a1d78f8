package scenario

import (
	"encoding/base64"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	errorCode   = regexp.MustCompile(`HPL\d+E`)
	errorLine   = regexp.MustCompile(`(?m)^.*HPL\d+E.*$`)
	successLine = regexp.MustCompile(`(HPL10001I)|(VSI has started successfully)`)
)

// Ready expects a guest that started, said so as operators' tools look for it
// and stopped in order when asked.
func (r *Result) Ready(t *testing.T) {
	t.Helper()
	if r.Verdict != "ready" || r.Exit != 0 {
		t.Errorf("verdict %s, codes %v, exit status %d, want ready and 0: %s\n%s", r.Verdict, r.Codes, r.Exit, r.Message, tail(r.Console))
	}
	if !slices.Equal(r.Codes, []string{"HPL10001I"}) {
		t.Errorf("codes %v, want HPL10001I alone", r.Codes)
	}
	if !r.StoppedInOrder {
		t.Errorf("the guest did not stop in order\n%s", tail(r.Console))
	}
	if found := errorCode.FindString(r.Console); found != "" {
		t.Errorf("%s on the console of a guest that is ready: hosts read it as a failure\n%s", found, r.Console)
	}
	if len(successLine.FindAllString(r.Console, -1)) != 2 {
		t.Errorf("the console lacks the lines that hosts look for\n%s", tail(r.Console))
	}
	for _, p := range r.Phases {
		if !p.OK {
			t.Errorf("phase %s failed in a guest that is ready", p.Name)
		}
	}
}

// Failed expects a guest that refused with this code, said once and in one
// line what to change, and powered off in order.
func (r *Result) Failed(t *testing.T, code string) {
	t.Helper()
	want := []string{code}
	if !strings.HasPrefix(code, "HPL11") || strings.Contains(r.Console, "HPL11099I") {
		want = append(want, "HPL10000E") // as HPCR: only its bootloader fails without
	}
	r.failed(t, want)
	if !r.StoppedInOrder {
		t.Errorf("the guest did not power off in order\n%s", tail(r.Console))
	}
	_, fix, found := strings.Cut(r.Message, " -> ")
	if !strings.HasPrefix(r.Message, code+": ") || !found || len(fix) < 10 || strings.Contains(r.Message, "\n") {
		t.Errorf("message %q, want one line that starts with %s and says what to change", r.Message, code)
	}
	if !strings.Contains(r.Console, r.Message) {
		t.Errorf("the console does not say %q\n%s", r.Message, tail(r.Console))
	}
}

// failed expects exactly these codes, in the result and on the console.
func (r *Result) failed(t *testing.T, codes []string) {
	t.Helper()
	if r.Verdict != "failed" || r.Exit != 1 {
		t.Errorf("verdict %s, exit status %d after %s, want failed and 1\n%s", r.Verdict, r.Exit, r.Took, tail(r.Console))
	}
	if !slices.Equal(r.Codes, codes) {
		t.Errorf("codes %v, want %v: %s", r.Codes, codes, r.Message)
	}
	r.ConsoleCodes(t, codes)
}

// ConsoleCodes expects exactly these E codes on the console, a line each, and
// no success.
func (r *Result) ConsoleCodes(t *testing.T, codes []string) {
	t.Helper()
	var shown []string
	for _, line := range errorLine.FindAllString(r.Console, -1) {
		shown = append(shown, errorCode.FindAllString(line, -1)...)
	}
	if !slices.Equal(shown, codes) {
		t.Errorf("the console shows %v, want %v\n%s", shown, codes, tail(r.Console))
	}
	if found := successLine.FindString(r.Console); found != "" {
		t.Errorf("%q on the console of a guest that failed", found)
	}
}

// Clean expects no secret and no text of the contract in what a host saw.
func (l *Lab) Clean(t *testing.T, what, seen string) {
	t.Helper()
	// The scenario's own folder is the host's text, not the contract's.
	lower := strings.ToLower(strings.ReplaceAll(seen, l.Dir, ""))
	if i := strings.Index(lower, Canary); i >= 0 {
		t.Errorf("the %s shows text of the contract: …%s…", what, lower[max(0, i-80):min(len(lower), i+80)])
	}
	for name, pem := range map[string][]byte{"client key": l.LogClient.Key, "client certificate": l.LogClient.Cert} {
		lines := strings.Split(string(pem), "\n")
		whole := base64.StdEncoding.EncodeToString(pem)
		for _, part := range []string{lines[1], whole[:64]} {
			if strings.Contains(seen, part) {
				t.Errorf("the %s shows the %s", what, name)
			}
		}
	}
}
