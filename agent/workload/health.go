package workload

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"

	"hpcr/contract/compose"
)

// startChecks runs the health check beside a run; the result ends it.
func (s *service) startChecks(ctx context.Context, r *run) (stop func()) {
	h, d := s.image.check(s.def), s.def
	probes := d.Startup != nil || d.Liveness != nil || d.Readiness != nil
	if h == nil && !probes {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if probes {
			s.podProbes(ctx, r)
		} else {
			s.checks(ctx, r, h)
		}
	}()
	return func() { cancel(); <-done }
}

// checks follows Docker: failures in the start period do not count, one
// success ends it; so many failures in a row make the container unhealthy.
func (s *service) checks(ctx context.Context, r *run, h *compose.Health) {
	failed, proven := 0, false
	for n := 0; ; n++ {
		starting := !proven && time.Since(r.begin) < h.StartPeriod
		wait := h.Interval
		if starting {
			wait = min(h.Interval, h.StartInterval)
		}
		if sleep(ctx, wait) != nil {
			return
		}
		err := s.probe(ctx, r.task, h, fmt.Sprintf("health-%d-%d", r.begin.UnixNano(), n))
		if ctx.Err() != nil {
			return
		}
		now := HealthHealthy
		switch {
		case err == nil:
			failed, proven = 0, true
		case !proven && time.Since(r.begin) < h.StartPeriod:
			continue
		default:
			if failed++; failed < h.Retries {
				continue
			}
			now = HealthUnhealthy
		}
		if st, _ := s.snapshot(); st.Health != now {
			s.w.opt.Log.Info("health of a container changed", "service", s.def.Name, "health", now, "err", err)
			s.update(func(st *State) { st.Health = now })
		}
	}
}

// probe runs the check's command once inside the container.
func (s *service) probe(ctx context.Context, task containerd.Task, h *compose.Health, id string) (err error) {
	spec, err := s.container.Spec(ctx)
	if err != nil {
		return err
	}
	proc := *spec.Process
	proc.Terminal = false
	proc.Args = slices.Clone(h.Test[1:])
	if h.Test[0] == "CMD-SHELL" {
		proc.Args = []string{"/bin/sh", "-c", h.Test[1]}
	}
	ctx, cancel := context.WithTimeout(ctx, h.Timeout)
	defer cancel()
	// Nothing reads the output: it may be anything, and only the status counts.
	p, err := task.Exec(ctx, id, &proc, cio.NewCreator(cio.WithFIFODir(s.dir()), cio.WithStreams(nil, io.Discard, io.Discard)))
	if err != nil {
		return err
	}
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if _, derr := p.Delete(clean, containerd.WithProcessKill); ignoreNotFound(derr) != nil && err == nil {
			err = derr
		}
	}()
	exit, err := p.Wait(context.WithoutCancel(ctx))
	if err != nil {
		return err
	}
	if err := p.Start(ctx); err != nil {
		return err
	}
	select {
	case st := <-exit:
		if code, _, err := st.Result(); err != nil || code != 0 {
			return fmt.Errorf("status %s: %w", strconv.Itoa(int(code)), errCheck(err))
		}
		return nil
	case <-ctx.Done():
		if err := p.Kill(context.WithoutCancel(ctx), syscall.SIGKILL); ignoreNotFound(err) != nil {
			return err
		}
		return ctx.Err()
	}
}

func errCheck(err error) error {
	if err == nil {
		return errFailed
	}
	return err
}
