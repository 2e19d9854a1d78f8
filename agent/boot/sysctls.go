package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// Sysctls harden the guest before anything from outside is read. A key that
// this kernel lacks is skipped: nothing behind it can be open then.
var Sysctls = []struct{ Key, Value string }{
	{"kernel.core_pattern", "|/bin/false"},
	{"kernel.core_pipe_limit", "1"},
	{"fs.suid_dumpable", "0"},
	// A mask of no operation. Not 0: the kernel would unregister SysRq's handler,
	// which the command line keeps from being registered, and crash.
	{"kernel.sysrq", "512"},
	{"kernel.modprobe", "\n"}, // the kernel asks for no module by itself
	{"kernel.kptr_restrict", "2"},
	{"kernel.dmesg_restrict", "1"},
	{"kernel.perf_event_paranoid", "3"},
	{"kernel.randomize_va_space", "2"},
	{"kernel.yama.ptrace_scope", "2"}, // not 3, which nobody passes: the agent overwrites its children's memory
	{"kernel.unprivileged_bpf_disabled", "1"},
	{"kernel.kexec_load_disabled", "1"},
	{"kernel.io_uring_disabled", "2"},
	{"kernel.printk", "3 4 1 3"},
	{"net.core.bpf_jit_harden", "2"},
	{"vm.unprivileged_userfaultfd", "0"},
	{"vm.mmap_min_addr", "65536"},
	{"vm.max_map_count", "1048576"}, // as distributions have it: databases ask for more than the kernel's 65530, and no container can set it
	{"vm.swappiness", "0"},
	{"vm.compact_unevictable_allowed", "0"}, // moving a page leaves a copy behind: secrets are locked in place
	{"fs.protected_symlinks", "1"},
	{"fs.protected_hardlinks", "1"},
	{"fs.protected_fifos", "2"},
	{"fs.protected_regular", "2"},
	{"dev.tty.ldisc_autoload", "0"},
	{"dev.tty.legacy_tiocsti", "0"},
	{"net.ipv4.conf.all.accept_redirects", "0"},
	{"net.ipv4.conf.default.accept_redirects", "0"},
	{"net.ipv4.conf.all.send_redirects", "0"},
	{"net.ipv4.conf.default.send_redirects", "0"},
	{"net.ipv4.conf.all.accept_source_route", "0"},
	{"net.ipv4.conf.default.accept_source_route", "0"},
	{"net.ipv4.conf.all.rp_filter", "1"},
	{"net.ipv4.conf.default.rp_filter", "1"},
	{"net.ipv4.conf.all.arp_ignore", "1"},
	{"net.ipv4.tcp_syncookies", "1"},
	{"net.ipv4.icmp_echo_ignore_broadcasts", "1"},
	{"net.ipv6.conf.all.disable_ipv6", "1"},
	{"net.ipv6.conf.default.disable_ipv6", "1"},
}

func applySysctls() error {
	for _, s := range Sysctls {
		path := "/proc/sys/" + strings.ReplaceAll(s.Key, ".", "/")
		err := os.WriteFile(path, []byte(s.Value), 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("sysctl %s: %w", s.Key, err)
		}
	}
	return nil
}
