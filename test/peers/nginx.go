package peers

import (
	"context"
	"fmt"
	"io"
	"path/filepath"

	"hpcr/initramfs"
)

// Nginx is Debian's nginx and its stream module: two files, unpacked and not
// installed, since the package starts a service. log hears of downloads.
func Nginx(ctx context.Context, log io.Writer) (program, module string, err error) {
	debian, err := initramfs.NewDebian("amd64", log)
	if err != nil {
		return "", "", fmt.Errorf("nginx: %w", err)
	}
	packages, err := debian.Fetch(ctx, "nginx", []initramfs.Want{{Name: "nginx"}, {Name: "libnginx-mod-stream"}})
	if err != nil {
		return "", "", fmt.Errorf("nginx: %w", err)
	}
	for _, p := range packages {
		root, err := debian.Unpack(ctx, p)
		if err != nil {
			return "", "", fmt.Errorf("nginx: %w", err)
		}
		switch p.Name {
		case "nginx":
			program = filepath.Join(root, "usr/sbin/nginx")
		case "libnginx-mod-stream":
			module = filepath.Join(root, "usr/lib/nginx/modules/ngx_stream_module.so")
		}
	}
	return program, module, nil
}
