package health

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// The management listener answers what health does, metrics and renewals; a
// body is read to its bound.
func TestManagement(t *testing.T) {
	s := New("release")
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var got []byte
	m := Management{
		Metrics: func() []byte { return []byte("hpcr_ready 1\n") },
		Renew: func(name string, chain []byte) error {
			got = bytes.Clone(chain)
			return map[string]error{"other": ErrNoIdentity, "late": errors.New("it is over")}[name]
		},
	}
	ended := make(chan error, 1)
	ctx, stop := context.WithCancel(t.Context())
	go func() { ended <- s.ServeManagement(ctx, l, m) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for claim, c := range map[string]struct {
		method, path, body string
		status             int
		answer             string
	}{
		"metrics":                       {"GET", "/metrics", "", 200, "hpcr_ready 1\n"},
		"health":                        {"GET", "/readyz", "", 503, "not ready"},
		"a renewal":                     {"PUT", "/v1/identities/shop", "a chain", 200, "replaced\n"},
		"a renewal of none":             {"PUT", "/v1/identities/other", "a chain", 404, "no identity of this name is renewable\n"},
		"a renewal that is refused":     {"PUT", "/v1/identities/late", "a chain", 422, "it is over\n"},
		"the largest renewal":           {"PUT", "/v1/identities/shop", strings.Repeat("x", maxChain), 200, "replaced\n"},
		"a renewal that is too large":   {"PUT", "/v1/identities/shop", strings.Repeat("x", maxChain+1), 413, "more than 64 KiB\n"},
		"a renewal by a wrong method":   {"POST", "/v1/identities/shop", "a chain", 405, "GET or HEAD only"},
		"nobody reads what is replaced": {"GET", "/v1/identities/shop", "", 404, "not found"},
	} {
		t.Run(claim, func(t *testing.T) {
			got = nil
			r, err := http.NewRequestWithContext(t.Context(), c.method, "http://"+l.Addr().String()+c.path, strings.NewReader(c.body))
			if err != nil {
				t.Fatal(err)
			}
			a, err := client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer a.Body.Close()
			b, err := io.ReadAll(a.Body)
			if err != nil || a.StatusCode != c.status || strings.TrimRight(string(b), " \n") != strings.TrimRight(c.answer, "\n") {
				t.Errorf("%d %q: %v", a.StatusCode, b, err)
			}
			if c.status == 200 && c.method == "PUT" && string(got) != c.body {
				t.Errorf("%d octets arrived", len(got))
			}
		})
	}
}
