package workload

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/cap"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"

	"hpcr/agent/ctrd"
	"hpcr/agent/sandbox"
	"hpcr/contract/compose"
)

// dockerCaps are Docker's default capabilities less CAP_MKNOD: a device node
// is what the project lists under devices, or none.
var dockerCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// surroundings are what the agent prepared for one container.
type surroundings struct {
	netns    string // path; "" = the guest's own, or a lone one that runc makes
	hostname string
	mounts   []specs.Mount // binds, volumes, files of /etc, data
}

// specOpts builds the container's OCI spec. Every field that limits the
// container is set here and nowhere else.
func (w *Workload) specOpts(s *compose.Service, img *image, env surroundings) []oci.SpecOpts {
	opts := []oci.SpecOpts{
		oci.WithDefaultSpec(),
		oci.WithoutRunMount, // as Docker: /run is the image's
		oci.WithDefaultUnixDevices,
		base(s, img, env),
		set(func(spec *oci.Spec) error {
			spec.Process.ApparmorProfile = w.opt.Profile
			return nil
		}),
		identity(s, img),
		oci.WithAppendAdditionalGroups(s.GroupAdd...),
		set(func(spec *oci.Spec) error {
			groups := &spec.Process.User.AdditionalGids
			slices.Sort(*groups)
			*groups = slices.Compact(*groups)
			return nil
		}),
		capabilities(s),
		devices(s),
		oci.WithMounts(env.mounts),
		tmpfs(s),
		limits(s),
		isolation(s, env),
	}
	return opts
}

// set wraps a change of the spec that needs nothing else.
func set(f func(*oci.Spec) error) oci.SpecOpts {
	return func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error { return f(s) }
}

func base(s *compose.Service, img *image, env surroundings) oci.SpecOpts {
	return set(func(spec *oci.Spec) error {
		args := img.args(s)
		if len(args) == 0 {
			return fmt.Errorf("neither the image nor the service says what to run")
		}
		p := spec.Process
		p.Args = args
		p.Env = img.env(s, env.hostname)
		p.Cwd = "/"
		for _, dir := range []string{img.config.WorkingDir, s.WorkingDir} {
			if dir != "" {
				p.Cwd = path.Join("/", dir)
			}
		}
		p.Terminal = s.TTY
		p.NoNewPrivileges = !s.NewPrivileges && !s.Privileged
		p.Rlimits = rlimits(s)
		adj := 0
		if s.OOMScoreAdj != nil {
			adj = *s.OOMScoreAdj
		}
		p.OOMScoreAdj = &adj
		spec.Hostname = env.hostname
		spec.Domainname = s.Domainname
		spec.Root.Readonly = s.ReadOnly
		spec.Linux.CgroupsPath = cgroup(s)
		spec.Annotations = map[string]string{ctrd.GroupAnnotation: ctrd.Group}
		return nil
	})
}

// cgroup is the container's place below the guest's limits for all.
func cgroup(s *compose.Service) string {
	if s.NetworkMode == "host" {
		return path.Join("/", sandbox.GuestNetwork, containerID(s))
	}
	return path.Join("/", sandbox.OwnNetwork, containerID(s))
}

// identity resolves names of users and groups in the container's own files.
func identity(s *compose.Service, img *image) oci.SpecOpts {
	user := s.User
	if user == "" {
		user = img.config.User
	}
	if user == "" {
		return oci.WithAdditionalGIDs("root")
	}
	name, _, _ := strings.Cut(user, ":")
	return oci.Compose(oci.WithUser(user), oci.WithAdditionalGIDs(name))
}

func capabilities(s *compose.Service) oci.SpecOpts {
	return set(func(spec *oci.Spec) error {
		// All means all that the guest's own processes have.
		all, err := cap.Current()
		if err != nil {
			return err
		}
		caps := slices.Clone(dockerCaps)
		if slices.Contains(s.CapDrop, "ALL") {
			caps = nil
		}
		if slices.Contains(s.CapAdd, "ALL") || s.Privileged {
			caps = all
		}
		for _, c := range s.CapAdd {
			if c != "ALL" && !slices.Contains(caps, c) {
				caps = append(caps, c)
			}
		}
		caps = slices.DeleteFunc(caps, func(c string) bool {
			return compose.GuestCapability(c) || !s.Privileged && slices.Contains(s.CapDrop, c)
		})
		return oci.WithCapabilities(caps)(context.Background(), nil, nil, spec)
	})
}

// devices gives what the project lists; a privileged container gets all that a
// project may list and this guest has.
func devices(s *compose.Service) oci.SpecOpts {
	return set(func(spec *oci.Spec) error {
		// containerd's list of what every container may open has the console:
		// in the guest it is the host's. A terminal of the container's is a pty.
		// (Tunnels, 10:200, are on runc's own list, which nothing here changes.)
		rules := spec.Linux.Resources.Devices
		spec.Linux.Resources.Devices = slices.DeleteFunc(rules, func(d specs.LinuxDeviceCgroup) bool {
			return d.Allow && d.Major != nil && *d.Major == 5 && d.Minor != nil && *d.Minor == 1
		})
		for _, d := range s.Devices {
			if err := oci.WithDevices(d.Source, d.Target, d.Permissions)(context.Background(), nil, nil, spec); err != nil {
				return fmt.Errorf("device: %w", err)
			}
		}
		if !s.Privileged {
			return nil
		}
		all, err := oci.HostDevices()
		if err != nil {
			return fmt.Errorf("devices of the guest: %w", err)
		}
		for _, d := range all {
			if !compose.GivenDevice(d.Path) {
				continue
			}
			major, minor := d.Major, d.Minor
			spec.Linux.Devices = append(spec.Linux.Devices, d)
			spec.Linux.Resources.Devices = append(spec.Linux.Resources.Devices, specs.LinuxDeviceCgroup{
				Allow: true, Type: d.Type, Major: &major, Minor: &minor, Access: "rwm",
			})
		}
		return nil
	})
}

func tmpfs(s *compose.Service) oci.SpecOpts {
	return set(func(spec *oci.Spec) error {
		for _, m := range s.Mounts {
			if m.Kind != compose.Memory {
				continue
			}
			options := []string{"nosuid", "nodev"}
			if m.Options != "" {
				options = append(options, strings.Split(m.Options, ",")...)
			}
			if m.Size > 0 {
				options = append(options, fmt.Sprintf("size=%d", m.Size))
			}
			if m.Mode != 0 {
				options = append(options, fmt.Sprintf("mode=%o", m.Mode))
			}
			if m.ReadOnly {
				options = append(options, "ro")
			}
			spec.Mounts = append(spec.Mounts, specs.Mount{Destination: m.Target, Type: "tmpfs", Source: "tmpfs", Options: options})
		}
		if s.IPC == "none" { // as Docker: no shared memory at all
			spec.Mounts = slices.DeleteFunc(spec.Mounts, func(m specs.Mount) bool { return m.Destination == "/dev/shm" })
		}
		for i, m := range spec.Mounts {
			if m.Destination == "/dev/shm" && s.ShmSize > 0 {
				options := slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return strings.HasPrefix(o, "size=") })
				spec.Mounts[i].Options = append(options, fmt.Sprintf("size=%d", s.ShmSize))
			}
		}
		// Deeper mounts come later, or they would be covered.
		slices.SortStableFunc(spec.Mounts, func(a, b specs.Mount) int {
			return strings.Count(path.Clean(a.Destination), "/") - strings.Count(path.Clean(b.Destination), "/")
		})
		return nil
	})
}

func rlimits(s *compose.Service) []specs.POSIXRlimit {
	n := openFiles()
	out := []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: n, Hard: n}}
	for _, u := range s.Ulimits {
		r := specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(u.Name), Soft: uint64(u.Soft), Hard: uint64(u.Hard)}
		if r.Type == "RLIMIT_NOFILE" {
			out = out[1:]
		}
		out = append(out, r)
	}
	return out
}

func limits(s *compose.Service) oci.SpecOpts {
	return set(func(spec *oci.Spec) error {
		l, r := s.Limits, spec.Linux.Resources
		if l.Memory != 0 || l.MemoryReservation != 0 || l.MemorySwap != 0 {
			r.Memory = &specs.LinuxMemory{}
			for _, v := range []struct {
				from int64
				to   **int64
			}{{l.Memory, &r.Memory.Limit}, {l.MemoryReservation, &r.Memory.Reservation}, {l.MemorySwap, &r.Memory.Swap}} {
				if v.from != 0 {
					*v.to = &v.from
				}
			}
		}
		r.CPU = &specs.LinuxCPU{Cpus: l.CPUSet}
		if l.CPUQuota != 0 {
			r.CPU.Quota = &l.CPUQuota
		}
		if l.CPUPeriod != 0 {
			r.CPU.Period = &l.CPUPeriod
		}
		if l.CPUShares != 0 {
			r.CPU.Shares = &l.CPUShares
		}
		if l.Pids != 0 {
			pids := l.Pids
			r.Pids = &specs.LinuxPids{Limit: &pids}
		}
		return nil
	})
}

// isolation sets namespaces, masked paths, sysctls and the seccomp filter; it
// comes last because the filter depends on the capabilities.
func isolation(s *compose.Service, env surroundings) oci.SpecOpts {
	return set(func(spec *oci.Spec) error {
		l := spec.Linux
		l.Namespaces = []specs.LinuxNamespace{
			{Type: specs.MountNamespace}, {Type: specs.UTSNamespace}, {Type: specs.CgroupNamespace},
		}
		if s.PID != "host" {
			l.Namespaces = append(l.Namespaces, specs.LinuxNamespace{Type: specs.PIDNamespace})
		}
		if s.IPC != "host" {
			ipc := specs.LinuxNamespace{Type: specs.IPCNamespace}
			if s.Pod != "" {
				ipc.Path = env.netns + ipcSuffix
			}
			l.Namespaces = append(l.Namespaces, ipc)
		}
		if s.NetworkMode != "host" {
			l.Namespaces = append(l.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: env.netns})
		}
		l.Sysctl = map[string]string{}
		if s.NetworkMode != "host" { // as Docker: low ports and ping need no rights in a network of one's own
			l.Sysctl["net.ipv4.ip_unprivileged_port_start"] = "0"
			l.Sysctl["net.ipv4.ping_group_range"] = "0 2147483647"
		}
		for k, v := range s.Sysctls {
			l.Sysctl[k] = v
		}
		cgroup := specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}}
		if s.Privileged {
			l.MaskedPaths, l.ReadonlyPaths = nil, nil
			cgroup.Options = cgroup.Options[:4]
		} else {
			l.MaskedPaths = append(l.MaskedPaths, "/sys/firmware", "/proc/kallsyms", "/proc/keys", "/proc/sysrq-trigger")
			slices.Sort(l.MaskedPaths)
			l.MaskedPaths = slices.Compact(l.MaskedPaths)
		}
		at := slices.IndexFunc(spec.Mounts, func(m specs.Mount) bool { return m.Destination == "/sys" })
		spec.Mounts = slices.Insert(spec.Mounts, at+1, cgroup)
		l.Seccomp = filter(spec, s.Privileged || s.Unconfined)
		return nil
	})
}
