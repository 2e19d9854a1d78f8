package workload

import (
	"context"
	"errors"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"

	"hpcr/contract/compose"
)

// Docker's restart back-off: doubled from 100 ms to a minute, and forgotten
// when a run has lasted ten seconds.
const (
	firstPause = 100 * time.Millisecond
	lastPause  = time.Minute
	steadyRun  = 10 * time.Second

	// unknownExit stands for a status that was lost with the runtime.
	unknownExit = 255
)

// supervise waits for the container's end and starts it again as its policy
// says, until it may end or Stop is called.
func (s *service) supervise(ctx context.Context, r *run) {
	log := s.w.opt.Log.With("service", s.def.Name)
	pause := firstPause
	for {
		check, memory := s.startChecks(ctx, r), s.watchMemory(ctx)
		code := s.await(ctx, r)
		check()
		killed := memory()
		r.finish()
		stopped := s.halted()
		if time.Since(r.begin) >= steadyRun {
			pause = firstPause
		}
		again := !stopped && s.again(code)
		s.update(func(st *State) {
			st.ExitCode, st.Pid, st.Health = code, 0, HealthNone
			switch {
			case stopped:
				st.Phase = Stopped
			case again:
				st.Phase = Restarting
				st.Restarts++
			default:
				st.Phase = Exited
			}
		})
		log.Info("container ended", "status", code, "after", time.Since(r.begin), "restart", again, "outOfMemory", killed > 0)
		if !again {
			return
		}
		for r = nil; r == nil; {
			if s.rest(ctx, pause) {
				s.update(func(st *State) { st.Phase = Stopped })
				return
			}
			pause = min(2*pause, lastPause)
			var err error
			if r, err = s.start(ctx); err != nil {
				log.Warn("the container could not be started again", "err", err)
				if err := s.w.answering(ctx); err != nil {
					return // ctx is over
				}
			}
		}
	}
}

// again is the restart policy.
func (s *service) again(code uint32) bool {
	switch p := s.def.Restart; p.Policy {
	case compose.RestartAlways, compose.RestartUnlessStopped:
		return true
	case compose.RestartOnFailure:
		st, _ := s.snapshot()
		return code != 0 && (p.Max == 0 || st.Restarts < p.Max)
	}
	return false
}

func (s *service) halted() bool {
	select {
	case <-s.halt:
		return true
	default:
		return false
	}
}

// rest waits before a restart; true means that there shall be none.
func (s *service) rest(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-s.halt:
		return true
	case <-ctx.Done():
		return true
	case <-t.C:
		return s.halted()
	}
}

// await returns the exit status. When the daemon dies, the container does not:
// the wait is taken up again with the next daemon. A container that ended in
// between has no status left.
func (s *service) await(ctx context.Context, r *run) uint32 {
	for {
		var st containerd.ExitStatus
		select {
		case st = <-r.exit:
		case <-ctx.Done():
			return unknownExit
		}
		if st.Error() == nil {
			return st.ExitCode()
		}
		if ctx.Err() != nil {
			return unknownExit
		}
		s.w.opt.Log.Warn("lost sight of a container, looking for it again", "service", s.def.Name, "err", st.Error())
		exit, gone := s.adopt(ctx, r)
		if gone {
			return unknownExit
		}
		if exit == nil {
			return unknownExit // ctx is over
		}
		r.exit = exit
	}
}

// adopt finds the run's task in a restarted daemon.
func (s *service) adopt(ctx context.Context, r *run) (exit <-chan containerd.ExitStatus, gone bool) {
	for ctx.Err() == nil {
		if err := s.w.answering(ctx); err != nil {
			return nil, false
		}
		st, err := r.task.Status(ctx)
		if errdefs.IsNotFound(err) || (err == nil && st.Status == containerd.Stopped && st.ExitTime.IsZero()) {
			return nil, true
		}
		if err == nil {
			if exit, err = r.task.Wait(ctx); err == nil {
				s.w.opt.Log.Info("container found again", "service", s.def.Name)
				return exit, false
			}
		}
		if sleep(ctx, 50*time.Millisecond) != nil {
			break
		}
	}
	return nil, false
}

// dependencies waits until what the service depends on is so far. A condition
// that cannot come true any more is HPL08004E, or HPL15005E in a pod.
func (s *service) dependencies(ctx context.Context) error {
	for _, d := range s.def.DependsOn {
		var on *service
		for _, o := range s.w.services {
			if o.def.Name == d.Service {
				on = o
			}
		}
		if on == nil {
			continue // not required, and not part of the project
		}
		if err := on.reach(ctx, d.Condition); err != nil {
			if !d.Required && !errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
				s.w.opt.Log.Warn("an optional dependency failed", "service", s.def.Name, "dependency", d.Service, "err", err)
				continue
			}
			detail := "a service that this one depends on ended or did not become healthy: the guest's log has its output"
			if ctx.Err() != nil {
				detail = "a service that this one depends on was not ready in time: the guest's log has its output"
			}
			return s.failed(err, "depends_on", detail)
		}
	}
	return nil
}

var (
	errUnhealthy = errors.New("the dependency is unhealthy")
	errEnded     = errors.New("the dependency ended")
	errNoCheck   = errors.New("the dependency has no health check")
	errFailed    = errors.New("the check failed")
)

// reach waits for a condition of this service.
func (s *service) reach(ctx context.Context, condition string) error {
	for {
		st, changed := s.snapshot()
		switch condition {
		case compose.Healthy:
			switch {
			case s.image.check(s.def) == nil:
				return errNoCheck
			case st.Health == HealthHealthy:
				return nil
			case st.Health == HealthUnhealthy:
				return errUnhealthy
			case st.Phase == Exited || st.Phase == Stopped:
				return errEnded
			}
		case compose.Completed:
			switch {
			case st.Phase == Exited && st.ExitCode == 0:
				return nil
			case st.Phase == Exited || st.Phase == Stopped:
				return errEnded
			}
		default:
			if st.Phase != "" {
				return nil
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
