package workload

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Kinds of namespaces that containers are given by path.
const (
	netNamespace = unix.CLONE_NEWNET
	ipcNamespace = unix.CLONE_NEWIPC
)

// newNamespace makes a namespace that outlives its thread by a bind mount at
// path.
func newNamespace(path string, kind int) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	made := make(chan error, 1)
	go func() {
		// The thread has left the guest's namespace: it is not unlocked, so
		// that it ends with this goroutine.
		runtime.LockOSThread()
		if err := unix.Unshare(kind); err != nil {
			made <- fmt.Errorf("unshare: %w", err)
			return
		}
		src := fmt.Sprintf("/proc/self/task/%d/ns/%s", unix.Gettid(), map[int]string{netNamespace: "net", ipcNamespace: "ipc"}[kind])
		made <- unix.Mount(src, path, "", unix.MS_BIND, "")
	}()
	if err := <-made; err != nil {
		return errors.Join(fmt.Errorf("namespace: %w", err), os.Remove(path))
	}
	return nil
}

// dialIn connects from within a network namespace, so that neither the guest's
// firewall nor its routes have a part in it.
func dialIn(ctx context.Context, netns, addr string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		// As in newNamespace, the thread ends with the goroutine. With an address
		// in place of a name, the dialer makes its socket on this thread.
		runtime.LockOSThread()
		f, err := os.Open(netns)
		if err != nil {
			done <- result{nil, err}
			return
		}
		defer f.Close()
		if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- result{nil, fmt.Errorf("enter the namespace: %w", err)}
			return
		}
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		done <- result{conn, err}
	}()
	r := <-done // the dialer ends with ctx
	return r.conn, r.err
}

// mountMemory mounts a tmpfs; size 0 is the kernel's default.
func mountMemory(dir string, size int64) error {
	options := "mode=0755"
	if size > 0 {
		options += fmt.Sprintf(",size=%d", size)
	}
	return unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options)
}

// deleteNamespace removes what newNamespace made; a missing path is fine.
func deleteNamespace(path string) error {
	if err := unmount(path); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// unmount takes off the top mount at path; nothing there is fine.
func unmount(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount: %w", err)
	}
	return nil
}

// openBeneath opens name below root without ever leaving root: links are
// followed as if root were "/", kernel links not at all. With root "/", and on
// the way to any other root (which may lie in another volume), no link is
// followed, so that what was checked as text is what is opened. Missing
// folders are made with mode 0755 when create is set. The result is an O_PATH
// descriptor.
func openBeneath(root, name string, create bool) (*os.File, error) {
	base, err := openat2(unix.AT_FDCWD, root, unix.O_DIRECTORY, unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return nil, fmt.Errorf("open the base of a bind mount: %w", err)
	}
	defer unix.Close(base)
	resolve := uint64(unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS)
	if root == "/" {
		resolve |= unix.RESOLVE_NO_SYMLINKS
	}
	name = strings.Trim(filepath.Clean("/"+name), "/")
	open := func(name string) (int, error) {
		if name == "" {
			name = "."
		}
		return openat2(base, name, 0, resolve)
	}
	fd, err := open(name)
	if errors.Is(err, unix.ENOENT) && create {
		if err := makeFolders(open, name); err != nil {
			return nil, err
		}
		fd, err = open(name)
	}
	if err != nil {
		return nil, fmt.Errorf("open the source of a bind mount: %w", err)
	}
	return os.NewFile(uintptr(fd), "source"), nil
}

// openat2 makes an O_PATH descriptor.
func openat2(dir int, name string, flags, resolve uint64) (int, error) {
	for {
		fd, err := unix.Openat2(dir, name, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC | flags, Resolve: resolve})
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

func makeFolders(open func(string) (int, error), name string) error {
	parts := strings.Split(name, "/")
	for i := range parts {
		fd, err := open(strings.Join(parts[:i+1], "/"))
		if err == nil {
			unix.Close(fd)
			continue
		}
		if !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("make the source of a bind mount: %w", err)
		}
		parent, err := open(strings.Join(parts[:i], "/"))
		if err != nil {
			return fmt.Errorf("make the source of a bind mount: %w", err)
		}
		err = unix.Mkdirat(parent, parts[i], 0o755)
		unix.Close(parent)
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("make the source of a bind mount: %w", err)
		}
	}
	return nil
}

// bindFile mounts exactly the file or folder behind f at target, which it
// makes. No name is looked up again, so nobody can swap what was checked.
func bindFile(f *os.File, target string, slave bool) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if fi.IsDir() {
		err = os.Mkdir(target, 0o700)
	} else {
		err = os.WriteFile(target, nil, 0o600)
	}
	if err != nil {
		return err
	}
	tree, err := unix.OpenTree(int(f.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)
	if err != nil {
		return fmt.Errorf("clone a mount: %w", err)
	}
	defer unix.Close(tree)
	attr := unix.MountAttr{Propagation: unix.MS_PRIVATE}
	if slave {
		attr.Propagation = unix.MS_SLAVE
	}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		return fmt.Errorf("mount propagation: %w", err)
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move a mount: %w", err)
	}
	return nil
}

// openFiles is the highest number of open files that may be given to a
// container: this process's own hard limit, at most what Docker gives.
func openFiles() uint64 {
	const docker = 1 << 20
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return 1024
	}
	return min(r.Max, docker)
}

// killCgroup ends every process of a container without its runtime's help.
func killCgroup(path string) error {
	return os.WriteFile(filepath.Join("/sys/fs/cgroup", path, "cgroup.kill"), []byte("1"), 0o200)
}

// afVsock is AF_VSOCK, the way to the host.
const afVsock = unix.AF_VSOCK

// outOfSpace says whether a local write failed for want of room.
func outOfSpace(err error) bool { return errors.Is(err, unix.ENOSPC) }

// freeBytes is what a file system has left.
func freeBytes(path string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, fmt.Errorf("free room of the image store: %w", err)
	}
	return int64(st.Bavail) * int64(st.Bsize), nil
}
