package boot

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hpcr/agent/event"
	"hpcr/agent/hpl"
	"hpcr/network"
)

// TestClock plays what servers say, one answer after the other, to a clock
// that starts anywhere.
func TestClock(t *testing.T) {
	floor := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	truth := floor.Add(30 * 24 * time.Hour)
	at := func(year int) time.Time { return time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC) }
	silence := errors.New("nobody")
	type say struct {
		time time.Time // what the servers say it is; zero = the error
		err  error
	}
	tests := map[string]struct {
		start  time.Time
		says   []say
		want   time.Time
		events string
	}{
		"1970, and servers":                           {at(1970), []say{{time: truth}}, truth, "clock.jumped clock.set"},
		"1970, and nobody":                            {at(1970), []say{{err: silence}}, floor, "clock.jumped clock.unset"},
		"2100, and servers":                           {at(2100), []say{{time: truth}}, truth, "clock.set"},
		"2100, and nobody: the host is believed":      {at(2100), []say{{err: silence}}, at(2100), "clock.unset"},
		"2100, nobody, then servers":                  {at(2100), []say{{err: silence}, {time: truth}}, truth, "clock.unset clock.set"},
		"servers before the image":                    {truth, []say{{time: at(2020)}}, truth, "clock.unset"},
		"silence is told once":                        {truth, []say{{err: silence}, {err: silence}, {err: silence}}, truth, "clock.unset"},
		"a little off: slewed, not set":               {truth, []say{{time: truth.Add(100 * time.Millisecond)}}, truth, "clock.set"},
		"set, then behind: forward":                   {truth, []say{{time: truth}, {time: truth.Add(time.Hour)}}, truth.Add(time.Hour), "clock.set clock.jumped"},
		"set, then ahead: not back, and told once":    {truth, []say{{time: truth.Add(time.Hour)}, {time: truth}, {time: truth}}, truth.Add(time.Hour), "clock.set clock.jumped"},
		"servers that go to 2100 cannot be undone":    {truth, []say{{time: at(2100)}, {time: truth}}, at(2100), "clock.set clock.jumped"},
		"a clock that is right again may be told off": {truth, []say{{time: truth.Add(time.Hour)}, {time: truth}, {time: truth.Add(time.Hour)}, {time: truth}}, truth.Add(time.Hour), "clock.set clock.jumped clock.jumped"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			now := tt.start
			var events []string
			var next say
			c := &clock{
				floor: floor, servers: []string{"a"},
				ask: func(context.Context, []string, time.Time) (network.Reading, error) {
					return network.Reading{Offset: next.time.Sub(now), Agreed: 1, Of: 1}, next.err
				},
				now:  func() time.Time { return now },
				step: func(to time.Time) error { now = to; return nil },
				slew: func(d time.Duration) error {
					if d.Abs() > slewLimit {
						t.Errorf("slewed by %v", d)
					}
					return nil
				},
				say: func(e event.Event) { events = append(events, string(e.ID)) },
			}
			if err := c.raise(); err != nil {
				t.Fatal(err)
			}
			for _, next = range tt.says {
				if err := c.sync(t.Context()); err != nil {
					t.Fatal(err)
				}
				if now.Before(floor) {
					t.Errorf("the clock is at %v, before the floor", now)
				}
			}
			if !now.Equal(tt.want) {
				t.Errorf("the clock is at %v, want %v", now, tt.want)
			}
			if got := strings.Join(events, " "); got != tt.events {
				t.Errorf("events %q, want %q", got, tt.events)
			}
		})
	}
}

// Servers that can prove themselves and do not end the boot, in time.
func TestClockProved(t *testing.T) {
	now := time.Now()
	tries := 0
	c := &clock{
		now: func() time.Time { return now }, limit: 5 * time.Second, say: func(event.Event) {},
		slew: func(time.Duration) error { return nil },
		ask: func(context.Context, []string, time.Time) (network.Reading, error) {
			if tries++; tries < 3 {
				return network.Reading{}, errors.New("nobody")
			}
			return network.Reading{Agreed: 1, Of: 1}, nil
		},
	}
	if err := c.prove(t.Context()); err != nil || !c.set || tries != 3 {
		t.Errorf("after %d tries: %v", tries, err)
	}
	c.set, c.limit, tries = false, 100*time.Millisecond, -1000
	var coded *hpl.Error
	if err := c.prove(t.Context()); !errors.As(err, &coded) || coded.Code != "HPL14001E" {
		t.Errorf("nobody answers: %v", err)
	}
}

// A kernel that refuses ends the boot.
func TestClockRefused(t *testing.T) {
	refuse := errors.New("not permitted")
	c := &clock{floor: time.Unix(1e9, 0), now: func() time.Time { return time.Unix(0, 0) }, step: func(time.Time) error { return refuse }}
	if err := c.raise(); !errors.Is(err, refuse) {
		t.Errorf("got %v", err)
	}
}

func TestTimeFloor(t *testing.T) {
	built := time.Unix(1_700_000_000, 0).UTC()
	crt := filepath.Join("..", "..", "contract", "testdata", "vectors", "keys", "ca.crt")
	c, err := readCertificate(crt)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		built time.Time
		files []string
		want  time.Time
	}{
		"no certificate":       {built, []string{"/nowhere"}, built},
		"a later certificate":  {c.NotBefore.Add(-time.Hour), []string{"/nowhere", crt}, c.NotBefore},
		"an older certificate": {c.NotBefore.Add(time.Hour), []string{crt}, c.NotBefore.Add(time.Hour)},
	} {
		if got := timeFloor(tt.built, tt.files...); !got.Equal(tt.want) {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
	g := &Guest{floor: time.Now().Add(time.Hour)}
	if got := g.now(); !got.Equal(g.floor) {
		t.Errorf("certificates would be judged at %v", got)
	}
}

// The monotonic clock tells who moved the wall clock.
func TestJump(t *testing.T) {
	from := time.Now()
	to := from.Add(10 * time.Second)
	if d := jump(from, to); d != 0 {
		t.Errorf("a clock that runs jumped by %v", d)
	}
	if d := jump(from, time.Now()); d.Abs() > 100*time.Millisecond {
		t.Errorf("the machine's clock jumped by %v", d)
	}
}
