package workload

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"hpcr/agent/hpl"
	"hpcr/contract/compose"
	"hpcr/contract/trust"
)

// namespace is containerd's for all that is ours, and the name of the cgroup
// and of the shim that our containers share.
const namespace = "hpcr"

// Options are what one project needs. Zero paths mean the guest's.
type Options struct {
	Project *compose.Project
	Auths   []Auth
	Trust   trust.Policy
	TLS     *tls.Config      // for registries: roots, versions, suites; nil = nothing can be pulled
	Now     func() time.Time // with the time floor, for signatures; nil = the system's
	Roots   []string         // folders that bind mounts are confined to, besides compose.Dir: the contract's volumes, /var/hyperprotect

	Lookaside map[string]string // registry → https address of its images' simple signatures

	// NewBridge makes one network of the project.
	NewBridge  func(internal bool) (Bridge, error)
	ResolvConf []byte // of the guest, for containers on the guest's network
	Profile    string // AppArmor's, of every container; "" = none

	// Output takes one container's lines: each Write is one line with its
	// newline, or a piece of one without, at most MaxLine+1 bytes. It must not
	// block; it counts what it drops. nil discards.
	Output func(Stream) io.Writer
	// StreamEnded hears of a stream that ends while its container runs: nil =
	// the container closed it, as it may; else it could not be read. May be nil.
	StreamEnded func(Stream, error)

	Address string // containerd's socket; the daemon finds its shim by PATH
	Runc    string // runc's path
	State   string // small files of the containers, on a tmpfs
	Store   string // containerd's root, where images lie
	Volumes string // named and anonymous volumes
	Made    string // folders that a bind mount asks for and the guest lacks
	Netns   string // named network namespaces
	Log     *slog.Logger

	stall time.Duration         // stallLimit; tests are in a hurry
	free  func() (int64, error) // bytes that Store has left
}

func (o *Options) defaults() {
	for p, def := range map[*string]string{
		&o.Address: "/run/containerd/containerd.sock",
		&o.Runc:    "/bin/runc",
		&o.State:   "/run/hpcr/workload",
		&o.Store:   "/var/lib/containerd",
		&o.Volumes: "/var/lib/hpcr/volumes",
		&o.Made:    "/var/lib/hpcr/made",
		&o.Netns:   "/run/netns",
	} {
		if *p == "" {
			*p = def
		}
	}
	if o.stall == 0 {
		o.stall = stallLimit
	}
	if o.free == nil {
		o.free = func() (int64, error) { return freeBytes(o.Store) }
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Output == nil {
		o.Output = func(Stream) io.Writer { return io.Discard }
	}
}

// Workload is a project on its way. Its methods Pull and Start are called once
// each, in that order; Stop and Services at any time after.
type Workload struct {
	opt      Options
	client   *containerd.Client
	services []*service
	store    string // the image store's volume; "" = none
	disk     Disk   // with images; nil = none
	bridges  map[string]Bridge
	addrs    map[int]netip.Addr // of each service on its first network, by its index
	memory   []string           // volumes that are a tmpfs
	starting atomic.Bool        // not all containers have started

	stopOnce sync.Once
	stopErr  error

	ctx    context.Context // of the supervisors; ends with Stop
	cancel context.CancelFunc
	wg     sync.WaitGroup

	shim    sync.Mutex // no task is created while another one is deleted
	mu      sync.Mutex
	changed chan struct{} // closed and replaced at every change of a service
}

// Run is New, Pull and Start.
func Run(ctx context.Context, o Options) (*Workload, error) {
	w, err := New(ctx, o)
	if err != nil {
		return nil, err
	}
	if err := w.Pull(ctx); err != nil {
		return nil, errors.Join(err, w.Stop(context.WithoutCancel(ctx)))
	}
	if err := w.Start(ctx); err != nil {
		return nil, errors.Join(err, w.Stop(context.WithoutCancel(ctx)))
	}
	return w, nil
}

// New connects to containerd, which may still be on its way up.
func New(ctx context.Context, o Options) (*Workload, error) {
	o.defaults()
	logrus.SetOutput(io.Discard) // what withLog does not reach must not reach the console either
	w := &Workload{opt: o, bridges: map[string]Bridge{}, addrs: map[int]netip.Addr{}, changed: make(chan struct{})}
	for i := range o.Project.Services {
		def := &o.Project.Services[i]
		w.services = append(w.services, &service{w: w, def: def, state: State{Index: def.Index, Name: def.Name}})
	}
	if err := w.connectDaemon(ctx); err != nil {
		return nil, hpl.Wrap(err, "HPL08004E", "", "the guest's container runtime does not answer: give the guest more memory")
	}
	w.ctx, w.cancel = context.WithCancel(w.withLog(context.WithoutCancel(ctx)))
	return w, nil
}

func (w *Workload) connectDaemon(ctx context.Context) error {
	client, err := containerd.New(w.opt.Address,
		containerd.WithDefaultNamespace(namespace),
		containerd.WithTimeout(10*time.Second),
		containerd.WithDialOpts([]grpc.DialOption{
			grpc.WithTransportCredentials(insecure.NewCredentials()), // a socket of mode 0600
			grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}}),
		}))
	if err != nil {
		return err
	}
	w.client = client
	if err := w.answering(ctx); err != nil {
		return errors.Join(err, client.Close())
	}
	return nil
}

// Alive asks the daemon for an answer, whichever.
func (w *Workload) Alive(ctx context.Context) error {
	_, err := w.client.Version(ctx)
	return err
}

// answering waits until the daemon serves, as after its restart.
func (w *Workload) answering(ctx context.Context) error {
	for {
		try, cancel := context.WithTimeout(ctx, 2*time.Second)
		_, err := w.client.Version(try)
		cancel()
		if err == nil {
			return nil
		}
		if sleep(ctx, 25*time.Millisecond) != nil {
			return fmt.Errorf("containerd: %w", err)
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// UseStore makes a mounted volume the image store of Resolve and Pull, which
// are called after it. Its content is neither trusted nor needed.
func (w *Workload) UseStore(volume string) { w.store = volume }

// Start creates and starts the containers in order, each when what it depends
// on is so far. A container that ends at once has started all the same.
func (w *Workload) Start(ctx context.Context) error {
	ctx = w.withLog(ctx)
	w.starting.Store(true)
	defer w.starting.Store(false)
	if err := w.openBridges(); err != nil {
		return hpl.Wrap(err, "HPL08004E", compose.Root+"/networks", "the containers' network could not be made: the guest's log has the cause")
	}
	for _, s := range w.services {
		if err := s.dependencies(ctx); err != nil {
			return err
		}
		if err := s.launch(ctx); err != nil {
			detail := "the container could not be created or started: check the service's command, user and mounts; the guest's log has the cause"
			if errors.Is(err, context.DeadlineExceeded) {
				detail = "starting the container took too long: the guest's log has the cause"
			}
			return s.failed(err, "", detail)
		}
	}
	w.forget()
	return w.allReady(ctx)
}

// failed is a service that could not be started, a pod's with its own code.
func (s *service) failed(err error, field, detail string) error {
	if s.def.Pod != "" {
		return hpl.Wrap(err, "HPL15005E", s.def.Path(""), detail)
	}
	return hpl.Wrap(err, "HPL08004E", s.def.Path(field), detail)
}

// forget drops what may hold secrets and has had its effect: containers are
// restarted from what containerd keeps of them.
func (w *Workload) forget() {
	w.opt.Auths, w.opt.Project.Files = nil, nil
	for _, s := range w.services {
		d := s.def
		d.Command, d.Entrypoint, d.Env, d.Labels, d.Data = nil, nil, nil, nil, nil
	}
}

// Phase is where a service is.
type Phase string

// The phases of a service.
const (
	Waiting    Phase = "waiting" // not created yet
	Running    Phase = "running"
	Restarting Phase = "restarting" // ended, will be started again
	Exited     Phase = "exited"     // ended, stays so
	Stopped    Phase = "stopped"    // by Stop
)

// Health of a running service.
const (
	HealthNone      = ""
	HealthStarting  = "starting"
	HealthHealthy   = "healthy"
	HealthUnhealthy = "unhealthy"
)

// State is a service's, for health answers. Name is the owner's to see only.
type State struct {
	Index    int
	Name     string
	Phase    Phase
	Health   string
	Restarts int
	ExitCode uint32 // of the last run, when it has ended
	Pid      uint32 // of the container's first process in the guest

	OutOfMemory bool // the kernel has killed a process of it for want of memory
}

// Services is a snapshot in start order.
func (w *Workload) Services() []State {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]State, 0, len(w.services))
	for _, s := range w.services {
		st := s.state
		if st.Phase == "" {
			st.Phase = Waiting
		}
		out = append(out, st)
	}
	return out
}

// update changes a service's state and wakes who waits for it.
func (s *service) update(f func(*State)) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	f(&s.state)
	close(s.w.changed)
	s.w.changed = make(chan struct{})
}

func (s *service) snapshot() (State, <-chan struct{}) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	return s.state, s.w.changed
}

// Stop ends the containers, each by its stop signal, its grace, then by force,
// and before those that it depends on; and removes all that Start made. When ctx ends first,
// the rest is killed at once. A second call says what the first one said.
func (w *Workload) Stop(ctx context.Context) error {
	w.stopOnce.Do(func() { w.stopErr = w.stop(w.withLog(ctx)) })
	return w.stopErr
}

func (w *Workload) stop(ctx context.Context) error {
	var errs []error
	errs = append(errs, w.stopServices(ctx))
	w.cancel()
	w.wg.Wait()
	// Time to remove them remains even if ctx is over; many containers get what is left of it.
	limit := 15 * time.Second
	if end, ok := ctx.Deadline(); ok {
		limit = max(limit, time.Until(end))
	}
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	for i := len(w.services) - 1; i >= 0; i-- {
		errs = append(errs, w.services[i].remove(clean))
	}
	errs = append(errs, w.dropMemory(), w.closeBridges(), w.client.Close())
	return errors.Join(errs...)
}

// forcedEnd is kept back for what has to be killed.
const forcedEnd = 5 * time.Second

// share is the time that a service gets to end by itself: its own, or what is
// its due when too little is left for it and for those below it.
func share(own, below, left time.Duration) time.Duration {
	if all := own + below; all > left {
		return time.Duration(float64(max(0, left)) * float64(own) / float64(all))
	}
	return own
}

// below is for each service the longest time that what it depends on may take
// to end, one after the other. The services are in start order.
func below(services []*service) map[string]time.Duration {
	all, grace := map[string]time.Duration{}, map[string]time.Duration{}
	for _, s := range services {
		grace[s.def.Name] = s.def.StopGrace
		var longest time.Duration
		for _, d := range s.def.DependsOn {
			longest = max(longest, grace[d.Service]+all[d.Service])
		}
		all[s.def.Name] = longest
	}
	return all
}

// stopServices stops what has nothing left that depends on it, side by side:
// graces do not add up.
func (w *Workload) stopServices(ctx context.Context) error {
	var wg sync.WaitGroup
	errs := make([]error, len(w.services))
	stopped, below := map[string]chan struct{}{}, below(w.services)
	for _, s := range w.services {
		stopped[s.def.Name] = make(chan struct{})
	}
	for i, s := range w.services {
		wg.Go(func() {
			defer close(stopped[s.def.Name])
			for _, o := range w.services {
				for _, d := range o.def.DependsOn {
					if d.Service == s.def.Name {
						<-stopped[o.def.Name] // ends: dependencies have no circle, and stop has its limits
					}
				}
			}
			grace := s.def.StopGrace
			if end, ok := ctx.Deadline(); ok {
				grace = share(grace, below[s.def.Name], time.Until(end)-forcedEnd)
			}
			errs[i] = s.stop(ctx, grace)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
