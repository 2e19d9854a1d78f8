package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// nobody owns the children; it owns no file and no other process.
const nobody = 65534

// Child describes one run of an applet.
type Child struct {
	Path   string // the applet's hard link
	Name   string // of its cgroup
	Stdin  []byte
	Files  []*os.File // its descriptors from 3 on
	Memory int64      // bytes, by cgroup; the child's GOMEMLIMIT is 7/8 of it
	Output int64      // bytes of stdout at most
	Limit  time.Duration
}

// ErrOutput is a child that writes more than its limit.
var ErrOutput = errors.New("the child's output is too large")

// Spawn runs the child to its end and returns what it wrote to stdout. A child
// that ends with another status than 0 is an error with its stdout kept: the
// applets put their typed refusal there.
func Spawn(ctx context.Context, c Child) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, c.Limit)
	defer cancel()
	group, err := makeGroup(c.Name, c.Memory)
	if err != nil {
		return nil, err
	}
	defer group.close()
	cmd := exec.CommandContext(ctx, c.Path)
	cmd.Args = []string{c.Path}
	cmd.Dir = "/"
	// A child lives for a moment: it collects garbage only near its limit.
	cmd.Env = []string{"GOGC=off", "GOMEMLIMIT=" + strconv.FormatInt(c.Memory/8*7, 10), "GOTRACEBACK=none", "GOMAXPROCS=1"}
	cmd.Stdin = bytes.NewReader(c.Stdin)
	cmd.ExtraFiles = c.Files
	// No Pdeathsig: it fires when the forking thread ends, not the process,
	// and threads that a network namespace was bound to do end.
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP,
		Credential:  &syscall.Credential{Uid: nobody, Gid: nobody},
		UseCgroupFD: true,
		CgroupFD:    int(group.dir.Fd()),
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Name, err)
	}
	got, readErr := io.ReadAll(io.LimitReader(out, c.Output+1))
	if int64(len(got)) > c.Output {
		cancel()
		readErr = ErrOutput
	}
	waitErr := cmd.Wait()
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		waitErr = fmt.Errorf("%s: %w", c.Name, context.DeadlineExceeded)
	}
	if readErr != nil {
		return nil, readErr
	}
	return got, waitErr
}

// cgroup is a child's own control group.
type cgroup struct {
	path string
	dir  *os.File
}

// Root is where the cgroup2 hierarchy is mounted.
const Root = "/sys/fs/cgroup"

// EnableControllers lets the groups below the root have limits.
func EnableControllers() error {
	return os.WriteFile(filepath.Join(Root, "cgroup.subtree_control"), []byte("+memory +pids +cpu"), 0)
}

func makeGroup(name string, memory int64) (*cgroup, error) {
	path := filepath.Join(Root, name)
	if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("cgroup: %w", err)
	}
	for file, value := range map[string]int64{"memory.max": memory, "memory.swap.max": 0, "pids.max": 64} {
		err := os.WriteFile(filepath.Join(path, file), []byte(strconv.FormatInt(value, 10)), 0)
		if err != nil && !(file == "memory.swap.max" && errors.Is(err, os.ErrNotExist)) { // a kernel without swap
			return nil, fmt.Errorf("cgroup: %w", err)
		}
	}
	dir, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cgroup: %w", err)
	}
	return &cgroup{path, dir}, nil
}

func (g *cgroup) close() {
	// What the child left behind goes with it; the group may linger until the
	// kernel has reaped the last of it, which harms nobody.
	for range 20 {
		if unix.Rmdir(g.path) == nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	g.dir.Close()
}

// SealedFile puts b into a memory file that nobody can change any more.
func SealedFile(name string, b []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.Write(b); err != nil {
		f.Close()
		return nil, fmt.Errorf("memfd: %w", err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		f.Close()
		return nil, fmt.Errorf("memfd: %w", err)
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		f.Close()
		return nil, fmt.Errorf("memfd seal: %w", err)
	}
	return f, nil
}
