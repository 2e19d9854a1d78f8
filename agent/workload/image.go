package workload

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"hpcr/contract/compose"
)

// image is a pulled and unpacked image with what its configuration says.
type image struct {
	ref    string
	handle containerd.Image
	config ocispec.ImageConfig
	health *compose.Health

	platform platforms.MatchComparer // that was asked for
}

const maxConfig = 4 << 20

var errPlatform = errors.New("no match for platform in the image's configuration")

// loadImage reads what a pulled image says about itself. A registry's index is
// matched by platform on the way; a lone manifest only here.
func loadImage(ctx context.Context, handle containerd.Image, platform platforms.MatchComparer) (*image, error) {
	desc, err := handle.Config(ctx)
	if err != nil {
		return nil, err
	}
	if !images.IsConfigType(desc.MediaType) || desc.Size > maxConfig {
		return nil, fmt.Errorf("image configuration of kind %q and %d bytes", desc.MediaType, desc.Size)
	}
	blob, err := content.ReadBlob(ctx, handle.ContentStore(), desc)
	if err != nil {
		return nil, err
	}
	// Docker's HEALTHCHECK stands beside what the OCI defines.
	var doc struct {
		ocispec.Platform
		Config struct {
			ocispec.ImageConfig
			Healthcheck *struct {
				Test                                          []string
				Interval, Timeout, StartPeriod, StartInterval time.Duration
				Retries                                       int
			}
		} `json:"config"`
	}
	if err := json.Unmarshal(blob, &doc); err != nil {
		return nil, fmt.Errorf("image configuration: %w", err)
	}
	if !platform.Match(platforms.Normalize(doc.Platform)) {
		return nil, errPlatform
	}
	img := &image{handle: handle, config: doc.Config.ImageConfig, platform: platform}
	if h := doc.Config.Healthcheck; h != nil && len(h.Test) > 0 {
		img.health = &compose.Health{
			Disable: h.Test[0] == "NONE", Test: h.Test, Retries: h.Retries,
			Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod, StartInterval: h.StartInterval,
		}
	}
	return img, nil
}

// args is the command line: a service's own entry point drops the image's
// command too, as compose defines it.
func (i *image) args(s *compose.Service) []string {
	entry, cmd := i.config.Entrypoint, i.config.Cmd
	if s.Entrypoint != nil {
		entry, cmd = s.Entrypoint, nil
	}
	if s.Command != nil {
		cmd = s.Command
	}
	return slices.Concat(entry, cmd)
}

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// env is the container's environment: the image's under the service's.
func (i *image) env(s *compose.Service, hostname string) []string {
	out := []string{defaultPath, "HOSTNAME=" + hostname}
	if s.TTY {
		out = append(out, "TERM=xterm")
	}
	put := func(name, line string) {
		at := slices.IndexFunc(out, func(l string) bool { return strings.HasPrefix(l, name+"=") })
		if at >= 0 {
			out[at] = line
		} else {
			out = append(out, line)
		}
	}
	for _, line := range i.config.Env {
		if name, _, ok := strings.Cut(line, "="); ok {
			put(name, line)
		}
	}
	for _, v := range s.Env {
		put(v.Name, v.Name+"="+v.Value)
	}
	return out
}

// check is the health check in force: the service's, completed by the image's,
// with Docker's defaults; nil = none.
func (i *image) check(s *compose.Service) *compose.Health {
	var h compose.Health
	if i.health != nil {
		h = *i.health
	}
	if o := s.Health; o != nil {
		h.Disable = o.Disable
		if len(o.Test) > 0 {
			h.Test = o.Test
		}
		for _, d := range []struct{ from, to *time.Duration }{
			{&o.Interval, &h.Interval}, {&o.Timeout, &h.Timeout}, {&o.StartPeriod, &h.StartPeriod}, {&o.StartInterval, &h.StartInterval},
		} {
			if *d.from != 0 {
				*d.to = *d.from
			}
		}
		if o.Retries != 0 {
			h.Retries = o.Retries
		}
	}
	if h.Disable || len(h.Test) < 2 {
		return nil
	}
	for d, def := range map[*time.Duration]time.Duration{
		&h.Interval: 30 * time.Second, &h.Timeout: 30 * time.Second, &h.StartInterval: 5 * time.Second,
	} {
		if *d <= 0 {
			*d = def
		}
	}
	if h.Retries <= 0 {
		h.Retries = 3
	}
	return &h
}
