package initramfs

import "strings"

// Hardening are the parameters that cost time at run time. Each stands for a
// measurement: 'make bench' boots without them and compares.
var Hardening = []string{
	"lockdown=confidentiality", "module.sig_enforce=1",
	"init_on_alloc=1", "slab_nomerge", "page_alloc.shuffle=1", "randomize_kstack_offset=1",
}

// commandLine is the kernel's, the same for dev and release: what is tested is
// what is shipped. Only parameters that these kernels know stand here; an
// unknown one would reach /init as an argument.
//
// A panic must end the guest, not loop. On s390x a kernel that stops dead is
// reported to the host as a crash (libvirt: on_crash destroy), so it is left
// stopped. On amd64 nobody would notice; it resets, and the emulator is
// started to take a reset as the end.
func commandLine(arch string) string {
	args := []string{
		"rdinit=/init", "quiet", "loglevel=3",
		"oops=panic", "nohibernate", "random.trust_bootloader=off",
		// The known-answer tests of the kernel's ciphers cost a second under
		// emulation; the kernel is measured, and volumes prove their keys.
		"cryptomgr.notests",
		// SysRq without its initialisation has neither keys nor /proc/sysrq-trigger,
		// which would heed no sysctl. Version 1 of cgroups starts a program of the
		// container's choice in the guest (release_agent).
		"initcall_blacklist=sysrq_init", "cgroup_no_v1=all,named",
		// Of the kernel's security modules those that do something here.
		"lsm=landlock,lockdown,yama,apparmor",
	}
	args = append(args, Hardening...)
	switch arch {
	case "amd64":
		args = append(args, "console=ttyS0", "panic=-1", "vsyscall=none", "8250.nr_uarts=1")
	case "s390x":
		// Bounce buffers of a Secure Execution guest: 512 MiB of 2 KiB slabs. A
		// guest that is not protected allocates none.
		args = append(args, "console=ttysclp0", "panic=0", "swiotlb=262144")
	}
	return strings.Join(args, " ")
}
