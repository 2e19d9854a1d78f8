package compose

import (
	"slices"
	"strings"
)

// devices that a container may be given. Disks, consoles, the Ultravisor and
// vsock are not among them: they are the guest's.
var devices = []string{
	"/dev/fuse", "/dev/net/tun", "/dev/hwrng", "/dev/z90crypt", "/dev/null", "/dev/zero", "/dev/full",
	"/dev/random", "/dev/urandom", "/dev/tty",
}

// GivenDevice says whether a container may be given the device of that path.
func GivenDevice(path string) bool {
	return slices.Contains(devices, path) || strings.HasPrefix(path, "/dev/zcrypt/")
}

// guestCapabilities act on the guest's kernel as a whole, for which there is
// no namespace: no container has them, a privileged one included.
var guestCapabilities = []string{
	"CAP_AUDIT_CONTROL", "CAP_AUDIT_READ", "CAP_BLOCK_SUSPEND", "CAP_BPF", "CAP_CHECKPOINT_RESTORE", "CAP_MAC_ADMIN",
	"CAP_MAC_OVERRIDE", "CAP_PERFMON", "CAP_SYSLOG", "CAP_SYS_BOOT", "CAP_SYS_MODULE", "CAP_SYS_PACCT",
	"CAP_SYS_RAWIO", "CAP_SYS_TIME", "CAP_WAKE_ALARM",
}

// GuestCapability says whether a capability is one that no container has.
func GuestCapability(name string) bool { return slices.Contains(guestCapabilities, name) }

// Given says whether the service is given the device of that path.
func (s *Service) Given(path string) bool {
	return s.Privileged || slices.ContainsFunc(s.Devices, func(d Device) bool { return d.Source == path })
}

// Has says whether the service is given a capability beyond the usual ones.
func (s *Service) Has(capability string) bool {
	return s.Privileged || slices.Contains(s.CapAdd, capability) || slices.Contains(s.CapAdd, "ALL")
}

// guestPowers refuses what would reach the guest itself, by name.
func (c *converter) guestPowers() error {
	if slices.ContainsFunc(c.out.CapAdd, GuestCapability) {
		return c.refuse("cap_add", "these act on the guest's kernel as a whole, so no container gets them: "+strings.Join(guestCapabilities, ", "))
	}
	powerful := c.out.Privileged || slices.ContainsFunc(c.out.CapAdd, func(n string) bool {
		return slices.Contains([]string{"ALL", "CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_SYS_NICE", "CAP_SYS_PTRACE", "CAP_SYS_RESOURCE", "CAP_DAC_READ_SEARCH"}, n)
	})
	switch {
	case powerful && c.out.PID == "host":
		return c.refuse("pid", "with privileged or added capabilities the container would reach the guest's own processes: remove one of the two")
	case powerful && c.out.NetworkMode == "host":
		return c.refuse("network_mode", "with privileged or added capabilities the container would own the guest's firewall: remove one of the two")
	}
	return nil
}
