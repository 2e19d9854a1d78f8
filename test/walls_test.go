package test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"hpcr/agent/boot"
	"hpcr/test/scenario"
)

// wall is one row of docs/hardening.md: a state that the guest is in, and what
// a container tries against it.
type wall struct {
	state   []state
	attacks map[string]string // attack of test/walls → errnos that refuse it, separated by spaces
	beside  map[string]string // the same, from an ordinary container on the guest's network and process numbers
}

// state is a file of the guest, which must match; AGENT and DAEMON in the path
// are the process numbers of the agent and of containerd.
type state struct{ path, match string }

const refused = "EPERM EACCES"

// walls by row.
var walls = map[string]wall{
	"kernel settings": {
		state: settings(),
		attacks: map[string]string{
			"core pattern": refused, "modprobe path": refused, "address layout": refused, "ptrace scope": refused,
			"user namespaces": refused, "settings as mounted": refused,
		},
	},
	"core dumps": {
		state: []state{
			{"/proc/1/limits", `Max core file size +0 `}, {"/proc/AGENT/limits", `Max core file size +0 +0 `},
			{"/proc/DAEMON/limits", `Max core file size +0 +0 `}, {"/proc/sys/fs/suid_dumpable", `^0`},
		},
		attacks: map[string]string{"a core file": "ENOENT"},
	},
	"SysRq": {
		state:   []state{{"/proc/sys/kernel/sysrq", `^512`}, {"/proc/sysrq-trigger", `no such file`}, {"/proc/cmdline", `initcall_blacklist=sysrq_init`}},
		attacks: map[string]string{"sysrq": "ENOENT"},
	},
	"kernel lockdown": {
		state:   []state{{"/sys/kernel/security/lockdown", `\[confidentiality\]`}},
		attacks: map[string]string{"kernel memory": refused + " ENOENT", "I/O ports": refused + " ENOSYS"},
	},
	"modules locked": {
		state:   []state{{"/proc/sys/kernel/modules_disabled", `^1`}, {"/sys/module/module/parameters/sig_enforce", `^Y`}},
		attacks: map[string]string{"load a module": refused, "remove a module": refused},
	},
	"no other kernel": {
		state:   []state{{"/proc/sys/kernel/kexec_load_disabled", `^1|no such file`}, {"/proc/cmdline", `\bnohibernate\b`}},
		attacks: map[string]string{"kexec": refused, "kexec from a file": refused, "restart": refused},
	},
	"clock": {
		state:   []state{{"/sys/kernel/security/apparmor/profiles", `(?m)^hpcr-container \(enforce\)$`}},
		attacks: map[string]string{"set the time": refused, "adjust the clock": refused},
	},
	"system calls of the kernel as a whole": {
		state: []state{{"/proc/sys/kernel/io_uring_disabled", `^2`}, {"/proc/sys/kernel/unprivileged_bpf_disabled", `^[12]`}},
		attacks: map[string]string{
			"bpf": refused, "perf": refused, "userfaultfd": refused, "io_uring": refused, "keyring": refused, "file handles": refused,
			"swap": refused, "quota": refused, "accounting": refused, "kernel log": refused,
		},
	},
	"devices": {
		state:   []state{{"/proc/devices", `virtblk`}, {"/proc/mounts", `(?m)^devtmpfs /dev devtmpfs \S*nosuid,noexec`}},
		attacks: map[string]string{"devices by number": refused, "mount devtmpfs": refused, "mount devtmpfs read-only": refused},
	},
	"file systems of the kernel": {
		state: []state{{"/proc/cmdline", `cgroup_no_v1=all,named`}, {"/proc/mounts", `(?m)^securityfs /sys/kernel/security securityfs \S*nosuid,nodev,noexec`}},
		attacks: map[string]string{
			"mount debugfs": refused, "mount debugfs read-only": refused, "mount tracefs": refused, "mount securityfs": refused, "mount bpf": refused, "mount sysfs": refused,
			"mount cgroup v1": refused, "write sysfs": "EROFS", "remount sysfs": refused, "remount sysfs with an unknown flag": refused,
			"remount the file system behind sysfs": refused, "bind and remount sysfs": refused, "set attributes of sysfs": "ENOSYS",
			"open sysfs as a file system": "ENOSYS", "clone a mount": "ENOSYS",
		},
	},
	"read-only root": {
		state: []state{
			{"/proc/1/mountinfo", `^\d+ 1 \S+ / / ro,nosuid,nodev.* - rootfs \S+ ro`},
			{"/proc/mounts", `(?m)^proc /proc proc \S*nosuid,nodev,noexec\S*hidepid=invisible`},
			{"/proc/mounts", `(?m)^tmpfs /run tmpfs \S*nosuid,nodev`},
			{"/proc/mounts", `(?m)^tmpfs /tmp tmpfs \S*nosuid,nodev,noexec`},
			{"/proc/mounts", `(?m)^store /var/lib/containerd tmpfs \S*nosuid,nodev`},
			{"/proc/mounts", `(?m)^store /var/lib/hpcr tmpfs \S*nosuid,nodev`},
			{"/proc/mounts", `(?m)^sysfs /sys sysfs \S*nosuid,nodev,noexec`},
		},
		attacks: map[string]string{"write the record": "EROFS", "remount the record": refused},
	},
	"containers' profile": {
		state:   []state{{"/sys/module/apparmor/parameters/mode", `^enforce`}},
		attacks: map[string]string{"leave the profile": refused, "leave the profile at exec": refused},
	},
	"vsock": {
		state:   []state{{"/proc/net/protocols", `(?m)^AF_VSOCK `}},
		attacks: map[string]string{"vsock": "EACCES EAFNOSUPPORT", "vsock datagrams": "EACCES EAFNOSUPPORT", "vsock by socketcall": "EACCES EAFNOSUPPORT"},
		beside:  map[string]string{"vsock": "EACCES EAFNOSUPPORT EPERM", "vsock by socketcall": "EACCES EAFNOSUPPORT EPERM"},
	},
	"the agent's sockets": {
		state:   []state{{"/proc/net/unix", `(?m) /run/containerd/containerd.sock$`}, {"/proc/AGENT/cgroup", `^0::/agent\n`}},
		attacks: map[string]string{"containerd's socket": "ENOENT", "sockets without a path": "ENOENT"},
		beside:  map[string]string{"containerd's socket": "ENOENT", "sockets without a path": "ENOENT"},
	},
	"the guest's processes": {
		state: []state{{"/proc/sys/kernel/yama/ptrace_scope", `^2`}},
		beside: map[string]string{
			"signal init": refused, "signal the agent": refused, "files of the agent": refused, "descriptors of the agent": refused,
			"memory of the agent": refused, "trace the agent": refused,
		},
	},
	"the agent's share": {
		state: []state{
			{"/sys/fs/cgroup/agent/memory.min", `^67108864`}, {"/sys/fs/cgroup/agent/cpu.weight", `^1000`},
			{"/sys/fs/cgroup/containerd/memory.min", `^67108864`}, {"/proc/DAEMON/cgroup", `^0::/containerd\n`},
			{"/sys/fs/cgroup/hpcr/memory.max", `^\d+`}, {"/sys/fs/cgroup/hpcr/pids.max", `^\d+`},
			{"/proc/AGENT/oom_score_adj", `^-1000`}, {"/proc/DAEMON/oom_score_adj", `^-9\d\d`},
			{"/proc/mounts", `(?m)^cgroup2 /sys/fs/cgroup cgroup2 \S*nsdelegate`},
		},
		attacks: map[string]string{
			"raise its memory": refused, "raise its processes": refused, "leave its control group": refused + " ENOENT",
			"eat all memory": "ENOMEM", "fork for ever": "EAGAIN ENOMEM ETIME",
		},
	},
	"entropy": {
		state: []state{
			{"/sys/class/misc/hw_random/rng_available", `^(|none\n?|s390-trng\n?)$|no such file`},
			{"/proc/cmdline", `random.trust_bootloader=off`},
		},
		attacks: map[string]string{"the host's random numbers": refused + " ENODEV ENXIO"},
	},
	"console": {
		state:   []state{{"/proc/1/fd/0", `^/dev/null$`}, {"/proc/AGENT/fd/0", `^/dev/null$`}, {"/proc/DAEMON/fd/0", `^/dev/null$`}},
		attacks: map[string]string{"devices by number": refused},
	},
	"firewall": {
		state:   []state{{"/proc/net/dev", `(?m)^ *\S+: +[1-9]`}},
		attacks: map[string]string{"the guest's health port": "ETIMEDOUT ECONNREFUSED"},
	},
}

// settings are the agent's own list, each as the kernel shows it.
func settings() []state {
	var all []state
	for _, s := range boot.Sysctls {
		want := regexp.QuoteMeta(strings.TrimSpace(s.Value))
		if s.Key == "kernel.printk" {
			want = `3\s+4\s+1\s+3` // shown with tabs
		}
		all = append(all, state{"/proc/sys/" + strings.ReplaceAll(s.Key, ".", "/"), `^(` + want + `|open \S+: no such file or directory)\s*$`})
	}
	return all
}

// uses are what a privileged container keeps.
var uses = []string{
	"may mount tmpfs", "may mount proc", "may mount cgroup2", "may mount sysfs read-only", "may mount overlay", "may bind",
	"may open a raw socket", "may set its own network", "may filter its own packets", "may open a tunnel", "may set its own messages",
	"may set its own host name", "may divide its control group", "may make namespaces",
}

// tries are the attacks that come first, and those that come last because they
// take what others need.
func tries(of func(wall) map[string]string) []string {
	last := []string{"eat all memory", "fork for ever"}
	var all []string
	for _, name := range slices.Sorted(maps.Keys(walls)) {
		for _, attack := range slices.Sorted(maps.Keys(of(walls[name]))) {
			if !slices.Contains(all, attack) && !slices.Contains(last, attack) {
				all = append(all, attack)
			}
		}
	}
	return all
}

func TestHardeningIsDocumentedRowByRow(t *testing.T) {
	root, err := scenario.Root()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, "docs", "hardening.md"))
	if err != nil {
		t.Fatal(err)
	}
	var rows []string
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(line, "|")
		if len(cells) != 7 || strings.HasPrefix(strings.TrimSpace(cells[1]), "-") || strings.TrimSpace(cells[1]) == "wall" {
			continue
		}
		name := strings.TrimSpace(cells[1])
		rows = append(rows, name)
		for _, file := range regexp.MustCompile("`([a-z0-9_/]+\\.(?:go|profile))`").FindAllStringSubmatch(cells[2], -1) {
			if _, err := os.Stat(filepath.Join(root, file[1])); err != nil {
				t.Errorf("row %q: %v", name, err)
			}
		}
		if len(strings.TrimSpace(cells[3])) < 4 || len(strings.TrimSpace(cells[4])) < 4 {
			t.Errorf("row %q says nothing of its state or its attack", name)
		}
	}
	slices.Sort(rows)
	if want := slices.Sorted(maps.Keys(walls)); !slices.Equal(rows, want) {
		t.Errorf("docs/hardening.md has the rows %s\nwant those of the test, %s", quoted(rows), quoted(want))
	}
}

func quoted(list []string) string { return fmt.Sprintf("%q", list) }
