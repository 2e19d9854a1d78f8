package workload

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/platforms"
	"golang.org/x/sync/errgroup"

	"hpcr/agent/hpl"
)

const (
	pullsAtOnce  = 2
	layersAtOnce = 3
	pullTries    = 3
)

// Resolve asks each registry whether it has the pinned digest, unless the image
// store has it, and fetches nothing.
func (w *Workload) Resolve(ctx context.Context) error {
	b := openBlobs(w.store, w.opt.Log)
	defer b.close()
	return w.eachImage(ctx, func(ctx context.Context, s *service, r remotes.Resolver) error {
		_, desc, err := b.before(r).Resolve(ctx, s.def.Image.Ref())
		if err != nil {
			return err
		}
		if desc.Digest.String() != s.def.Image.Digest {
			return errOtherDigest
		}
		return nil
	})
}

// Pull fetches and unpacks every image by its digest. Errors are HPL06004E at
// the service's image.
func (w *Workload) Pull(ctx context.Context) error {
	b := openBlobs(w.store, w.opt.Log)
	defer b.close()
	var mu sync.Mutex
	done := map[string]*image{}
	err := w.eachImage(ctx, func(ctx context.Context, s *service, r remotes.Resolver) error {
		img, err := w.pullOne(ctx, s, r, b)
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		done[s.def.Image.Ref()] = img
		return nil
	})
	if err != nil {
		return err
	}
	for _, s := range w.services {
		s.image = done[s.def.Image.Ref()]
	}
	b.keep(w.withLog(ctx), w.client.ContentStore(), slices.Collect(maps.Values(done)))
	return nil
}

// eachImage runs f once for each different image, a few at a time, and again
// when the failure is of a kind that passes.
func (w *Workload) eachImage(ctx context.Context, f func(context.Context, *service, remotes.Resolver) error) error {
	if w.opt.TLS == nil {
		return hpl.New("HPL06004E", "", "the guest has no trust settings for registries: this is an error in the guest")
	}
	ctx = w.withLog(ctx)
	client := registryClient(w.opt.TLS)
	defer client.CloseIdleConnections()
	r := newResolver(client, w.opt.Auths)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(pullsAtOnce)
	seen := map[string]bool{}
	for _, s := range w.services {
		if seen[s.def.Image.Ref()] {
			continue
		}
		seen[s.def.Image.Ref()] = true
		group.Go(func() error {
			for try := 1; ; try++ {
				err := f(ctx, s, r)
				if err == nil {
					return nil
				}
				detail, retry := pullCause(err)
				if !retry || try == pullTries || sleep(ctx, time.Duration(try)*time.Second) != nil {
					code := hpl.Code("HPL06004E")
					if s.def.Pod != "" {
						code = "HPL15005E"
					}
					return hpl.Wrap(err, code, s.def.Path("image"), detail)
				}
				w.opt.Log.Warn("image will be asked for again", "service", s.def.Name, "err", err)
			}
		})
	}
	return group.Wait()
}

// passes says whether the failure is of a kind that a later try may not have.
func passes(err error) bool {
	_, retry := pullCause(err)
	return retry
}

func (w *Workload) pullOne(ctx context.Context, s *service, r remotes.Resolver, b *blobs) (*image, error) {
	ref := s.def.Image.Ref()
	start := time.Now()
	opts := []containerd.RemoteOpt{
		containerd.WithPullUnpack,
		containerd.WithPullSnapshotter(snapshotter),
		containerd.WithMaxConcurrentDownloads(layersAtOnce),
	}
	platform := platforms.Default()
	if s.def.Platform != "" {
		p, err := platforms.Parse(s.def.Platform)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errPlatform, err)
		}
		if platform = platforms.Only(p); !platforms.Default().Match(p) {
			return nil, errPlatform
		}
	}
	opts = append(opts, containerd.WithPlatformMatcher(platform))
	stored := b.before(r)
	handle, err := w.client.Pull(ctx, ref, append(opts, containerd.WithResolver(stored))...)
	// A registry that is down says nothing about what is stored.
	if err != nil && !passes(err) && ctx.Err() == nil && stored.forget(ctx, w.client.ContentStore()) {
		w.opt.Log.Warn("the image store did not deliver: the image is pulled", "service", s.def.Name, "err", err)
		handle, err = w.client.Pull(ctx, ref, append(opts, containerd.WithResolver(r))...)
	}
	if err != nil {
		return nil, err
	}
	if handle.Target().Digest.String() != s.def.Image.Digest {
		return nil, errOtherDigest
	}
	img, err := loadImage(ctx, handle, platform)
	if err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	img.ref = ref
	w.opt.Log.Info("image pulled and unpacked", "service", s.def.Name, "image", ref, "took", time.Since(start), "stored", len(stored.served))
	return img, nil
}
