package boot

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"hpcr/agent/hpl"
)

// script runs phases whose steps write to a shared trace.
type script struct {
	mu    sync.Mutex
	trace []string
}

func (s *script) add(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trace = append(s.trace, line)
}

func (s *script) phase(name string, took time.Duration, err error, after ...string) Phase {
	return Phase{Name: name, After: after, Limit: time.Minute, Code: "HPL11000E",
		Do: func(ctx context.Context) error {
			select {
			case <-time.After(took):
			case <-ctx.Done():
				return ctx.Err()
			}
			s.add("do " + name)
			return err
		},
		Undo: func(context.Context) error { s.add("undo " + name); return nil },
	}
}

func TestRunSideBySideAndUnwindInReverse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s script
		r := Runner{Phases: []Phase{
			s.phase("a", time.Second, nil),
			s.phase("slow", 5*time.Second, nil, "a"),
			s.phase("quick", time.Second, nil, "a"),
			s.phase("end", 0, nil, "slow", "quick"),
		}}
		start := time.Now()
		if err := r.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took != 6*time.Second {
			t.Errorf("took %v: the phases did not run side by side", took)
		}
		if err := r.Unwind(t.Context()); err != nil {
			t.Fatal(err)
		}
		want := []string{"do a", "do quick", "do slow", "do end", "undo end", "undo slow", "undo quick", "undo a"}
		if !slices.Equal(s.trace, want) {
			t.Errorf("got %v", s.trace)
		}
		if err := r.Unwind(t.Context()); err != nil || len(s.trace) != len(want) {
			t.Error("a second unwind must do nothing")
		}
	})
}

func TestFailureStopsTheRestAndUndoesOnlyWhatWasDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s script
		bad := hpl.New("HPL02003E", "/workload/volumes/#1", "check the seeds")
		r := Runner{Phases: []Phase{
			s.phase("a", 0, nil),
			s.phase("bad", time.Second, bad, "a"),
			s.phase("beside", time.Hour, nil, "a"),
			s.phase("later", 0, nil, "bad"),
		}}
		err := r.Run(t.Context())
		if got := hpl.From(err); got != bad {
			t.Errorf("got %v", err)
		}
		if err := r.Unwind(t.Context()); err != nil {
			t.Fatal(err)
		}
		if want := []string{"do a", "do bad", "undo a"}; !slices.Equal(s.trace, want) {
			t.Errorf("got %v", s.trace)
		}
	})
}

func TestVerdicts(t *testing.T) {
	tests := map[string]struct {
		do   Step
		want string
	}{
		"an error without code gets the phase's": {
			func(context.Context) error { return errors.New("secret") },
			"HPL14001E: Network connectivity check failed. -> phase p failed; the guest's log has the cause"},
		"a panic is an error and not the end": {
			func(context.Context) error { panic("secret") },
			"HPL14001E: Network connectivity check failed. -> phase p failed; the guest's log has the cause"},
		"a hang that heeds its context": {
			func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
			"HPL14001E: Network connectivity check failed. -> phase p did not end within 3s"},
		"a hang that does not": {
			func(context.Context) error { time.Sleep(time.Hour); return nil },
			"HPL14001E: Network connectivity check failed. -> phase p did not end within 3s"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := Runner{Phases: []Phase{{Name: "p", Limit: 3 * time.Second, Code: "HPL14001E", Do: tt.do}}}
				start := time.Now()
				err := r.Run(t.Context())
				if got := hpl.From(err).Line(); got != tt.want {
					t.Errorf("got  %s\nwant %s", got, tt.want)
				}
				if took := time.Since(start); took > 6*time.Second {
					t.Errorf("took %v", took)
				}
				time.Sleep(2 * time.Hour) // let the abandoned step end inside the bubble
			})
		})
	}
}

func TestAStopIsNotAPhasesFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s script
		ctx, cancel := context.WithCancelCause(t.Context())
		stop := errors.New("the host asked")
		time.AfterFunc(time.Second, func() { cancel(stop) })
		r := Runner{Phases: []Phase{s.phase("a", time.Hour, nil)}}
		if err := r.Run(ctx); !errors.Is(err, stop) {
			t.Errorf("got %v", err)
		}
	})
}

func TestUnwindGoesOnAfterErrorsAndHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s script
		bad := s.phase("bad", 0, nil)
		bad.Undo = func(context.Context) error { return errors.New("no") }
		hang := s.phase("hang", 0, nil)
		hang.Undo = func(context.Context) error { time.Sleep(time.Hour); return nil }
		r := Runner{Phases: []Phase{s.phase("a", 0, nil), bad, hang}}
		if err := r.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		err := r.Unwind(t.Context())
		if err == nil || !strings.Contains(err.Error(), "undo bad: no") || !strings.Contains(err.Error(), "undo hang") {
			t.Errorf("got %v", err)
		}
		if s.trace[len(s.trace)-1] != "undo a" || time.Since(start) > time.Minute {
			t.Errorf("trace %v after %v", s.trace, time.Since(start))
		}
		time.Sleep(2 * time.Hour) // let the abandoned step end inside the bubble
	})
}

func TestCheck(t *testing.T) {
	var s script
	for name, phases := range map[string][]Phase{
		"forward dependency": {s.phase("a", 0, nil, "b"), s.phase("b", 0, nil)},
		"double name":        {s.phase("a", 0, nil), s.phase("a", 0, nil)},
		"no code":            {{Name: "a", Limit: 1, Do: func(context.Context) error { return nil }}},
		"no limit":           {{Name: "a", Code: "HPL11000E", Do: func(context.Context) error { return nil }}},
	} {
		if err := (&Runner{Phases: phases}).Run(t.Context()); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
