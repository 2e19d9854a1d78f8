package workload

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/signal"

	"hpcr/agent/ctrd"
	"hpcr/contract/compose"
)

const snapshotter = "overlayfs"

// service is one container of the project over its life.
type service struct {
	w     *Workload
	def   *compose.Service
	image *image
	state State // guarded by w.mu

	verified string // by what Resolve proved the image; "" = not yet

	container containerd.Container
	addr      netip.Addr // on its first network
	prepared  bool       // namespace, networks and staged mounts may exist

	mu       sync.Mutex
	task     containerd.Task // of the current run
	stopping bool
	done     chan struct{} // closed when the supervisor has ended; nil before launch
	halt     chan struct{} // closed by stop: no further start
}

// containerID names the container by its place in the document: it goes into
// paths, cgroups and the kernel's messages, where the contract's words do not
// belong.
func containerID(s *compose.Service) string { return "c" + strconv.Itoa(s.Index) }

func (s *service) id() string    { return containerID(s.def) }
func (s *service) dir() string   { return filepath.Join(s.w.opt.State, s.id()) }
func (s *service) stage() string { return filepath.Join(s.dir(), "mounts") }

// launch creates the container, starts its first run and its supervisor.
func (s *service) launch(ctx context.Context) error {
	begin := time.Now()
	if err := s.create(ctx); err != nil {
		return err
	}
	run, err := s.start(ctx)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.done, s.halt = make(chan struct{}), make(chan struct{})
	s.mu.Unlock()
	s.w.wg.Add(1)
	go func() {
		defer s.w.wg.Done()
		defer close(s.done)
		s.supervise(s.w.ctx, run)
	}()
	s.w.opt.Log.Info("container started", "service", s.def.Name, "took", time.Since(begin))
	return nil
}

func (s *service) create(ctx context.Context) error {
	w := s.w
	if s.image == nil {
		return errors.New("the image was not pulled")
	}
	s.prepared = true
	host := w.hostname(s.def)
	netns, addr, err := w.connect(s.def)
	if err != nil {
		return err
	}
	s.addr = addr
	st, err := newStage(s.stage())
	if err != nil {
		return err
	}
	fill, err := w.stageAll(s.def, s.image, st, host, addr)
	if err != nil {
		return err
	}
	spec := w.specOpts(s.def, s.image, surroundings{netns: netns, hostname: host, mounts: st.list})
	s.container, err = w.client.NewContainer(ctx, s.id(),
		containerd.WithImage(s.image.handle),
		containerd.WithSnapshotter(snapshotter),
		containerd.WithNewSnapshot(s.id(), s.image.handle),
		containerd.WithRuntime(ctrd.ShimName, &options.Options{BinaryName: w.opt.Runc, Root: filepath.Join(w.opt.State, "runc")}),
		func(ctx context.Context, c *containerd.Client, ctr *containers.Container) error {
			mounts, err := c.SnapshotService(snapshotter).Mounts(ctx, ctr.SnapshotKey)
			if err != nil {
				return err
			}
			return fillVolumes(ctx, mounts, fill)
		},
		containerd.WithNewSpec(spec...),
	)
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	return nil
}

// run is one life of the container's first process.
type run struct {
	task   containerd.Task
	exit   <-chan containerd.ExitStatus
	begin  time.Time
	output *output // nil = discarded
	cancel context.CancelFunc
}

// start begins a run. All containers share one shim, which leaves when its last
// task is deleted: a task is created under the lock that deletions take, and
// again if the shim was just on its way out.
func (s *service) start(ctx context.Context) (*run, error) {
	s.w.shim.Lock()
	defer s.w.shim.Unlock()
	if err := s.deleteOld(ctx); err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		r, err := s.startOnce(ctx)
		if err == nil || try == shimTries || !shimGone(err) || sleep(ctx, 100*time.Millisecond) != nil {
			return r, err
		}
	}
}

const shimTries = 5

func shimGone(err error) bool {
	for _, text := range []string{"ttrpc: closed", "shim disconnected", "connect: connection refused", "connect: no such file"} {
		if strings.Contains(err.Error(), text) {
			return true
		}
	}
	return false
}

// deleteOld removes the task of the run before, if there is one. It was kept
// so that the shim stays for the other containers.
func (s *service) deleteOld(ctx context.Context) error {
	s.mu.Lock()
	task := s.task
	s.task = nil
	s.mu.Unlock()
	if task == nil {
		return nil
	}
	return patiently(ctx, func() error {
		_, err := task.Delete(ctx, containerd.WithProcessKill)
		return ignoreNotFound(err)
	})
}

// patiently repeats what fails since the daemon or the shim has just died: the
// daemon is started again and cleans up after a dead shim.
func patiently(ctx context.Context, do func() error) error {
	for try := 1; ; try++ {
		err := do()
		if err == nil || try == patientTries || !shimGone(err) || sleep(ctx, 100*time.Millisecond) != nil {
			return err
		}
	}
}

const patientTries = 80

func (s *service) startOnce(ctx context.Context) (*run, error) {
	r := &run{}
	creator, err := s.io(r)
	if err != nil {
		return nil, err
	}
	task, err := s.container.NewTask(ctx, creator)
	if err != nil {
		r.closeOutput()
		return nil, fmt.Errorf("create task: %w", err)
	}
	// The wait belongs to the supervisor and outlives this call.
	waitCtx, cancel := context.WithCancel(s.w.ctx)
	exit, err := task.Wait(waitCtx)
	if err == nil {
		err = task.Start(ctx)
	}
	if err != nil {
		cancel()
		r.closeOutput()
		// What could not start is removed with whatever it left; the cause is err.
		_, derr := task.Delete(context.WithoutCancel(ctx), containerd.WithProcessKill)
		return nil, errors.Join(fmt.Errorf("start: %w", err), ignoreNotFound(derr))
	}
	r.task, r.exit, r.begin, r.cancel = task, exit, time.Now(), cancel
	s.mu.Lock()
	s.task = task
	s.mu.Unlock()
	health := HealthNone
	if s.image.check(s.def) != nil || gated(s.def) {
		health = HealthStarting
	}
	s.update(func(st *State) { st.Phase, st.Health, st.Pid = Running, health, task.Pid() })
	return r, nil
}

// finish reads what a run that has ended still had to say. Its task stays until
// the next start or the end.
func (r *run) finish() {
	r.cancel()
	if io := r.task.IO(); io != nil {
		drained := make(chan struct{})
		go func() { io.Wait(); close(drained) }()
		select {
		case <-drained:
		case <-time.After(2 * time.Second): // a process outside of the container's PID namespace holds on to it
			io.Cancel()
		}
	}
	r.closeOutput()
}

func (r *run) closeOutput() {
	if r.output != nil {
		r.output.end()
	}
}

func ignoreNotFound(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// stop asks the container to end and waits until it has. It returns early
// only when the runtime is gone and the processes were killed without it.
func (s *service) stop(ctx context.Context, grace time.Duration) error {
	s.mu.Lock()
	if !s.stopping && s.halt != nil {
		close(s.halt)
	}
	s.stopping = true
	done := s.done
	s.mu.Unlock()
	if done == nil {
		return nil
	}
	if s.signal(ctx, s.stopSignal()) == nil && ended(ctx, done, grace) {
		return nil
	}
	// The grace is over, or ctx is: five more seconds by force.
	force, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	err := s.signal(force, syscall.SIGKILL, containerd.WithKillAll)
	if err == nil && ended(force, done, 4*time.Second) {
		return nil
	}
	if kerr := killCgroup(cgroup(s.def)); kerr != nil {
		return errors.Join(fmt.Errorf("kill: %w", err), kerr)
	}
	ended(force, done, 4*time.Second)
	return nil
}

func ended(ctx context.Context, done <-chan struct{}, grace time.Duration) bool {
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-ctx.Done():
	case <-t.C:
	}
	return false
}

// signal is nil also when there is nothing left to signal.
func (s *service) signal(ctx context.Context, sig syscall.Signal, opts ...containerd.KillOpts) error {
	s.mu.Lock()
	task := s.task
	s.mu.Unlock()
	if task == nil {
		return nil
	}
	err := task.Kill(ctx, sig, opts...)
	if errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err) {
		return nil
	}
	return err
}

func (s *service) stopSignal() syscall.Signal {
	name := s.def.StopSignal
	if name == "" {
		name = s.image.config.StopSignal
	}
	if sig, err := signal.ParseSignal(name); err == nil {
		return sig
	}
	return syscall.SIGTERM
}

// remove takes back what create made. Safe when create failed half-way.
func (s *service) remove(ctx context.Context) error {
	if !s.prepared {
		return nil
	}
	var errs []error
	if s.container == nil {
		// NewContainer may have left its snapshot.
		errs = append(errs, patiently(ctx, func() error {
			return ignoreNotFound(s.w.client.SnapshotService(snapshotter).Remove(ctx, s.id()))
		}))
	} else {
		errs = append(errs, s.deleteOld(ctx))
		errs = append(errs, patiently(ctx, func() error {
			return ignoreNotFound(s.container.Delete(ctx, containerd.WithSnapshotCleanup))
		}))
	}
	errs = append(errs, s.w.disconnect(s.def), dropStage(s.stage()))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	s.prepared = false
	return os.RemoveAll(s.dir())
}
