package initramfs

import (
	"context"
	_ "embed"
	"os"
	"path/filepath"
	"strings"
)

// The containers' AppArmor profile, and what of AppArmor the guest's kernel
// enforces (/sys/kernel/security/apparmor/features), in the parser's form. The
// parser would take the features of the machine that it runs on.
var (
	//go:embed apparmor/container.profile
	containerProfile []byte
	//go:embed apparmor/features
	apparmorFeatures []byte
)

// profileFile is where the agent finds the compiled profile.
const profileFile = "etc/hpcr/container.apparmor"

// apparmorVersion is the parser's: another one may make other tables.
func apparmorVersion(ctx context.Context) (string, error) {
	if err := Have("apparmor_parser"); err != nil {
		return "", err
	}
	out, err := output(ctx, "", nil, tool("apparmor_parser"), "--version")
	first, _, _ := strings.Cut(string(out), "\n")
	return first, err
}

// compileProfile makes what the kernel loads: a table that does not depend on
// byte order.
func compileProfile(ctx context.Context) ([]byte, error) {
	if err := Have("apparmor_parser"); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "hpcr-apparmor-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	profile, features := filepath.Join(dir, "profile"), filepath.Join(dir, "features")
	for name, text := range map[string][]byte{profile: containerProfile, features: apparmorFeatures} {
		if err := os.WriteFile(name, text, 0o644); err != nil {
			return nil, err
		}
	}
	return output(ctx, "", nil, tool("apparmor_parser"), "--skip-kernel-load", "--skip-cache", "--stdout",
		"--config-file", "/dev/null", "--policy-features", features, "--kernel-features", features, profile)
}
