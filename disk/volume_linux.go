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

	"hpcr/agent/hpl"
)

// Volume is an open volume: what to say of it, and what must still hold of it
// later. Nothing in it is secret.
type Volume struct {
	Name       string `json:"name"`
	Path       string `json:"path"` // in the contract
	Mount      string `json:"mount"`
	Device     string `json:"device"`     // "/dev/dm-0"
	Kind       Kind   `json:"kind"`       // Ours, which is sealed, or ForeignLUKS
	Created    bool   `json:"created"`    // in this boot
	Rolled     bool   `json:"rolled"`     // to the contract's new seeds, in this boot
	Grown      bool   `json:"grown"`      // with its disk, in this boot
	Filesystem string `json:"filesystem"` // that it holds
	Generation uint64 `json:"generation"` // of our header; 0 for a foreign volume
	Slots      int    `json:"slots"`      // key slots in use

	Integrity bool `json:"integrity"` // a changed sector gives a read error

	Header Header  `json:"header"`
	Table  Table   `json:"table"`
	Lower  []Table `json:"lower"` // with Integrity, from above

	log     *slog.Logger
	mapping *mapping // nil: not mapped
}

// Header is a volume's header as it was when the volume opened.
type Header struct {
	Disk   string `json:"disk"`  // "vdb"
	Start  int64  `json:"start"` // bytes
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"` // lower-case hex
}

// Table is a mapping and its live table, whose key is a name in a keyring that
// is gone.
type Table struct {
	Mapping string `json:"mapping"` // "hpcr-1"
	Target  string `json:"target"`
	Sectors uint64 `json:"sectors"` // of 512 bytes
	Params  string `json:"params"`
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
		err := op.volumes[i].mountChecked(ctx)
		if err != nil && op.specs[i].Cache {
			err = op.remake(ctx, op.specs[i], op.volumes[i], err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// remake gives a volume a new file system in the place of one that does not
// mount. That the volume is ours, and this one, its seal has proven.
func (op *opener) remake(ctx context.Context, s Spec, v *Volume, cause error) error {
	if v.Kind != Ours {
		return cause
	}
	op.Log.Warn("the file system is beyond repair and is made anew: what the volume holds can be had again", "volume", s.Name, "cause", cause)
	err := unmount(v.Mount) // where only growing failed
	if err == nil && v.Integrity {
		err = fill(ctx, v.Device)
	}
	if err == nil {
		err = filesystems[s.Filesystem].create(ctx, v.Device)
	}
	if err != nil {
		return hpl.Wrap(errors.Join(cause, err), "HPL02005E", s.Path, "the file system cannot be made anew")
	}
	return v.mountChecked(ctx)
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
	if err := fs.repair(ctx, v.Device, super, v.log); err != nil {
		return hpl.Wrap(err, "HPL02007E", v.Path, "the volume's file system is damaged beyond automatic repair: open it with cryptsetup and run e2fsck")
	}
	at, err := makeFolder(v.Mount)
	if err != nil {
		return hpl.Wrap(err, "HPL07002E", v.Path+"/mount",
			"the mount path, or a folder above it, is a file or a symbolic link: remove that from the volume it lies in, or choose another path")
	}
	defer at.Close()
	if err := mountOn(v.Device, at, super.kind, fs.options); err != nil {
		detail := "the kernel does not mount the volume's file system: open the volume with cryptsetup and run its file system's check"
		if noFilesystem(err) {
			detail = "the volume holds " + super.kind + ", which this boot cannot mount: write filesystem: " + super.kind
		}
		return hpl.Wrap(err, "HPL02007E", v.Path, detail)
	}
	return v.growFilesystem(fs, super, room)
}

// growFilesystem lets the mounted file system fill the volume, if that has
// gained a MiB or more.
func (v *Volume) growFilesystem(fs filesystem, super superblock, room int64) error {
	if room-super.size < mib || v.Integrity {
		return nil // the room of a volume with integrity is fixed when it is made
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
