package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"hpcr/agent/hpl"
)

// Volume is an open volume.
type Volume struct {
	Name       string
	Path       string // in the contract
	Mount      string
	Device     string // "/dev/dm-0"
	Created    bool   // in this boot
	Rolled     bool   // to the contract's new seeds, in this boot
	Grown      bool   // with its disk, in this boot
	Filesystem string // that it holds
	Kind       string // "ours", which is sealed, or "foreign-luks"
	Generation uint64 // of our header; 0 for a foreign volume

	mapName string
	log     *slog.Logger
	mu      sync.Mutex
	mapping *mapping // nil: not mapped, or closed
	mounted bool
}

func cleanMount(path string) string { return filepath.Clean("/" + path) }

// mountAll checks and mounts, a path before those below it.
func (op *opener) mountAll(ctx context.Context) error {
	order := make([]int, len(op.specs))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return len(op.specs[a].Mount) - len(op.specs[b].Mount) })
	for _, i := range order {
		if err := op.volumes[i].mountChecked(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (v *Volume) mountChecked(ctx context.Context) error {
	f, err := os.Open(v.Device)
	if err != nil {
		return hpl.Wrap(err, "HPL02007E", v.Path, "the mapped volume cannot be read")
	}
	room, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return hpl.Wrap(errors.Join(err, f.Close()), "HPL02007E", v.Path, "the mapped volume cannot be read")
	}
	super, err := readSuperblock(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return hpl.Wrap(err, "HPL02007E", v.Path, "the volume opened but holds no known file system; it was left as it is")
	}
	if super.size > room {
		return hpl.Wrap(fmt.Errorf("%d bytes in %d", super.size, room), "HPL02007E", v.Path,
			"the disk is smaller than the file system on it: give it its old size back; it was left as it is")
	}
	fs := filesystems[super.kind]
	v.Filesystem = super.kind
	if err := fs.repair(ctx, v.Device); err != nil {
		return hpl.Wrap(err, "HPL02007E", v.Path, "the volume's file system is damaged beyond automatic repair: open it with cryptsetup and run e2fsck")
	}
	if err := os.MkdirAll(v.Mount, 0o755); err != nil {
		return hpl.Wrap(err, "HPL07002E", v.Path+"/mount", "the mount path exists and is not a folder")
	}
	if err := mount(v.Device, v.Mount, super.kind, fs.options); err != nil {
		detail := "the kernel does not mount the volume's file system: open the volume with cryptsetup and run its file system's check"
		if noFilesystem(err) {
			detail = "the volume holds " + super.kind + ", which this boot cannot mount: write filesystem: " + super.kind
		}
		return hpl.Wrap(err, "HPL02007E", v.Path, detail)
	}
	v.mounted = true
	return v.growFilesystem(fs, super, room)
}

// growFilesystem lets the mounted file system fill the volume, if that has
// gained a MiB or more.
func (v *Volume) growFilesystem(fs filesystem, super superblock, room int64) error {
	if room-super.size < mib {
		return nil
	}
	dir, err := os.Open(v.Mount)
	if err == nil {
		err = errors.Join(fs.grow(dir, room, super.block), dir.Close())
	}
	if err != nil {
		return hpl.Wrap(err, "HPL02006E", v.Path, "the disk has grown, but the file system could not be: its data is as it was")
	}
	v.Grown = true
	v.log.Info("file system grown", "volume", v.Name, "from", super.size, "to", room)
	return nil
}

// Close unmounts the volume and removes its mapping, and with it the last
// copy of its key. It waits for users of the mount as long as ctx lasts, then
// detaches the mount and leaves the removal to the kernel. Safe to call
// twice, and for a volume that is open in part.
func (v *Volume) Close(ctx context.Context) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	var errs []error
	if v.mounted {
		err := retryBusy(ctx, func() error { return unmount(v.Mount) })
		if err != nil {
			errs = append(errs, fmt.Errorf("unmount: %w", err), detach(v.Mount))
		}
		v.mounted = false
	}
	if v.mapping != nil {
		err := retryBusy(ctx, func() error { return removeMapping(v.mapping.name) })
		if err != nil {
			errs = append(errs, fmt.Errorf("remove mapping: %w", err), removeMappingLater(v.mapping.name))
		}
		v.mapping = nil
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close volume %s: %w", v.Path, err)
	}
	return nil
}

// retryBusy repeats do while something still uses the device.
func retryBusy(ctx context.Context, do func() error) error {
	for {
		err := do()
		if !busy(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(removeTry):
		}
	}
}
