package boot

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// containerProfile is the name of the AppArmor profile in profileFile, which
// every container runs under.
const containerProfile = "hpcr-container"

// seal closes what foreign layers and containers could touch: from here on the
// guest's own files cannot change, and the kernel knows the walls of a
// container.
func (g *Guest) seal(context.Context) error {
	if err := loadProfile(); err != nil {
		return fmt.Errorf("AppArmor: %w", err)
	}
	// The file system itself, not only this mount of it: the initial root lies
	// below and is the same.
	if err := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
		return fmt.Errorf("read-only root: %w", err)
	}
	return nil
}

// loadProfile gives the kernel the containers' profile. It takes a policy in
// one write. runc looks for securityfs, which therefore stays.
func loadProfile() error {
	const fs = "/sys/kernel/security"
	if err := unix.Mount("securityfs", fs, "securityfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	policy, err := os.ReadFile(profileFile)
	if err != nil {
		return err
	}
	return os.WriteFile(fs+"/apparmor/.load", policy, 0)
}
