package boot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"hpcr/agent/attest"
	"hpcr/agent/event"
	"hpcr/agent/sandbox"
	"hpcr/agent/storage"
	"hpcr/contract"
	"hpcr/contract/compose"
	"hpcr/disk"
)

// storeDir holds all that this boot writes for its containers: images, layers,
// named volumes, the project's files. It is the scratch disk, or a tmpfs with a
// cap.
const storeDir = "/var/lib/hpcr"

// elsewhere are folders of the store that are used under another path.
var elsewhere = []struct {
	dir, at string
	mode    os.FileMode
}{
	{storeDir + "/containerd", "/var/lib/containerd", 0o700},
	{storeDir + "/compose", compose.Dir, 0o755},
}

const (
	scratchLimit = 4 * time.Minute
	serialAnswer = 10 * time.Second

	storeShare   = 60        // percent of the memory that a tmpfs may take
	storeReserve = 128 << 20 // bytes of it that stay free: what agent and daemon are promised (sandbox.Agent, sandbox.Daemon)
	storeLeast   = 32 << 20
)

// openStore gives the boot its place to write.
func (g *Guest) openStore(ctx context.Context) error {
	if g.scratchDisk {
		if err := g.openScratch(ctx); err != nil {
			return err
		}
	} else if err := mountMemoryStore(); err != nil {
		return err
	}
	if err := showElsewhere(); err != nil {
		return errors.Join(err, g.closeStore(context.WithoutCancel(ctx)))
	}
	return nil
}

func showElsewhere() error {
	for _, e := range elsewhere {
		if err := errors.Join(os.MkdirAll(e.dir, e.mode), os.MkdirAll(e.at, 0o755)); err != nil {
			return err
		}
		if err := unix.Mount(e.dir, e.at, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("place of %s: %w", e.at, err)
		}
	}
	return nil
}

func (g *Guest) openScratch(ctx context.Context) error {
	v, err := storage.OpenScratch(ctx, disk.ScratchOptions{Mount: storeDir, Exclude: g.notDisks(), Log: g.log}, scratchLimit)
	if err != nil {
		// The child may have ended half-way, with mappings left.
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
		defer cancel()
		if cerr := storage.Close(undo); cerr != nil {
			g.log.Error("closing after a failure", "error", cerr)
		}
		return err
	}
	g.scratch = v
	g.note(event.ScratchOpened, event.Notice, "images and layers are on the scratch disk, under a key of this boot",
		slog.String("disk", v.Header.Disk), slog.Uint64("bytes", v.Table.Sectors*512), slog.Bool("integrity", v.Integrity))
	g.record.Add(attest.Fact{Name: "Scratch disk", Text: "encrypted with integrity, key of this boot"})
	if !slices.ContainsFunc(g.plan.Volumes, isLogStore) {
		return g.keepLog(false)
	}
	return nil
}

func (g *Guest) closeStore(ctx context.Context) error {
	if g.scratch == nil {
		return nil
	}
	g.parkLog(ctx)
	return storage.Close(ctx)
}

// notDisks are the kernel's names of disks that hold something else.
func (g *Guest) notDisks() []string { return []string{filepath.Base(g.cidataDevice)} }

// findRoles says whether the host has attached a scratch disk, and one with
// images. The serial is the host's word: it decides what is looked at, not what
// is written to. A disk that does not tell its serial holds whoever asks. A disk
// that a volume of this name asks for is that volume's.
func (g *Guest) findRoles(ctx context.Context) (scratch, images bool, err error) {
	type answer struct {
		scratch, images bool
		err             error
	}
	told := make(chan answer, 1)
	go func() {
		var a answer
		a.scratch, a.images, a.err = disk.Attached(g.notDisks())
		told <- a
	}()
	ctx, cancel := context.WithTimeout(ctx, serialAnswer)
	defer cancel()
	free := func(serial string) bool {
		return !slices.ContainsFunc(g.plan.Volumes, func(v contract.Volume) bool { return v.Name == serial })
	}
	select {
	case a := <-told:
		return a.scratch && free(disk.ScratchSerial), a.images && free(disk.ImagesSerial), a.err
	case <-ctx.Done():
		return false, false, fmt.Errorf("a disk does not tell its serial: %w", ctx.Err())
	}
}

func mountMemoryStore() error {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return err
	}
	free, err := sandbox.FreeMemory()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(storeDir, 0o755); err != nil {
		return err
	}
	options := fmt.Sprintf("mode=0755,size=%d", storeSize(uint64(info.Totalram)*uint64(info.Unit), free))
	if err := unix.Mount("store", storeDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("store in memory: %w", err)
	}
	return nil
}

// storeSize is the cap of a store in memory, in bytes, of all memory and what
// of it is free.
func storeSize(total, free uint64) uint64 {
	size := total / 100 * storeShare
	if free < size+storeReserve {
		size = max(free, storeReserve) - storeReserve
	}
	return max(size, storeLeast)
}
