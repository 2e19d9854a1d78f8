package boot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hpcr/agent/attest"
	"hpcr/agent/event"
	"hpcr/agent/hpl"
	"hpcr/agent/pid1"
	"hpcr/agent/sandbox"
	"hpcr/contract"
	"hpcr/contract/compose"
	"hpcr/disk"
	"hpcr/network"
)

// mounts adds to init's table what only the agent needs, and speaks first.
func (g *Guest) mounts(context.Context) error {
	g.Console.Bootloader(fmt.Sprintf("HPL11 build:%s enabler:%s", g.Image.Version, g.Image.Kernel))
	g.Console.Bootloader(time.Now().UTC().Format(time.UnixDate))
	if m := machine(); m != "" {
		g.Console.Bootloader(machineLabel + ": " + m)
		g.record.Add(attest.Fact{Name: machineLabel, Text: m})
	}
	if err := os.MkdirAll("/mnt", 0o755); err != nil {
		return err
	}
	return sandbox.KeepForAgent()
}

func (g *Guest) hardenKernel(context.Context) error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("core limit: %w", err)
	}
	return applySysctls()
}

const machineLabel = "Machine Type/Plant/Serial"

// machine reads the identity that the firmware gives an s390x guest, or "".
func machine() string {
	b, err := os.ReadFile("/proc/sysinfo")
	if err != nil {
		return ""
	}
	fields := map[string]string{}
	for line := range strings.Lines(string(b)) {
		k, v, ok := strings.Cut(line, ":")
		if _, double := fields[k]; ok && !double {
			fields[k] = strings.TrimSpace(v)
		}
	}
	text := fields["Type"] + "/" + fields["Plant"] + "/" + strings.TrimLeft(fields["Sequence Code"], "0")
	for _, r := range text { // the hypervisor fills part of it
		if r < '!' || r > '~' {
			return ""
		}
	}
	if len(text) < 3 || len(text) > 64 {
		return ""
	}
	return text
}

// checkMachine refuses a machine that this image must not run on.
func (g *Guest) checkMachine(context.Context) error {
	if err := g.Interlock(); err != nil {
		return err
	}
	if err := readJSON(policyFile, &g.policy); err != nil {
		return err
	}
	sum, err := fileSHA256(policyFile)
	if err != nil {
		return err
	}
	g.record.Add(attest.Fact{Name: "Flavour", Text: g.Image.Flavour}, attest.Fact{Name: "policy", SHA256: sum})
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return err
	}
	// The kernel keeps some for itself: allow 10 % less than the policy names.
	have := uint64(info.Totalram) * uint64(info.Unit) >> 20
	if need := uint64(g.policy.MinMemoryMiB); have < need-need/10 {
		return hpl.New("HPL11003E", "", fmt.Sprintf("the image's policy asks for %d MiB, the guest has %d", need, have))
	}
	return nil
}

// loadBase loads what reading the contract and closing the network need.
func (g *Guest) loadBase(context.Context) error {
	var err error
	if g.modules, err = loadModuleList(); err != nil {
		return err
	}
	return g.modules.load("base")
}

func (g *Guest) closeNetwork(context.Context) error { return network.Firewall() }

// awaitEntropy blocks until the kernel's generator is seeded.
func (g *Guest) awaitEntropy(context.Context) error {
	_, err := unix.Getrandom(make([]byte, 1), 0)
	return err
}

// cidataWait is for the driver to find the disks, not for the host to attach one.
const cidataWait = 5 * time.Second

// readCidata reads the whole device once; nothing of it is read again.
func (g *Guest) readCidata(ctx context.Context) error {
	g.Console.Bootloader("decrypt user-data...")
	const missing = "no disk carries the volume label cidata: attach one with user-data, as hpcrctl cidata makes it"
	var device string
	for end := time.Now().Add(cidataWait); ; {
		var err error
		device, err = disk.FindLabel("cidata")
		if err == nil {
			break
		}
		if !errors.Is(err, disk.ErrNoLabel) {
			return hpl.Wrap(err, "HPL11001E", "", "more than one disk carries the volume label cidata, or one cannot be read: attach exactly one")
		}
		if time.Now().After(end) {
			return hpl.Wrap(err, "HPL11001E", "", missing)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	b, err := disk.ReadDevice(device, maxCidata)
	if err != nil {
		return hpl.Wrap(err, "HPL11001E", "", "the cidata disk cannot be read, or is larger than 64 MiB")
	}
	g.cidata, g.cidataDevice = b, device
	return nil
}

const maxCidata = 64 << 20

func (g *Guest) verifyContract(ctx context.Context) error {
	keys, err := openKeys()
	if err != nil {
		return err
	}
	defer closeAll(keys)
	v, err := openContract(ctx, g.cidata, order{Policy: g.policy, Now: g.now()}, keys)
	g.cidata = nil
	if err != nil {
		return err
	}
	g.verified, g.plan = v, v.Plan()
	g.Console.Raw(fmt.Sprintf("%d token decrypted, %d encrypted token ignored", g.plan.TokensDecrypted, g.plan.TokensIgnored))
	var digests []slog.Attr
	for _, d := range g.plan.Digests {
		g.record.Add(attest.Fact{Name: d.Name, SHA256: d.SHA256})
		digests = append(digests, slog.String(d.Name, d.SHA256))
	}
	g.note(event.ContractVerified, event.Notice, "the contract is decrypted and verified; SHA-256 of what it is made of", digests...)
	for _, w := range g.plan.Warnings {
		g.warn(w)
	}
	if g.plan.Hostname != "" {
		g.Console.Bootloader("set hostname...")
		if err := unix.Sethostname([]byte(g.plan.Hostname)); err != nil {
			return fmt.Errorf("host name: %w", err)
		}
	}
	return nil
}

// dropContractKeys destroys the contract keys: from here on nothing in the
// guest can open a contract.
func (g *Guest) dropContractKeys(context.Context) error {
	if err := destroy(contractKeys); err != nil {
		return err
	}
	return g.endBootloader(pid1.UserspacePath)
}

// containerModules are the groups that containers ask for: there is no
// autoloading, so what nobody named now can never be had.
func containerModules(p *compose.Project) (groups []string) {
	if p == nil {
		return nil
	}
	any := func(of func(*compose.Service) bool) bool {
		return slices.ContainsFunc(p.Services, func(s compose.Service) bool { return of(&s) })
	}
	if any(func(s *compose.Service) bool { return s.Given("/dev/net/tun") }) {
		groups = append(groups, "tun")
	}
	if any(func(s *compose.Service) bool { return s.Has("CAP_NET_ADMIN") }) {
		groups = append(groups, "netfilter")
	}
	return groups
}

// loadRest loads what the plan needs and closes the kernel to more.
func (g *Guest) loadRest(ctx context.Context) error {
	var err error
	if g.scratchDisk, g.imageDisk, err = g.findRoles(ctx); err != nil {
		return hpl.Wrap(err, "HPL02120E", "", "the guest cannot list its disks, or one does not answer: check them on the host")
	}
	groups := append([]string{"network", "containers", "vsock"}, containerModules(g.plan.Compose)...)
	if len(g.plan.Volumes) > 0 || g.scratchDisk {
		groups = append(groups, "hardware", "disk") // ciphers of the processor first: dm-crypt takes the best that is there
	}
	if g.scratchDisk {
		groups = append(groups, "integrity")
	}
	for _, v := range g.plan.Volumes {
		if v.Filesystem != "ext4" {
			groups = append(groups, v.Filesystem)
		}
		if v.Integrity {
			groups = append(groups, "integrity")
		}
	}
	if n := g.plan.Network; n != nil && slices.ContainsFunc(n.Links, func(l contract.Link) bool { return l.VLAN != 0 }) {
		groups = append(groups, "vlan")
	}
	for _, group := range groups {
		if err := g.modules.load(group); err != nil {
			return err
		}
	}
	return g.modules.lock()
}
