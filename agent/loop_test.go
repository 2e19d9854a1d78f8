package agent

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"hpcr/agent/event"
	"hpcr/agent/health"
	"hpcr/agent/pid1"
)

type fakeHeart struct {
	beats int
	err   error
}

func (h *fakeHeart) Beat() error {
	h.beats++
	return h.err
}

// The agent beats while it works, however long that takes, and ends the guest
// itself only when PID 1 hangs.
func TestTheMainLoopBeats(t *testing.T) {
	for name, tc := range map[string]struct {
		err error
		off bool
	}{
		"init listens":       {nil, false},
		"init hangs":         {pid1.ErrInitHangs, true},
		"the line is broken": {errors.New("beat: broken pipe"), false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				heart, off := &fakeHeart{err: tc.err}, false
				a := &agent{heart: heart, off: func() { off = true }, hub: &event.Hub{}, health: health.New("dev")}
				const work = 20 * pid1.BeatEvery
				start := time.Now()
				a.during(func() { time.Sleep(work) })
				if took := time.Since(start); took != work {
					t.Errorf("work of %s took %s", work, took)
				}
				if heart.beats < 20 {
					t.Errorf("%d beats, want one each %s", heart.beats, pid1.BeatEvery)
				}
				if off != tc.off {
					t.Errorf("powered off: %v, want %v", off, tc.off)
				}
			})
		})
	}
}
