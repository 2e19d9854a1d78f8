package compose

import (
	"math"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"

	"hpcr/agent/hpl"
)

func itoa(i int) string { return strconv.Itoa(i) }

// converter turns one service of the loader into ours, field by field.
type converter struct {
	*load
	p   *types.Project
	cfg types.ServiceConfig
	out Service
}

// refuse is an error at a field of the service.
func (c *converter) refuse(field, detail string) error {
	return hpl.New("HPL06009E", c.out.Path(field), detail)
}

func (l *load) service(p *types.Project, cfg types.ServiceConfig, digest string) (Service, error) {
	c := &converter{load: l, p: p, cfg: cfg, out: Service{Index: l.doc.index[cfg.Name], Name: cfg.Name}}
	for _, step := range []func() error{
		c.identity, c.process, c.runtime, c.security, c.mounts, c.data, c.network, c.powers, c.ports, c.limits, c.health,
	} {
		if err := step(); err != nil {
			return Service{}, err
		}
	}
	img, ok := ParseImage(cfg.Image, digest)
	if !ok {
		return Service{}, c.refuse("image", "the image is not a valid reference once its variables are filled in: check the variables that its name uses")
	}
	c.out.Image = img
	if digest == "" && len(l.opt.Trust.For(c.out.Signed())) == 0 {
		return Service{}, hpl.New("HPL06010E", c.out.Path("image"), unpinned)
	}
	return c.out, nil
}

// word is a pattern with a limit of its own: counted repetitions make large
// programs, and every process of the guest pays for them at its start.
type word struct {
	max int
	re  *regexp.Regexp
}

func (w word) MatchString(s string) bool { return len(s) <= w.max && w.re.MatchString(s) }

// nameRE is Docker's for containers; names go into paths of the guest.
var nameRE = word{128, regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)}

// hostRE is a host name that fits into /etc/hosts and the resolver.
var hostRE = word{253, regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$`)}

func (c *converter) identity() error {
	cfg := c.cfg
	if !nameRE.MatchString(cfg.Name) {
		return c.refuse("", "the service's name must be made of letters, digits, dot, dash and underscore")
	}
	if cfg.ContainerName != "" && !nameRE.MatchString(cfg.ContainerName) {
		return c.refuse("container_name", "use letters, digits, dot, dash and underscore")
	}
	if cfg.Hostname != "" && !hostRE.MatchString(cfg.Hostname) {
		return c.refuse("hostname", "use letters, digits, dot and dash")
	}
	if cfg.DomainName != "" && !hostRE.MatchString(cfg.DomainName) {
		return c.refuse("domainname", "use letters, digits, dot and dash")
	}
	if cfg.GetScale() != 1 {
		return c.refuse("scale", "only one container a service is supported: use 1")
	}
	if cfg.Deploy != nil && cfg.Deploy.Mode != "" && cfg.Deploy.Mode != "replicated" {
		return c.refuse("deploy/mode", "only the replicated mode is supported: remove this line")
	}
	switch cfg.PullPolicy {
	case "", types.PullPolicyAlways, types.PullPolicyMissing, types.PullPolicyIfNotPresent:
	default:
		return c.refuse("pull_policy", "every boot pulls the pinned image: use always or missing")
	}
	if cfg.Platform != "" && !strings.HasPrefix(cfg.Platform, "linux/") {
		return c.refuse("platform", "only linux platforms can run")
	}
	c.out.Container, c.out.Hostname, c.out.Domainname, c.out.Platform = cfg.ContainerName, cfg.Hostname, cfg.DomainName, cfg.Platform
	for k, v := range cfg.Labels {
		c.out.Labels = append(c.out.Labels, Var{Name: k, Value: v})
	}
	slices.SortFunc(c.out.Labels, func(a, b Var) int { return strings.Compare(a.Name, b.Name) })
	return nil
}

func (c *converter) process() error {
	cfg := c.cfg
	c.out.Command, c.out.Entrypoint = cfg.Command, cfg.Entrypoint
	for field, args := range map[string][]string{"command": cfg.Command, "entrypoint": cfg.Entrypoint} {
		for _, a := range args {
			if strings.ContainsRune(a, 0) {
				return c.refuse(field, "an argument holds a NUL byte: remove it")
			}
		}
	}
	if cfg.WorkingDir != "" && !path.IsAbs(cfg.WorkingDir) {
		return c.refuse("working_dir", "give an absolute path")
	}
	c.out.WorkingDir, c.out.User, c.out.GroupAdd = cfg.WorkingDir, cfg.User, cfg.GroupAdd
	c.out.TTY, c.out.StdinOpen = cfg.Tty, cfg.StdinOpen
	if cfg.Init != nil && *cfg.Init {
		return c.refuse("init", "the guest has no init program for containers: put one such as tini into the image")
	}
	env, err := c.environment(cfg)
	if err != nil {
		return err
	}
	c.out.Env = env
	if cfg.Logging != nil {
		switch cfg.Logging.Driver {
		case "none":
			c.out.Discard = true
		case "", "json-file", "local", "journald", "syslog":
			for option := range cfg.Logging.Options {
				if !slices.Contains(rotation, option) {
					return c.refuse("logging/options", "output goes to the log host of env.logging, and nothing of it is chosen here: keep only "+strings.Join(rotation, ", "))
				}
			}
		default:
			return c.refuse("logging/driver", "output goes to the log host of env.logging: remove this line, or use none")
		}
	}
	return nil
}

// rotation options are about files that a guest does not have: they have no
// effect, and many compose files set them.
var rotation = []string{"max-size", "max-file", "compress", "mode", "max-buffer-size"}

func (c *converter) runtime() error {
	cfg := c.cfg
	if err := c.restart(); err != nil {
		return err
	}
	for _, name := range sortedKeys(cfg.DependsOn) {
		d := cfg.DependsOn[name]
		switch d.Condition {
		case Started, Healthy, Completed:
		default:
			return c.refuse("depends_on", "the condition must be service_started, service_healthy or service_completed_successfully")
		}
		c.out.DependsOn = append(c.out.DependsOn, Dependency{Service: name, Condition: d.Condition, Required: d.Required})
	}
	c.out.StopSignal = cfg.StopSignal
	if cfg.StopSignal != "" && !signalKnown(cfg.StopSignal) {
		return c.refuse("stop_signal", "give a signal's name or number, such as SIGTERM")
	}
	c.out.StopGrace = 10 * time.Second
	if cfg.StopGracePeriod != nil {
		c.out.StopGrace = time.Duration(*cfg.StopGracePeriod)
		if c.out.StopGrace < 0 || c.out.StopGrace > time.Hour {
			return c.refuse("stop_grace_period", "give at most an hour")
		}
	}
	if n := cfg.OomScoreAdj; n != 0 {
		if n < -1000 || n > 1000 {
			return c.refuse("oom_score_adj", "give a number from -1000 to 1000")
		}
		adj := int(n)
		c.out.OOMScoreAdj = &adj
	}
	return nil
}

func (c *converter) restart() error {
	policy, max, hasMax := strings.Cut(c.cfg.Restart, ":")
	r := Restart{Policy: policy}
	if d := c.cfg.Deploy; d != nil && d.RestartPolicy != nil && c.cfg.Restart == "" {
		switch d.RestartPolicy.Condition {
		case "none":
			r.Policy = RestartNo
		case "on-failure":
			r.Policy = RestartOnFailure
		case "", "any":
			r.Policy = RestartAlways
		default:
			return c.refuse("deploy/restart_policy", "the condition must be none, on-failure or any")
		}
		if a := d.RestartPolicy.MaxAttempts; a != nil {
			r.Max = int(min(*a, math.MaxInt32))
		}
	}
	if r.Policy == "" {
		r.Policy = RestartNo
	}
	switch r.Policy {
	case RestartNo, RestartAlways, RestartOnFailure, RestartUnlessStopped:
	default:
		return c.refuse("restart", "use no, always, on-failure or unless-stopped")
	}
	if hasMax {
		n, err := strconv.Atoi(max)
		if err != nil || n < 0 || r.Policy != RestartOnFailure {
			return c.refuse("restart", "only on-failure takes a number of attempts, as in on-failure:3")
		}
		r.Max = n
	}
	c.out.Restart = r
	return nil
}

func (c *converter) limits() error {
	cfg := c.cfg
	lim := Limits{
		Memory: int64(cfg.MemLimit), MemoryReservation: int64(cfg.MemReservation), MemorySwap: int64(cfg.MemSwapLimit),
		CPUQuota: cfg.CPUQuota, CPUSet: cfg.CPUSet, Pids: cfg.PidsLimit,
	}
	cpus := float64(cfg.CPUS)
	if d := cfg.Deploy; d != nil {
		if r := d.Resources.Limits; r != nil {
			if r.MemoryBytes != 0 {
				lim.Memory = int64(r.MemoryBytes)
			}
			if r.NanoCPUs != 0 {
				cpus = float64(r.NanoCPUs)
			}
			if r.Pids != 0 {
				lim.Pids = r.Pids
			}
		}
		if r := d.Resources.Reservations; r != nil && r.MemoryBytes != 0 {
			lim.MemoryReservation = int64(r.MemoryBytes)
		}
	}
	if cfg.CPUPeriod < 0 || cfg.CPUShares < 0 || cpus < 0 || cpus > 4096 || math.IsNaN(cpus) {
		return c.refuse("cpus", "CPU limits must be positive numbers")
	}
	lim.CPUPeriod, lim.CPUShares = uint64(cfg.CPUPeriod), uint64(cfg.CPUShares)
	if cpus > 0 {
		if lim.CPUQuota != 0 {
			return c.refuse("cpus", "give either cpus or cpu_quota")
		}
		lim.CPUPeriod, lim.CPUQuota = 100_000, int64(math.Round(cpus*100_000))
	}
	if lim.Memory != 0 && lim.Memory < 6<<20 {
		return c.refuse("mem_limit", "give at least 6 MiB")
	}
	if lim.CPUSet != "" && !cpuSetRE.MatchString(lim.CPUSet) {
		return c.refuse("cpuset", "give a list such as 0-1,3")
	}
	c.out.Limits = lim
	c.out.ShmSize = int64(cfg.ShmSize)
	for _, name := range sortedKeys(cfg.Ulimits) {
		u := cfg.Ulimits[name]
		if !slices.Contains(ulimits, name) || u == nil {
			return c.refuse("ulimits", "one of the limits has a name that Linux does not know")
		}
		lim := Ulimit{Name: name, Soft: int64(u.Soft), Hard: int64(u.Hard)}
		if u.Single != 0 {
			lim.Soft, lim.Hard = int64(u.Single), int64(u.Single)
		}
		if lim.Soft < -1 || lim.Hard < -1 || (lim.Hard != -1 && (lim.Soft > lim.Hard || lim.Soft == -1)) {
			return c.refuse("ulimits", "a soft limit is above its hard limit: correct it")
		}
		c.out.Ulimits = append(c.out.Ulimits, lim)
	}
	return nil
}

var cpuSetRE = regexp.MustCompile(`^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$`)

var ulimits = []string{
	"as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice",
	"nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack",
}

func (c *converter) health() error {
	h := c.cfg.HealthCheck
	if h == nil {
		return nil
	}
	out := &Health{Disable: h.Disable || (len(h.Test) > 0 && h.Test[0] == "NONE"), Test: h.Test}
	for _, d := range []struct {
		from *types.Duration
		to   *time.Duration
	}{{h.Interval, &out.Interval}, {h.Timeout, &out.Timeout}, {h.StartPeriod, &out.StartPeriod}, {h.StartInterval, &out.StartInterval}} {
		if d.from == nil {
			continue
		}
		*d.to = time.Duration(*d.from)
		if *d.to != 0 && (*d.to < time.Millisecond || *d.to > 24*time.Hour) {
			return c.refuse("healthcheck", "durations must lie between a millisecond and a day")
		}
	}
	if h.Retries != nil {
		out.Retries = int(min(*h.Retries, 1000))
	}
	if len(h.Test) == 1 && !out.Disable {
		return c.refuse("healthcheck/test", "the test has no command: add it")
	}
	c.out.Health = out
	return nil
}
