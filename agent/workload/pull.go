package workload

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/remotes"
	"golang.org/x/sync/errgroup"

	"hpcr/agent/hpl"
	"hpcr/contract/compose"
)

const (
	pullsAtOnce  = 2
	layersAtOnce = 3
	pullTries    = 3
)

// Verified is how an image is known to be the one that the contract means.
type Verified struct {
	Ref string // NAME@DIGEST
	By  string // "digest", or the rule's field and its key's fingerprint

	OnDisk bool // it comes from the disk with images, not from a registry
}

// Resolve settles each image's digest: it asks the registry whether it has the
// pinned one, or which one the tag is and who signed it. It fetches nothing of
// the image. The result is in the services' order.
func (w *Workload) Resolve(ctx context.Context) ([]Verified, error) {
	b := openBlobs(w.store, w.opt.Log)
	defer b.close()
	var mu sync.Mutex
	done := map[compose.Image]proven{}
	err := w.eachImage(ctx, func(ctx context.Context, s *service, reg *registries) error {
		p, err := w.resolve(ctx, s, reg, b)
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		done[s.def.Image] = p
		return nil
	})
	if err != nil {
		return nil, err
	}
	var out []Verified
	for _, s := range w.services {
		p := done[s.def.Image]
		s.verified = p.by
		s.def.Image.Digest = p.digest
		out = append(out, Verified{s.def.Image.Ref(), p.by, w.onDisk(p.digest)})
	}
	return out, nil
}

var errNotVerified = errors.New("an image was to be pulled before its signature was verified")

// Pull fetches and unpacks every image by its digest. Errors are HPL06004E at
// the service's image.
func (w *Workload) Pull(ctx context.Context) error {
	b := openBlobs(w.store, w.opt.Log)
	defer b.close()
	var mu sync.Mutex
	done := map[compose.Image]*image{}
	err := w.eachImage(ctx, func(ctx context.Context, s *service, reg *registries) error {
		if s.verified == "" && (s.def.Image.Digest == "" || len(w.opt.Trust.For(s.def.Signed())) > 0) {
			return errNotVerified
		}
		img, err := w.pullOne(ctx, s, reg.resolver, b)
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		done[s.def.Image] = img
		return nil
	})
	if err != nil {
		return err
	}
	for _, s := range w.services {
		s.image = done[s.def.Image]
	}
	b.keep(w.withLog(ctx), w.client.ContentStore(), slices.Collect(maps.Values(done)))
	return nil
}

// eachImage runs f once for each different image, a few at a time, and again
// when the failure is of a kind that passes.
func (w *Workload) eachImage(ctx context.Context, f func(context.Context, *service, *registries) error) error {
	if w.opt.TLS == nil {
		return hpl.New("HPL06004E", "", "the guest has no trust settings for registries: this is an error in the guest")
	}
	ctx = w.withLog(ctx)
	client := registryClient(w.opt.TLS, w.opt.stall)
	defer client.CloseIdleConnections()
	reg := newRegistries(client, w.opt.Auths, w.opt.Lookaside)
	if w.disk != nil {
		reg.resolver = fromDisk{reg.resolver, w.disk}
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(pullsAtOnce)
	seen := map[compose.Image]bool{}
	for _, s := range w.services {
		if seen[s.def.Image] {
			continue
		}
		seen[s.def.Image] = true
		group.Go(func() error {
			for try := 1; ; try++ {
				err := f(ctx, s, reg)
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
	match, err := platform(s.def)
	if err != nil {
		return nil, err
	}
	opts = append(opts, containerd.WithPlatformMatcher(match),
		containerd.WithImageHandlerWrapper(needsRoom(w.client.ContentStore(), w.opt.free)))
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
	img, err := loadImage(ctx, handle, match)
	if err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	img.ref = ref
	w.opt.Log.Info("image pulled and unpacked", "service", s.def.Name, "image", ref, "took", time.Since(start), "stored", len(stored.served))
	return img, nil
}
