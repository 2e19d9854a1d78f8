package network

import (
	"encoding/binary"
	"fmt"
	"math"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/beevik/ntp"
)

// chrony serves NTP in a namespace, as if it were by that much later.
func chrony(t *testing.T, ns, addr string, lie time.Duration, more ...string) {
	t.Helper()
	dir := t.TempDir()
	conf := write(t, filepath.Join(dir, "chrony.conf"), fmt.Sprintf("local stratum 5\nallow all\nbindaddress %s\ncmdport 0\npidfile %s/pid\nbindcmdaddress /\n%s\n", addr, dir, strings.Join(more, "\n")))
	args := []string{"chronyd", "-x", "-d", "-u", "root", "-f", conf}
	if lie != 0 {
		// Not by faketime(1), which stays its parent and dies alone.
		libs, err := filepath.Glob("/usr/lib/*/faketime/libfaketime.so.1")
		if err != nil || len(libs) == 0 {
			t.Fatal("libfaketime is missing: run 'make deps'", err)
		}
		args = append([]string{"env", "LD_PRELOAD=" + libs[0], "FAKETIME=" + fmt.Sprintf("%+ds", int(lie.Seconds()))}, args...)
	}
	background(t, ns, args[0], args[1:]...)
}

// TestTimeServers: chronyd answers; one that is wrong by an hour is outvoted,
// two of three are believed, and no majority is none.
func TestTimeServers(t *testing.T) {
	c := wire(t, "isp", "eth0", "192.0.2.1/24")
	for _, a := range []string{"192.0.2.2/24", "192.0.2.3/24"} {
		ip(t, "-n isp addr add "+a+" dev out")
	}
	dnsmasq(t, "isp", "--port=0", "--dhcp-range=192.0.2.50,192.0.2.60,255.255.255.0,2m", "--dhcp-option=42,192.0.2.1,192.0.2.2", "--listen-address=192.0.2.1")
	n, err := up(t, Config{Links: []LinkConfig{{Name: "enc1", DHCP: true}}}, c)
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(n.Timeservers()); got != "[192.0.2.1 192.0.2.2]" {
		t.Errorf("time servers of the lease: %s", got)
	}
	chrony(t, "isp", "192.0.2.1", 0)
	chrony(t, "isp", "192.0.2.2", 0)
	chrony(t, "isp", "192.0.2.3", time.Hour)
	floor := time.Now().Add(-24 * time.Hour)
	var r Reading
	waitFor(t, "three servers", func() bool {
		r, err = AskTime(t.Context(), []string{"192.0.2.1", "192.0.2.2", "192.0.2.3"}, floor)
		return err == nil && r.Answered == 3
	})
	if r.Agreed != 2 || r.Of != 3 || r.Offset.Abs() > time.Second {
		t.Errorf("two good ones and a liar: %+v", r)
	}
	if r, err := AskTime(t.Context(), []string{"192.0.2.3"}, floor); err != nil || (r.Offset-time.Hour).Abs() > time.Second {
		t.Errorf("a liar alone, which nothing can tell: %+v, %v", r, err)
	}
	if r, err := AskTime(t.Context(), []string{"192.0.2.1", "192.0.2.3"}, floor); err == nil {
		t.Errorf("one against one: %+v", r)
	}
	if r, err := AskTime(t.Context(), []string{"192.0.2.1", "192.0.2.9", "192.0.2.10"}, floor); err == nil {
		t.Errorf("one answers of three: %+v", r)
	}
	if r, err := AskTime(t.Context(), []string{"192.0.2.1"}, time.Now().Add(time.Hour)); err == nil || r.Early != 1 || !strings.Contains(err.Error(), "before the image was made") {
		t.Errorf("a time before the floor: %+v, %v", r, err)
	}
}

func TestAgree(t *testing.T) {
	s := func(offset, err time.Duration) *sample { return &sample{offset: offset, err: err} }
	const ms, year = time.Millisecond, 365 * 24 * time.Hour
	tests := map[string]struct {
		samples []*sample
		agreed  int
		offset  time.Duration
		ok      bool
	}{
		"one":                            {[]*sample{s(5*ms, 60*ms)}, 1, 5 * ms, true},
		"nobody":                         {[]*sample{nil, nil, nil}, 0, 0, false},
		"three that agree":               {[]*sample{s(10*ms, 60*ms), s(20*ms, 60*ms), s(30*ms, 60*ms)}, 3, 20 * ms, true},
		"a liar of three":                {[]*sample{s(10*ms, 60*ms), s(year, 60*ms), s(30*ms, 60*ms)}, 2, 30 * ms, true},
		"two liars who do not agree":     {[]*sample{s(10*ms, 60*ms), s(year, 60*ms), s(-year, 60*ms)}, 1, 0, false},
		"two liars who do":               {[]*sample{s(10*ms, 60*ms), s(year, 60*ms), s(year, 60*ms)}, 2, year, true},
		"half is no majority":            {[]*sample{s(0, 60*ms), s(0, 60*ms), s(year, 60*ms), s(year, 60*ms)}, 2, 0, false},
		"silence counts against":         {[]*sample{s(year, 60*ms), nil, nil}, 1, 0, false},
		"two of four that answer":        {[]*sample{s(0, 60*ms), s(0, 60*ms), nil, nil}, 2, 0, false},
		"one before the floor, two not":  {[]*sample{{early: true}, s(0, 60*ms), s(0, 60*ms)}, 2, 0, true},
		"all before the floor":           {[]*sample{{early: true}, {early: true}}, 0, 0, false},
		"neighbours that touch no third": {[]*sample{s(0, 60*ms), s(100*ms, 60*ms), s(200*ms, 60*ms)}, 2, 100 * ms, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r, err := agree(tt.samples)
			if r.Agreed != tt.agreed || r.Offset != tt.offset || (err == nil) != tt.ok {
				t.Errorf("got %+v, %v", r, err)
			}
		})
	}
}

// answer joins a client to a server that says b, with the client's nonce in
// its place as every server must have it.
type answer struct {
	net.Conn
	b     []byte
	nonce []byte
}

func (a *answer) Write(p []byte) (int, error) {
	if len(p) >= 48 {
		a.nonce = append([]byte(nil), p[40:48]...)
	}
	return len(p), nil
}

func (a *answer) Read(p []byte) (int, error) {
	if len(a.b) >= 32 && a.nonce != nil {
		copy(a.b[24:32], a.nonce)
	}
	return copy(p, a.b), nil
}

func (*answer) Close() error                     { return nil }
func (*answer) SetDeadline(time.Time) error      { return nil }
func (*answer) SetReadDeadline(time.Time) error  { return nil }
func (*answer) SetWriteDeadline(time.Time) error { return nil }

func serverSays(stratum byte, at time.Time) []byte {
	b := make([]byte, 48)
	b[0], b[1] = 0x24, stratum
	stamp := uint64(at.Unix()+2208988800) << 32
	for _, i := range []int{16, 32, 40} {
		binary.BigEndian.PutUint64(b[i:], stamp)
	}
	return b
}

func ask1(b []byte) (*sample, error) {
	r, err := ntp.QueryWithOptions("192.0.2.1:123", ntp.QueryOptions{Timeout: time.Second, Dialer: func(string, string) (net.Conn, error) { return &answer{b: b}, nil }})
	if err != nil {
		return nil, err
	}
	return judge(r, time.Unix(1_700_000_000, 0))
}

func TestJudge(t *testing.T) {
	now := time.Now()
	kiss := serverSays(0, now)
	copy(kiss[12:], "RATE")
	unsure := serverSays(2, now)
	binary.BigEndian.PutUint32(unsure[8:], 10<<16)
	leap := serverSays(2, now)
	leap[0] |= 0xc0
	for name, tt := range map[string]struct {
		b  []byte
		ok bool
	}{
		"a good answer":           {serverSays(2, now), true},
		"a kiss of death":         {kiss, false},
		"stratum 16":              {serverSays(16, now), false},
		"unsure by ten seconds":   {unsure, false},
		"a clock that is not set": {leap, false},
		"47 octets":               {serverSays(2, now)[:47], false},
		"nothing":                 {nil, false},
	} {
		if s, err := ask1(tt.b); (err == nil) != tt.ok {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
	}
	if s, err := ask1(serverSays(2, time.Unix(1_000_000_000, 0))); err != nil || !s.early {
		t.Errorf("before the floor: %+v, %v", s, err)
	}
}

// FuzzTimeAnswer: whatever arrives, what is accepted has a bounded error.
func FuzzTimeAnswer(f *testing.F) {
	f.Add(serverSays(2, time.Unix(1_800_000_000, 0)))
	f.Add(serverSays(0, time.Unix(0, 0)))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ask1(b)
		if err != nil {
			return
		}
		if s.err < 0 || s.err > maxTimeError || s.offset == math.MinInt64 {
			t.Errorf("%+v", s)
		}
		if r, err := agree([]*sample{s}); err == nil && s.early {
			t.Errorf("early, and taken: %+v", r)
		}
	})
}
