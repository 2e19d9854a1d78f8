package pid1

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

const strict = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// mounts is the guest's file system table, in order.
var mounts = []struct {
	target, fstype, options string
	flags                   uintptr
}{
	{"/proc", "proc", "hidepid=invisible", strict},
	{"/sys", "sysfs", "", strict},
	{"/sys/fs/cgroup", "cgroup2", "nsdelegate", strict},
	{"/dev", "devtmpfs", "mode=0755", unix.MS_NOSUID | unix.MS_NOEXEC},
	{"/dev/pts", "devpts", "mode=0620,ptmxmode=0666", unix.MS_NOSUID | unix.MS_NOEXEC},
	{"/dev/shm", "tmpfs", "mode=1777,size=16m", strict},
	{"/dev/mqueue", "mqueue", "", strict},
	{"/run", "tmpfs", "mode=0755,size=64m", unix.MS_NOSUID | unix.MS_NODEV},
	{"/tmp", "tmpfs", "mode=1777,size=64m", strict},
}

func mountAll() error {
	for _, m := range mounts {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return fmt.Errorf("mount point: %w", err)
		}
		if err := unix.Mount(m.fstype, m.target, m.fstype, m.flags, m.options); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	return nil
}

// moveRoot puts a mount of our own over the initial root file system, which
// can be neither pivoted away from nor unmounted: runc's pivot_root needs a
// root that is a mount of its own. Nothing is copied.
func moveRoot() error {
	const stage = "/newroot"
	if err := os.MkdirAll(stage, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("/", stage, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind the root: %w", err)
	}
	if err := unix.Chdir(stage); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	// Mounts of containers' children must not come back to us.
	return unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, "")
}

// openConsole makes the console our stdout and stderr. It is never read:
// stdin stays /dev/null.
func openConsole() error {
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	out, err := unix.Open("/dev/console", unix.O_WRONLY|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		out = null
	}
	for fd, from := range []int{null, out, out} {
		if err := unix.Dup3(from, fd, 0); err != nil && from != fd {
			return err
		}
	}
	return nil
}
