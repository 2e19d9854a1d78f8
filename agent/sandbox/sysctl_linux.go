package sandbox

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

// Kernel settings that belong to a namespace which every container has for
// itself, as /proc/sys spells them. A name that ends in "/" is a folder.
var (
	ownSettings = []string{
		"fs/mqueue/", "kernel/domainname", "kernel/hostname", "kernel/msgmax", "kernel/msgmnb", "kernel/msgmni",
		"kernel/sem", "kernel/shm_rmid_forced", "kernel/shmall", "kernel/shmmax", "kernel/shmmni",
	}
	networkSettings = []string{"net/"}
)

// guardSysctls has the kernel refuse (EPERM) every write to its settings by a
// process of the control group or below it, except to those of a container's
// own namespaces. It holds whatever a container mounts: a read-only /proc/sys
// would not, since a container with CAP_SYS_ADMIN can mount another /proc.
func guardSysctls(dir string, network bool) error {
	writable := ownSettings
	if network {
		writable = append(writable[:len(writable):len(writable)], networkSettings...)
	}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "hpcr_sysctl", Type: ebpf.CGroupSysctl, AttachType: ebpf.AttachCGroupSysctl,
		Instructions: sysctlGuard(writable), License: "Apache-2.0",
	})
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	group, err := os.Open(dir)
	if err != nil {
		return errors.Join(err, prog.Close())
	}
	defer group.Close()
	// Attached without flags: nothing below can take its place. The group holds
	// on to the program, which needs no descriptor.
	err = link.RawAttachProgram(link.RawAttachProgramOptions{
		Target: int(group.Fd()), Program: prog, Attach: ebpf.AttachCGroupSysctl,
	})
	return errors.Join(err, prog.Close())
}

// maxSetting is more than the longest name of a setting; a longer one is
// refused.
const maxSetting = 128

// sysctlGuard is the program: 1 lets an access pass, 0 refuses it. Its context
// is struct bpf_sysctl, {write, position}; names are compared byte by byte, so
// that the byte order does not matter.
func sysctlGuard(writable []string) asm.Instructions {
	const buffer = -maxSetting
	prog := asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, 0, asm.Word),
		asm.JEq.Imm(asm.R2, 0, "pass"),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, buffer),
		asm.Mov.Imm(asm.R3, maxSetting),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnSysctlGetName.Call(),
		asm.JSLT.Imm(asm.R0, 0, "refuse"),
	}
	for i, name := range writable {
		next := fmt.Sprintf("name%d", i+1)
		text := []byte(name)
		if !strings.HasSuffix(name, "/") {
			text = append(text, 0)
		}
		for j, c := range text {
			load := asm.LoadMem(asm.R2, asm.RFP, int16(buffer+j), asm.Byte)
			if j == 0 && i > 0 {
				load = load.WithSymbol(fmt.Sprintf("name%d", i))
			}
			if i == len(writable)-1 {
				next = "refuse"
			}
			prog = append(prog, load, asm.JNE.Imm(asm.R2, int32(c), next))
		}
		prog = append(prog, asm.Ja.Label("pass"))
	}
	return append(prog,
		asm.Mov.Imm(asm.R0, 0).WithSymbol("refuse"),
		asm.Return(),
		asm.Mov.Imm(asm.R0, 1).WithSymbol("pass"),
		asm.Return(),
	)
}
