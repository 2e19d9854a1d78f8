package workload

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

var errNoRoom = errors.New("not enough room for the image")

// needsRoom stops a pull that cannot end well before its first layer comes: a
// layer lies in the store once as it came and once unpacked, which is at least
// as much unless it was packed in vain.
func needsRoom(store content.Store, free func() (int64, error)) func(images.Handler) images.Handler {
	return func(next images.Handler) images.Handler {
		return images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
			children, err := next.Handle(ctx, desc)
			if err != nil || !images.IsManifestType(desc.MediaType) {
				return children, err
			}
			var need int64
			for _, c := range children {
				if !images.IsLayerType(c.MediaType) {
					continue
				}
				if _, err := store.Info(ctx, c.Digest); err == nil {
					continue // here already
				}
				if c.Size < 0 || need > need+2*c.Size || c.Size > 1<<60 {
					return nil, fmt.Errorf("%w: a layer of %d bytes", errOtherDigest, c.Size)
				}
				need += 2 * c.Size
			}
			room, err := free()
			if err != nil {
				return nil, err
			}
			if need > room {
				return nil, fmt.Errorf("%w: %d bytes are needed, %d are free", errNoRoom, need, room)
			}
			return children, nil
		})
	}
}
