package disk

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"time"
)

// filesystem is one that a volume may have.
type filesystem struct {
	make      []string // command and arguments before the device
	makeLimit time.Duration
	minSize   int64    // bytes that make needs
	check     []string // nil: the kernel replays its journal at mount, no more
	options   string   // for mount
	grow      func(mount *os.File, bytes, block int64) error
}

// filesystems by the name that the contract uses.
var filesystems = map[string]filesystem{
	"ext4": {
		make:      []string{"mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1"},
		makeLimit: 10 * time.Minute,
		check:     []string{"e2fsck", "-p"},
		minSize:   16 * mib,
		options:   "errors=remount-ro",
		grow:      growExt4,
	},
	// xfs and btrfs are checked by their own log when they are mounted; what
	// that does not mend is for xfs_repair or btrfs check, by hand.
	"xfs": {
		make: []string{"mkfs.xfs", "-q", "-f", "-K"}, makeLimit: 10 * time.Minute,
		minSize: 300 * mib, // of xfsprogs
		grow:    growXFS,
	},
	"btrfs": {
		make: []string{"mkfs.btrfs", "-q", "-f", "-K"}, makeLimit: 10 * time.Minute,
		minSize: 114 * mib, // of btrfs-progs, for data and metadata apart
		grow:    growBtrfs,
	},
}

// room is how large a disk must be for a volume with this file system. A 32nd
// covers the tags (32 bytes for 4 KiB) and the journal (a 128th) of integrity,
// a mebibyte its superblock and what is rounded.
func (fs filesystem) room(integrity bool) int64 {
	room := int64(minDiskSize) + fs.minSize - filesystems["ext4"].minSize
	if integrity {
		room += fs.minSize/32 + mib
	}
	return (room + mib - 1) / mib * mib // as layout cuts it
}

const (
	checkLimit = 15 * time.Minute
	toolMemory = 2 << 30 // address space of a child, bytes
	toolOutput = 8 << 10 // bytes kept for the owner's log
	e2fsckBad  = 4       // exit bits from here on: errors are left
	e2fsckNot  = 8       // exit bit: it could not begin
)

var toolDirs = []string{"/sbin", "/usr/sbin", "/bin", "/usr/bin"}

// tool finds a program of the image.
func tool(name string) (string, error) {
	for _, dir := range toolDirs {
		if path := filepath.Join(dir, name); isProgram(path) {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is not in this image", name)
}

func isProgram(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0
}

// runTool runs a program that works on a disk's content: no input, little
// environment, bounded time, memory and output.
func runTool(ctx context.Context, limit time.Duration, command ...string) error {
	path, err := tool(command[0])
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var out tail
	cmd := exec.CommandContext(ctx, path, command[1:]...)
	cmd.Env = []string{"PATH=/sbin:/usr/sbin:/bin:/usr/bin", "LC_ALL=C"}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", command[0], err)
	}
	if err := limitChild(cmd.Process.Pid, toolMemory); err != nil {
		cancel()
		return errors.Join(err, cmd.Wait())
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%s: %w: %q", command[0], errors.Join(ctx.Err(), err), out.b)
	}
	return nil
}

// tail keeps the end of what is written to it.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if over := len(t.b) - toolOutput; over > 0 {
		t.b = t.b[over:]
	}
	return len(p), nil
}

func (f filesystem) create(ctx context.Context, node string) error {
	return runTool(ctx, f.makeLimit, append(f.make[:len(f.make):len(f.make)], node)...)
}

// fill writes zeros over all of a mapped device: a sector with integrity cannot
// be read before it was written.
func fill(ctx context.Context, node string) error {
	f, err := os.OpenFile(node, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	zeros := make([]byte, 4*mib)
	for at := int64(0); at < size; at += int64(len(zeros)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := f.WriteAt(zeros[:min(int64(len(zeros)), size-at)], at); err != nil {
			return fmt.Errorf("write the volume's sectors: %w", err)
		}
	}
	return f.Sync()
}

// repair checks before mount. What e2fsck mended by itself is fine. It does not
// begin with a superblock of which a power cut left one half: then its copy is
// taken, and the journal run as from the first. A file system that grew while
// it was mounted has copies that ask for the journal: e2fsck runs it, writes
// the superblock, reads the copy again, and gives up since that still asks. The
// superblock is whole by then, so the check begins once more with it: all of
// it, for the groups' descriptors are the copy's, which are older.
func (f filesystem) repair(ctx context.Context, node string, super superblock, log *slog.Logger) error {
	if f.check == nil {
		return nil
	}
	command := append(f.check[:len(f.check):len(f.check)], node)
	err := runTool(ctx, checkLimit, command...)
	if args := super.copied(); args != nil && exitStatus(err)&e2fsckNot != 0 {
		log.Warn("the superblock cannot be used: the file system is mended from its copy", "cause", err)
		cerr := runTool(ctx, checkLimit, slices.Insert(command, len(f.check), args...)...)
		if exitStatus(cerr) < e2fsckBad {
			return nil
		}
		err = errors.Join(err, cerr)
		again := runTool(ctx, checkLimit, slices.Insert(command, len(f.check), "-f")...)
		if exitStatus(again) < e2fsckBad {
			return nil
		}
		return errors.Join(err, again)
	}
	if exitStatus(err) < e2fsckBad {
		return nil
	}
	return err
}

// exitStatus is 0 for no error, that of a program that ended with one, or
// above all of those.
func exitStatus(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit) && exit.Exited():
		return exit.ExitCode()
	}
	return 1 << 8
}

// copied are e2fsck's arguments for the superblock's first copy, at the start of
// ext4's second group of blocks; nil where there is none.
func (s superblock) copied() []string {
	first := 8 * s.block
	if s.block == 1024 {
		first++ // group 0 begins behind the boot block
	}
	if s.kind != "ext4" || s.size < (first+1)*s.block {
		return nil
	}
	return []string{"-f", "-b", strconv.FormatInt(first, 10), "-B", strconv.FormatInt(s.block, 10)}
}

// createMetadata makes partition 1 of HPCR's layout: an empty ext4 that
// nothing here ever mounts or reads. The partition is addressed by its
// offset, without the kernel's partition nodes.
func createMetadata(ctx context.Context, node string) error {
	command := append([]string{}, filesystems["ext4"].make...)
	command[len(command)-1] += ",offset=" + strconv.Itoa(metadataStart)
	return runTool(ctx, filesystems["ext4"].makeLimit, append(command, "-L", "metadata", node, strconv.Itoa(metadataSize/4096))...)
}

// superblock is what a file system says of itself.
type superblock struct {
	kind  string
	size  int64 // bytes
	block int64 // bytes
}

// readSuperblock says which of the table's file systems r holds.
func readSuperblock(r io.ReaderAt) (superblock, error) {
	head := make([]byte, 68<<10)
	if _, err := r.ReadAt(head, 0); err != nil {
		return superblock{}, fmt.Errorf("read file system: %w", err)
	}
	var s superblock
	var blocks uint64
	le := binary.LittleEndian
	switch {
	case bytes.HasPrefix(head[0x10040:], []byte("_BHRfS_M")): // btrfs_super_block
		s.kind, s.block, blocks = "btrfs", int64(le.Uint32(head[0x10090:])), le.Uint64(head[0x10070:])/uint64(max(1, le.Uint32(head[0x10090:])))
	case bytes.HasPrefix(head, []byte("XFSB")): // xfs_dsb
		s.kind, s.block, blocks = "xfs", int64(binary.BigEndian.Uint32(head[4:])), binary.BigEndian.Uint64(head[8:])
	case le.Uint16(head[1024+0x38:]) == 0xEF53: // ext4_super_block
		s.kind, s.block, blocks = "ext4", 1024<<min(le.Uint32(head[1024+0x18:]), 10), uint64(le.Uint32(head[1024+4:]))
		if le.Uint32(head[1024+0x60:])&0x80 != 0 { // 64bit
			blocks |= uint64(le.Uint32(head[1024+0x150:])) << 32
		}
	default:
		return s, errors.New("no known file system in the volume")
	}
	if s.block < 512 || s.block > 64<<10 || s.block&(s.block-1) != 0 || blocks == 0 || blocks > 1<<46 {
		return s, errors.New("the file system's superblock is damaged")
	}
	s.size = int64(blocks) * s.block
	return s, nil
}
