package sandbox

import (
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
	Files  []*os.File // the child takes them with File
	Memory int64      // bytes, by cgroup, its answer included; the child's GOMEMLIMIT is 7/8 of it
	Output int        // bytes of stdout at most
	Limit  time.Duration

	// Root keeps the child root, in the agent's mount namespace: it works on
	// devices and mounts. What it may do less of, it gives up itself (ConfineRoot).
	Root bool
}

// Errors of Spawn.
var (
	// ErrOutput is a child that writes more than its limit.
	ErrOutput = errors.New("the child's output is too large")
	// ErrRefused is for takers to whom a refusal is no more than an error.
	ErrRefused = errors.New("the child refused")
)

// Descriptors of a child. Its stdout is a file in memory: unlike a pipe's, its
// pages can be wiped.
const (
	statusFile = 3
	firstFile  = 4
)

// Spawn runs the child until it calls Finish and hands its stdout to take,
// which must not keep it: it is wiped, and so is all of the child's memory
// before the kernel gets that back. The error is take's own, or says why there
// is no answer.
func Spawn(ctx context.Context, c Child, take func(answer []byte, refused bool) error) error {
	ctx, cancel := context.WithTimeout(ctx, c.Limit)
	defer cancel()
	group, err := makeGroup(c.Name, c.Memory)
	if err != nil {
		return err
	}
	defer group.close()
	answer, err := memoryFile("answer")
	if err != nil {
		return err
	}
	defer answer.Close()
	status, err := run(ctx, c, group, answer)
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		// With what came of it: a child that hangs in the kernel cannot be reaped.
		err = errors.Join(fmt.Errorf("%s: %w", c.Name, context.DeadlineExceeded), err)
	}
	wipe, b, mapErr := mapAnswer(answer, c.Output)
	defer wipe()
	if err := errors.Join(err, mapErr); err != nil {
		return err
	}
	return take(b, status == refused)
}

// refused is the status of a child whose answer is a refusal; 0 is any other
// answer, more is none.
const refused = 1

// run starts the child and ends it once it has given its status.
func run(ctx context.Context, c Child, group *cgroup, answer *os.File) (status byte, err error) {
	said, says, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer said.Close()
	defer says.Close()
	cmd := exec.CommandContext(ctx, c.Path)
	cmd.Args = []string{c.Path}
	cmd.Dir = "/"
	// A child lives for a moment: it collects garbage only near its limit.
	cmd.Env = []string{"GOGC=off", "GOMEMLIMIT=" + strconv.FormatInt(c.Memory/8*7, 10), "GOTRACEBACK=none", "GODEBUG=clobberfree=1"}
	cmd.Stdout = answer
	cmd.ExtraFiles = append([]*os.File{says}, c.Files...)
	// No Pdeathsig: it fires when the forking thread ends, not the process,
	// and threads that a network namespace was bound to do end.
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP,
		UseCgroupFD: true,
		CgroupFD:    int(group.dir.Fd()),
	}
	if !c.Root {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWNS
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
		cmd.Env = append(cmd.Env, "GOMAXPROCS=1")
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start %s: %w", c.Name, err)
	}
	says.Close()
	stop := context.AfterFunc(ctx, func() { _ = said.SetReadDeadline(time.Now()) }) // a pipe takes deadlines
	defer stop()
	status, err = talk(cmd.Process.Pid, c, in, said)
	if err == nil {
		err = group.wipe(ctx, cmd.Process.Pid)
	}
	// Whatever is left of it ends here: its status has been given.
	kill := cmd.Process.Kill()
	if errors.Is(kill, os.ErrProcessDone) {
		kill = nil
	}
	if wait := reap(cmd); err != nil || errors.Is(wait, errUnkillable) {
		err = errors.Join(err, wait)
	}
	return status, errors.Join(err, kill)
}

// errUnkillable is a child stuck in the kernel, as over a disk that does not
// answer. It is left behind; the guest is about to power off.
var errUnkillable = errors.New("the child hangs in the kernel")

const reapLimit = 2 * time.Second

func reap(cmd *exec.Cmd) error {
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		return err
	case <-time.After(reapLimit):
		return errUnkillable
	}
}

// talk gives the child its input and waits for its status.
func talk(pid int, c Child, in io.WriteCloser, said io.Reader) (byte, error) {
	// Before the child reads its first byte: its secrets are locked into memory,
	// within its memory limit.
	limits := map[int]uint64{unix.RLIMIT_MEMLOCK: unix.RLIM_INFINITY, unix.RLIMIT_FSIZE: uint64(c.Output) + 1}
	if c.Root {
		delete(limits, unix.RLIMIT_FSIZE) // it writes to disks
	}
	for what, limit := range limits {
		if err := unix.Prlimit(pid, what, &unix.Rlimit{Cur: limit, Max: limit}, nil); err != nil {
			return 0, fmt.Errorf("limit %s: %w", c.Name, err)
		}
	}
	// Its own limit must end the child, not leave its group without a victim.
	if err := setVictim(pid, 0); err != nil {
		return 0, fmt.Errorf("limit %s: %w", c.Name, err)
	}
	go func() {
		// A child that ends early gives no status.
		_, _ = in.Write(c.Stdin)
		_ = in.Close()
	}()
	var status [1]byte
	if _, err := io.ReadFull(said, status[:]); err != nil {
		return 0, fmt.Errorf("%s ended without an answer: %w", c.Name, err)
	}
	if status[0] > refused {
		return 0, fmt.Errorf("%s failed with status %d", c.Name, status[0])
	}
	return status[0], nil
}

// mapAnswer maps the file, so that the answer is never copied.
func mapAnswer(f *os.File, limit int) (wipe func(), b []byte, err error) {
	none := func() {}
	fi, err := f.Stat()
	if err != nil || fi.Size() == 0 {
		return none, nil, err
	}
	if fi.Size() > int64(limit) {
		err = ErrOutput
	}
	b, mapErr := unix.Mmap(int(f.Fd()), 0, int(fi.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if mapErr != nil {
		return none, nil, errors.Join(err, fmt.Errorf("map the answer: %w", mapErr))
	}
	return func() {
		clear(b)
		_ = unix.Munmap(b) // fails only for what is not mapped
	}, b, err
}

// File is one of Child.Files, on the child's side.
func File(i int, name string) *os.File { return os.NewFile(uintptr(firstFile+i), name) }

// Mapped is one of Child.Files as read-only memory: the file's own pages, which
// are there already. The file must be sealed, or nobody's to cut off.
func Mapped(i int, name string) ([]byte, error) {
	f := File(i, name)
	defer f.Close()
	fi, err := f.Stat()
	if err != nil || fi.Size() == 0 {
		return nil, err
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(fi.Size()), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("map: %w", err)
	}
	return b, nil
}

// Finish is how a child ends: it gives its status (0 with an answer on stdout,
// 1 with a refusal, 2 for neither) and waits for its memory to be wiped. It does
// not return.
func Finish(status int) {
	f := os.NewFile(statusFile, "status")
	if _, err := f.Write([]byte{byte(status)}); err != nil {
		os.Exit(2)
	}
	for {
		time.Sleep(time.Hour)
	}
}

// cgroup is a child's own control group.
type cgroup struct {
	path string
	dir  *os.File
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

func memoryFile(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memfd: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// SealedFile puts b into a memory file that nobody can change any more.
func SealedFile(name string, b []byte) (*os.File, error) {
	f, err := memoryFile(name)
	if err != nil {
		return nil, err
	}
	if _, err := f.Write(b); err != nil {
		f.Close()
		return nil, fmt.Errorf("memfd: %w", err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		f.Close()
		return nil, fmt.Errorf("memfd: %w", err)
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		f.Close()
		return nil, fmt.Errorf("memfd seal: %w", err)
	}
	return f, nil
}
