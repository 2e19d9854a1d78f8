package boot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"hpcr/agent/hpl"
)

// Step is what a phase does, and its undo.
type Step func(context.Context) error

// Phase is one named part of the boot.
type Phase struct {
	Name  string
	After []string      // phases that must have ended well; nil = the one before in the list
	Limit time.Duration // for Do
	Code  hpl.Code      // verdict of an error without one, and of the time limit
	Do    Step
	Undo  Step // nil: nothing to undo. Runs only if Do ended well

	UndoLimit time.Duration // 0 = undoLimit
}

// Report is how one phase went. Start counts from the runner's start.
type Report struct {
	Name        string
	Start, Took time.Duration
	Err         error
}

// undoLimit bounds each undo, so that a dead disk cannot hold the power-off.
const undoLimit = 20 * time.Second

// Runner runs a list of phases once.
type Runner struct {
	Phases  []Phase
	Started func(name string) // may be nil
	Ended   func(Report)      // may be nil
	Undone  func(Report)      // may be nil

	begin time.Time
	mu    sync.Mutex
	done  []Phase // in the order of their ends
}

// Check refuses a list whose dependencies do not point backwards.
func (r *Runner) Check() error {
	seen := map[string]bool{}
	for _, p := range r.Phases {
		if seen[p.Name] || p.Name == "" || p.Do == nil || p.Limit <= 0 || p.Code == "" {
			return fmt.Errorf("phase %q is malformed or double", p.Name)
		}
		for _, a := range p.After {
			if !seen[a] {
				return fmt.Errorf("phase %q comes after %q, which is not before it in the list", p.Name, a)
			}
		}
		seen[p.Name] = true
	}
	return nil
}

// Run runs every phase as soon as those before it have ended. The first error
// cancels the others; it is returned with its phase's code when it has none.
func (r *Runner) Run(ctx context.Context) error {
	if err := r.Check(); err != nil {
		return err
	}
	r.begin = time.Now()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended := make(map[string]chan struct{}, len(r.Phases))
	var all sync.WaitGroup
	for i, p := range r.Phases {
		after := p.After
		if after == nil && i > 0 {
			after = []string{r.Phases[i-1].Name}
		}
		end := make(chan struct{})
		ended[p.Name] = end
		var waits []chan struct{}
		for _, a := range after {
			waits = append(waits, ended[a])
		}
		all.Go(func() {
			for _, w := range waits {
				select {
				case <-w:
				case <-ctx.Done():
					return
				}
			}
			if ctx.Err() != nil {
				return
			}
			if err := r.one(ctx, p); err != nil {
				cancel(err)
				return
			}
			close(end)
		})
	}
	all.Wait()
	return context.Cause(ctx)
}

func (r *Runner) one(ctx context.Context, p Phase) error {
	if r.Started != nil {
		r.Started(p.Name)
	}
	start := time.Now()
	limited, cancel := context.WithTimeout(ctx, p.Limit)
	defer cancel()
	err := guard(limited, p.Do)
	if err != nil {
		err = verdictOf(ctx, p, err)
	} else if p.Undo != nil {
		r.mu.Lock()
		r.done = append(r.done, p)
		r.mu.Unlock()
	}
	if r.Ended != nil {
		r.Ended(Report{p.Name, start.Sub(r.begin), time.Since(start), err})
	}
	return err
}

// guard runs a step so that neither a panic nor a hang of it outlasts its
// context: a step that ignores the context is left behind, since the guest is
// about to power off.
func guard(ctx context.Context, do Step) error {
	result := make(chan error, 1)
	go func() {
		defer func() {
			if v := recover(); v != nil {
				result <- fmt.Errorf("panic: %v", v)
			}
		}()
		result <- do(ctx)
	}()
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
	}
	select { // a step that heeds the context may have more to say
	case err := <-result:
		return err
	case <-time.After(2 * time.Second):
		return context.Cause(ctx)
	}
}

// verdictOf gives an error its code. A cancelled boot keeps its cause: the
// phase is not to blame.
func verdictOf(parent context.Context, p Phase, err error) error {
	var coded *hpl.Error
	switch {
	case parent.Err() != nil:
		return context.Cause(parent)
	case errors.As(err, &coded):
		return err
	case errors.Is(err, context.DeadlineExceeded):
		return hpl.Wrap(err, p.Code, "", fmt.Sprintf("phase %s did not end within %s", p.Name, p.Limit))
	}
	return hpl.Wrap(err, p.Code, "", fmt.Sprintf("phase %s failed; the guest's log has the cause", p.Name))
}

// Unwind undoes what was done, latest first. It goes on after errors and
// returns them joined.
func (r *Runner) Unwind(ctx context.Context) error {
	r.mu.Lock()
	done := slices.Clone(r.done)
	r.done = nil
	r.mu.Unlock()
	var errs []error
	for _, p := range slices.Backward(done) {
		start := time.Now()
		limited, cancel := context.WithTimeout(ctx, cmp.Or(p.UndoLimit, undoLimit))
		err := guard(limited, p.Undo)
		cancel()
		if r.Undone != nil {
			r.Undone(Report{p.Name, start.Sub(r.begin), time.Since(start), err})
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("undo %s: %w", p.Name, err))
		}
	}
	return errors.Join(errs...)
}

// Names lists the phases in order.
func (r *Runner) Names() string {
	names := make([]string, len(r.Phases))
	for i, p := range r.Phases {
		names[i] = p.Name
	}
	return strings.Join(names, " → ")
}
