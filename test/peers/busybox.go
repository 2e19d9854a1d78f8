package peers

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"hpcr/initramfs"
)

// Busybox is the static busybox of Debian's package for an architecture; log
// hears of downloads.
func Busybox(ctx context.Context, arch string, log io.Writer) ([]byte, error) {
	debian, err := initramfs.NewDebian(arch, log)
	if err != nil {
		return nil, fmt.Errorf("busybox for %s: %w", arch, err)
	}
	packages, err := debian.Fetch(ctx, "test-image", []initramfs.Want{{Name: "busybox-static"}})
	if err != nil {
		return nil, fmt.Errorf("busybox for %s: %w", arch, err)
	}
	dir, err := debian.Unpack(ctx, packages[0])
	if err != nil {
		return nil, fmt.Errorf("busybox for %s: %w", arch, err)
	}
	program, err := os.ReadFile(filepath.Join(dir, "bin", "busybox"))
	if err != nil {
		return nil, fmt.Errorf("busybox for %s: %w", arch, err)
	}
	return program, nil
}
