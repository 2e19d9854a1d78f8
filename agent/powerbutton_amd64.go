package agent

import (
	"bytes"
	"context"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// watchPowerButton calls pressed when the host presses the virtual machine's
// power button (libvirt's shutdown, QEMU's system_powerdown). The kernel
// multicasts ACPI events on generic netlink (drivers/acpi/event.c). On s390x
// the same request arrives as Ctrl-Alt-Del at PID 1.
func watchPowerButton(ctx context.Context, pressed func()) error {
	family, err := netlink.GenlFamilyGet("acpi_event")
	if err != nil {
		return fmt.Errorf("acpi events: %w", err)
	}
	if len(family.Groups) == 0 {
		return fmt.Errorf("acpi events: the kernel offers no group")
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_GENERIC)
	if err != nil {
		return fmt.Errorf("acpi events: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return fmt.Errorf("acpi events: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, int(family.Groups[0].ID)); err != nil {
		unix.Close(fd)
		return fmt.Errorf("acpi events: %w", err)
	}
	go func() {
		defer unix.Close(fd)
		buf := make([]byte, 4096)
		for ctx.Err() == nil {
			n, _, err := unix.Recvfrom(fd, buf, 0)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return
			}
			// struct acpi_genl_event begins with the device class as text; the
			// kernel is the only sender on this group.
			if bytes.Contains(buf[:n], []byte("button/power\x00")) {
				pressed()
			}
		}
	}()
	return nil
}
