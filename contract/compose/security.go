package compose

import (
	"path"
	"slices"
	"strings"
)

// powerful capabilities let a container reach out of itself; a policy that
// forbids privileged containers forbids them too.
var powerful = []string{
	"ALL", "CAP_SYS_ADMIN", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_PTRACE", "CAP_SYS_BOOT",
	"CAP_DAC_READ_SEARCH", "CAP_BPF", "CAP_PERFMON", "CAP_SYSLOG", "CAP_MAC_ADMIN", "CAP_MAC_OVERRIDE",
	"CAP_CHECKPOINT_RESTORE",
}

var capabilities = []string{
	"CAP_AUDIT_CONTROL", "CAP_AUDIT_READ", "CAP_AUDIT_WRITE", "CAP_BLOCK_SUSPEND", "CAP_BPF",
	"CAP_CHECKPOINT_RESTORE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER",
	"CAP_FSETID", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_KILL", "CAP_LEASE", "CAP_LINUX_IMMUTABLE",
	"CAP_MAC_ADMIN", "CAP_MAC_OVERRIDE", "CAP_MKNOD", "CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE",
	"CAP_NET_BROADCAST", "CAP_NET_RAW", "CAP_PERFMON", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP",
	"CAP_SETUID", "CAP_SYSLOG", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_CHROOT", "CAP_SYS_MODULE",
	"CAP_SYS_NICE", "CAP_SYS_PACCT", "CAP_SYS_PTRACE", "CAP_SYS_RAWIO", "CAP_SYS_RESOURCE",
	"CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_WAKE_ALARM",
}

// Powers are the fields by which the service asks for power beyond its own
// container; none for an ordinary one. The attestation record names them.
func (s *Service) Powers() []string {
	var fields []string
	for _, p := range []struct {
		field string
		asked bool
	}{
		{"privileged", s.Privileged},
		{"security_opt", s.Unconfined},
		{"pid", s.PID == "host"},
		{"ipc", s.IPC == "host"},
		{"network_mode", s.NetworkMode == "host"},
		{"cap_add", slices.ContainsFunc(s.CapAdd, func(n string) bool { return slices.Contains(powerful, n) })},
	} {
		if p.asked {
			fields = append(fields, p.field)
		}
	}
	return fields
}

func (c *converter) security() error {
	cfg := c.cfg
	c.out.Privileged, c.out.ReadOnly = cfg.Privileged, cfg.ReadOnly
	for _, o := range cfg.SecurityOpt {
		key, value, has := strings.Cut(strings.Replace(o, ":", "=", 1), "=")
		switch {
		case key == "no-new-privileges" && (!has || value == "true"): // the default here
		case key == "no-new-privileges" && value == "false":
			c.out.NewPrivileges = true
		case key == "seccomp" && value == "unconfined":
			c.out.Unconfined = true
		case key == "apparmor" && value == "docker-default": // ours takes its place
		case key == "label": // there is no SELinux
		default:
			return c.refuse("security_opt", "only no-new-privileges, seccomp=unconfined, apparmor=docker-default and label are supported")
		}
	}
	if cfg.UserNSMode != "" && cfg.UserNSMode != "host" {
		return c.refuse("userns_mode", "only host is supported: remove this line")
	}
	if cfg.Cgroup != "" && cfg.Cgroup != "private" {
		return c.refuse("cgroup", "the container's cgroup namespace is always its own: remove this line")
	}
	if cfg.Pid != "" && cfg.Pid != "host" {
		return c.refuse("pid", "only host is supported")
	}
	c.out.PID = cfg.Pid
	switch cfg.Ipc {
	case "", "private", "shareable":
	case "none", "host":
		c.out.IPC = cfg.Ipc
	default:
		return c.refuse("ipc", "only private, none and host are supported")
	}
	if err := c.capabilities(); err != nil {
		return err
	}
	if err := c.devices(); err != nil {
		return err
	}
	return c.sysctls()
}

// powers applies the image's policy; it comes after all that grants any.
func (c *converter) powers() error {
	if err := c.guestPowers(); err != nil {
		return err
	}
	if p := c.out.Powers(); len(p) > 0 && !c.opt.Privileged {
		return c.refuse(p[0], "this image's policy refuses containers with power beyond their own: remove this line")
	}
	return nil
}

func (c *converter) capabilities() error {
	for _, list := range []struct {
		field string
		from  []string
		to    *[]string
	}{{"cap_add", c.cfg.CapAdd, &c.out.CapAdd}, {"cap_drop", c.cfg.CapDrop, &c.out.CapDrop}} {
		for _, name := range list.from {
			name, ok := Capability(name)
			if !ok {
				return c.refuse(list.field, "one of the capabilities is not one of Linux: correct its name")
			}
			*list.to = append(*list.to, name)
		}
	}
	return nil
}

// Capability is the kernel's name of a capability, or ALL.
func Capability(name string) (string, bool) {
	name = strings.ToUpper(name)
	if name != "ALL" && !strings.HasPrefix(name, "CAP_") {
		name = "CAP_" + name
	}
	if name == "CAP_ALL" {
		name = "ALL"
	}
	return name, name == "ALL" || slices.Contains(capabilities, name)
}

func (c *converter) devices() error {
	for _, d := range c.cfg.Devices {
		source := path.Clean(d.Source)
		if !GivenDevice(source) {
			return c.refuse("devices", "only these devices can be given to a container: "+strings.Join(devices, ", ")+", /dev/zcrypt/…")
		}
		out := Device{Source: source, Target: path.Clean(d.Target), Permissions: d.Permissions}
		if d.Target == "" {
			out.Target = source
		}
		if out.Permissions == "" {
			out.Permissions = "rwm"
		}
		if !path.IsAbs(out.Target) || strings.Trim(out.Permissions, "rwm") != "" {
			return c.refuse("devices", "write a device as SOURCE:TARGET:rwm")
		}
		c.out.Devices = append(c.out.Devices, out)
	}
	return nil
}

// OwnSysctl says whether a sysctl belongs to a container that has a network and
// an IPC namespace.
func OwnSysctl(name string) bool {
	return !strings.ContainsAny(name, "/ \x00") && (strings.HasPrefix(name, "fs.mqueue.") || strings.HasPrefix(name, "net.") || slices.Contains([]string{
		"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax",
		"kernel.shmmni", "kernel.shm_rmid_forced",
	}, name))
}

// namespaced sysctls are the container's own; all others are the guest's.
func (c *converter) sysctls() error {
	for _, name := range sortedKeys(c.cfg.Sysctls) {
		ok := OwnSysctl(name) && (c.cfg.NetworkMode != "host" || !strings.HasPrefix(name, "net."))
		if !ok || strings.ContainsRune(c.cfg.Sysctls[name], 0) {
			return c.refuse("sysctls", "only net.*, fs.mqueue.* and the kernel's message and shared-memory settings are the container's own: remove the others")
		}
	}
	c.out.Sysctls = c.cfg.Sysctls
	return nil
}
