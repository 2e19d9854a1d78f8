package initramfs

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrCommandLine is a kernel command line that would open the guest.
var ErrCommandLine = errors.New("kernel command line")

// Parameters that give a shell, a debugger or a talkative kernel to whoever
// has the console, or take a defence away. The list is a second pair of eyes
// on commandLine: what stands there is measured, a slip in it is shipped.
var (
	openingNames = []string{
		"debug", "shell", "init", "single", "emergency", "rescue", "break", "1", "s", "S",
		"sysrq_always_enabled", // whatever its value says
		"nokaslr", "nopti", "nosmap", "nosmep", "earlyprintk", "earlycon",
		"ignore_loglevel", "initcall_debug", "no_hash_pointers", "no_console_suspend", "keep_bootcon", "netconsole",
		"slub_debug", "gdbstub", "crashkernel", "prot_virt", "kunit.enable",
	}
	openingPrefixes = []string{"hpcr.", "agent.", "rd.", "systemd.", "kgdb", "ftrace", "trace_", "dyndbg", "usb-storage."}

	// Parameters that may stand with these values only.
	safeValues = map[string][]string{
		"rdinit": {"/init"}, "lockdown": {"confidentiality"}, "module.sig_enforce": {"1"}, "loglevel": {"3"},
		"debugfs": {"off", "no-mount"}, "mitigations": {"auto", "auto,nosmt"}, "iomem": {"strict"},
		"initcall_blacklist": {"sysrq_init"}, "cgroup_no_v1": {"all,named"}, "lsm": {"landlock,lockdown,yama,apparmor"},
	}
	required = []string{"rdinit", "lockdown", "module.sig_enforce", "loglevel", "initcall_blacklist", "cgroup_no_v1", "lsm"}
)

func checkCommandLine(line string) error {
	seen := map[string]bool{}
	for word := range strings.FieldsSeq(line) {
		name, value, _ := strings.Cut(word, "=")
		if slices.Contains(openingNames, name) || slices.ContainsFunc(openingPrefixes, func(p string) bool { return strings.HasPrefix(name, p) }) {
			return fmt.Errorf("%w: %q opens the guest", ErrCommandLine, word)
		}
		if seen[name] {
			return fmt.Errorf("%w: %q stands twice, and the kernel takes the last", ErrCommandLine, name)
		}
		seen[name] = true
		if safe, ok := safeValues[name]; ok && !slices.Contains(safe, value) {
			return fmt.Errorf("%w: %q, want %s=%s", ErrCommandLine, word, name, strings.Join(safe, " or "))
		}
	}
	for _, name := range required {
		if !seen[name] {
			return fmt.Errorf("%w: %s is missing", ErrCommandLine, name)
		}
	}
	return nil
}
