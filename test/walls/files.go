package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

func mounting(fstype string, flags uintptr, data string) func() error {
	return func() error {
		dir, err := mount(fstype, flags, data)
		if err != nil {
			return err
		}
		return unix.Unmount(dir, unix.MNT_DETACH)
	}
}

// record is a folder of the guest's that the project mounts.
const record = "/var/hyperprotect"

func init() {
	add(map[string]func() error{
		"the host's random numbers": randomNumbers,
		"devices by number":         devices,
		"mount devtmpfs":            mounting("devtmpfs", 0, ""),
		"mount devtmpfs read-only":  mounting("devtmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""),
		"mount debugfs read-only":   mounting("debugfs", unix.MS_RDONLY, ""),
		"mount debugfs":             mounting("debugfs", 0, ""),
		"mount tracefs":             mounting("tracefs", 0, ""),
		"mount securityfs":          mounting("securityfs", 0, ""),
		"mount bpf":                 mounting("bpf", 0, ""),
		"mount sysfs":               mounting("sysfs", 0, ""),
		"mount cgroup v1":           mounting("cgroup", 0, "none,name=escape"),
		"write sysfs":               func() error { return write("/sys/module/apparmor/parameters/mode", "complain") },
		"remount sysfs":             func() error { return unix.Mount("", "/sys", "", unix.MS_REMOUNT|unix.MS_BIND, "") },
		"remount sysfs with an unknown flag": func() error {
			return unix.Mount("", "/sys", "", unix.MS_REMOUNT|unix.MS_BIND|1<<8, "")
		},
		"remount the file system behind sysfs": func() error { return unix.Mount("", "/sys", "", unix.MS_REMOUNT, "") },
		"bind and remount sysfs":               bindRemount,
		"set attributes of sysfs": func() error {
			return unix.MountSetattr(unix.AT_FDCWD, "/sys", 0, &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY})
		},
		"open sysfs as a file system": func() error { _, err := unix.Fsopen("sysfs", 0); return err },
		"clone a mount":               func() error { _, err := unix.OpenTree(unix.AT_FDCWD, "/sys", unix.OPEN_TREE_CLONE); return err },
		"write the record":            func() error { return os.WriteFile(record+"/se-checksums.txt", []byte("forged"), 0o600) },
		"remount the record":          func() error { return unix.Mount("", record, "", unix.MS_REMOUNT|unix.MS_BIND, "") },

		"leave the profile": func() error { return write("/proc/thread-self/attr/apparmor/current", "changeprofile unconfined") },
		"leave the profile at exec": func() error {
			return write("/proc/thread-self/attr/apparmor/exec", "exec unconfined")
		},

		"may mount tmpfs":           mounting("tmpfs", 0, "size=1m"),
		"may mount proc":            mounting("proc", 0, ""),
		"may mount cgroup2":         mounting("cgroup2", 0, ""),
		"may mount sysfs read-only": mounting("sysfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""),
		"may mount overlay":         overlay,
		"may bind":                  bind,
	})
}

func overlay() error {
	dir, err := mount("tmpfs", 0, "size=1m")
	if err != nil {
		return err
	}
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	return unix.Mount("overlay", dir+"/merged", "overlay", 0, fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", dir))
}

func bind() error {
	dir, err := os.MkdirTemp("/tmp", "walls-")
	if err != nil {
		return err
	}
	return unix.Mount("/", dir, "", unix.MS_BIND|unix.MS_REC, "")
}

func bindRemount() error {
	dir, err := os.MkdirTemp("/tmp", "walls-")
	if err != nil {
		return err
	}
	if err := unix.Mount("/sys", dir, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_NOSUID, ""); err != nil {
		return err
	}
	return write(dir+"/module/apparmor/parameters/mode", "complain")
}

// given are the devices that a container may have: null, zero, full, random,
// urandom, tty, ptmx, and those of contract/compose/guest.go with a fixed
// number: hwrng, tun, fuse.
var given = []string{"1:3", "1:5", "1:7", "1:8", "1:9", "5:0", "5:2", "10:183", "10:200", "10:229"}

// randomNumbers reads from what the kernel has for hardware generators.
func randomNumbers() error {
	const node = "/tmp/hwrng"
	if err := unix.Mknod(node, unix.S_IFCHR|0o600, int(unix.Mkdev(10, 183))); err != nil {
		return err
	}
	return read(node)
}

// devices makes a node for every device that the kernel knows and opens it.
func devices() error {
	dir, err := os.MkdirTemp("/tmp", "walls-")
	if err != nil {
		return err
	}
	tried, opened := 0, []string{}
	for kind, mode := range map[string]uint32{"char": unix.S_IFCHR, "block": unix.S_IFBLK} {
		names, err := os.ReadDir("/sys/dev/" + kind)
		if err != nil {
			return err
		}
		for _, n := range names {
			var major, minor uint32
			if _, err := fmt.Sscanf(n.Name(), "%d:%d", &major, &minor); err != nil {
				return err
			}
			if kind == "char" && slices.Contains(given, n.Name()) {
				continue
			}
			node := filepath.Join(dir, kind+n.Name())
			err := unix.Mknod(node, mode|0o600, int(unix.Mkdev(major, minor)))
			if errors.Is(err, unix.EPERM) {
				tried++
				continue
			}
			if err != nil {
				return err
			}
			tried++
			for _, how := range []int{unix.O_RDONLY, unix.O_WRONLY} {
				fd, err := unix.Open(node, how|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
				if err == nil {
					unix.Close(fd)
				}
				if !errors.Is(err, unix.EPERM) {
					opened = append(opened, kind+" "+n.Name())
				}
			}
		}
	}
	switch {
	case tried < 5:
		return fmt.Errorf("only %d devices to try", tried)
	case len(opened) > 0:
		return errors.New("opened " + strings.Join(opened, ", "))
	}
	return unix.EPERM
}
