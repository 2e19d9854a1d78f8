package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// This file is the package's only way to the kernel's own interfaces.

const (
	dmControl  = "/dev/mapper/control"
	dmMisc     = 236 // minor of /dev/mapper/control when nothing else made the node
	dmStatus   = 4096
	nodeWait   = 5 * time.Second
	removeTry  = 10 * time.Millisecond
	mountFlags = unix.MS_NOSUID | unix.MS_NODEV
)

// mapping is one live device-mapper device.
type mapping struct {
	name string // in the device mapper: "hpcr-1"
	node string // "/dev/dm-0"

	major, minor uint32
}

// dmCall runs one ioctl of the device mapper. What follows the header, in
// both directions, is wiped by the kernel on its side (DM_SECURE_DATA) and by
// the caller on ours.
func dmCall(cmd uintptr, name string, flags uint32, payload []byte, room int) (unix.DmIoctl, []byte, error) {
	f, err := openControl()
	if err != nil {
		return unix.DmIoctl{}, nil, err
	}
	defer f.Close()
	size := unix.SizeofDmIoctl + max(len(payload), room)
	buf := make([]uint64, (size+7)/8) // for alignment
	raw := unsafe.Slice((*byte)(unsafe.Pointer(&buf[0])), len(buf)*8)
	h := (*unix.DmIoctl)(unsafe.Pointer(&buf[0]))
	h.Version = [3]uint32{4, 0, 0}
	h.Data_size = uint32(len(raw))
	h.Data_start = unix.SizeofDmIoctl
	h.Flags = flags | unix.DM_SECURE_DATA_FLAG
	if len(payload) > 0 {
		h.Target_count = 1
	}
	if len(name) >= len(h.Name) {
		return unix.DmIoctl{}, nil, errors.New("name too long")
	}
	copy(h.Name[:], name)
	copy(raw[unix.SizeofDmIoctl:], payload)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), cmd, uintptr(unsafe.Pointer(&buf[0]))); errno != 0 {
		clear(raw)
		return unix.DmIoctl{}, nil, errno
	}
	return *h, raw[unix.SizeofDmIoctl:], nil
}

// openControl makes the node if devtmpfs has not: loading dm_mod alone does
// not on every kernel.
func openControl() (*os.File, error) {
	f, err := os.OpenFile(dmControl, os.O_RDWR, 0)
	if !errors.Is(err, os.ErrNotExist) {
		return f, err
	}
	if err := os.MkdirAll(filepath.Dir(dmControl), 0o700); err != nil {
		return nil, err
	}
	if err := unix.Mknod(dmControl, unix.S_IFCHR|0o600, int(unix.Mkdev(10, dmMisc))); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("device mapper node: %w", err)
	}
	return os.OpenFile(dmControl, os.O_RDWR, 0)
}

// createMapping makes a device with one target, live from here on.
func createMapping(name, target string, sectors uint64, params string) (*mapping, error) {
	if _, _, err := dmCall(unix.DM_DEV_CREATE, name, 0, nil, 0); err != nil {
		return nil, fmt.Errorf("create mapping: %w", err)
	}
	m, err := loadMapping(name, target, sectors, params)
	if err != nil {
		return nil, errors.Join(err, removeMapping(name))
	}
	return m, nil
}

func loadMapping(name, target string, sectors uint64, params string) (*mapping, error) {
	spec := unix.DmTargetSpec{Length: sectors}
	copy(spec.Target_type[:], target)
	payload := make([]byte, unix.SizeofDmTargetSpec+(len(params)+8)&^7)
	copy(payload, unsafe.Slice((*byte)(unsafe.Pointer(&spec)), unix.SizeofDmTargetSpec))
	copy(payload[unix.SizeofDmTargetSpec:], params)
	if _, _, err := dmCall(unix.DM_TABLE_LOAD, name, 0, payload, 0); err != nil {
		return nil, fmt.Errorf("load table: %w", err)
	}
	h, _, err := dmCall(unix.DM_DEV_SUSPEND, name, 0, nil, 0) // without the suspend flag: resume
	if err != nil {
		return nil, fmt.Errorf("resume mapping: %w", err)
	}
	node := fmt.Sprintf("/dev/dm-%d", unix.Minor(h.Dev))
	for end := time.Now().Add(nodeWait); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(node); err == nil {
			return &mapping{name, node, unix.Major(h.Dev), unix.Minor(h.Dev)}, nil
		} else if time.Now().After(end) {
			return nil, fmt.Errorf("mapping has no node: %w", err)
		}
	}
}

// liveTable is what the kernel says a mapping consists of. The caller clears
// params if it may hold a key.
func liveTable(name string) (sectors uint64, target string, params []byte, err error) {
	h, out, err := dmCall(unix.DM_TABLE_STATUS, name, unix.DM_STATUS_TABLE_FLAG, nil, dmStatus)
	if err != nil {
		return 0, "", nil, fmt.Errorf("read table: %w", err)
	}
	if h.Target_count != 1 || h.Flags&unix.DM_BUFFER_FULL_FLAG != 0 {
		clear(out)
		return 0, "", nil, errors.New("the live table does not have one target")
	}
	spec := *(*unix.DmTargetSpec)(unsafe.Pointer(&out[0]))
	params = out[unix.SizeofDmTargetSpec:]
	for i, b := range params {
		if b == 0 {
			params = params[:i]
			break
		}
	}
	if spec.Sector_start != 0 {
		clear(out)
		return 0, "", nil, errors.New("the live table does not start at 0")
	}
	return spec.Length, unix.ByteSliceToString(spec.Target_type[:]), params, nil
}

func removeMapping(name string) error {
	_, _, err := dmCall(unix.DM_DEV_REMOVE, name, 0, nil, 0)
	if errors.Is(err, unix.ENXIO) {
		return nil
	}
	return err
}

// removeMappingLater lets the kernel remove it once its last user is gone.
func removeMappingLater(name string) error {
	_, _, err := dmCall(unix.DM_DEV_REMOVE, name, unix.DM_DEFERRED_REMOVE, nil, 0)
	return err
}

// withKernelKey puts a key into the calling thread's keyring for as long as
// do runs: dm-crypt takes its own copy when the table is loaded, and no other
// process or thread can find the key meanwhile.
func withKernelKey(description string, key []byte, do func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	id, err := unix.AddKey("logon", description, key, unix.KEY_SPEC_THREAD_KEYRING)
	if err != nil {
		return fmt.Errorf("add key: %w", err)
	}
	err = do()
	if _, unlink := unix.KeyctlInt(unix.KEYCTL_UNLINK, id, unix.KEY_SPEC_THREAD_KEYRING, 0, 0); unlink != nil {
		return errors.Join(err, fmt.Errorf("unlink key: %w", unlink))
	}
	return err
}

func deviceNumber(f *os.File) (major, minor uint32, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, 0, fmt.Errorf("stat disk: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0, 0, errors.New("not a block device")
	}
	return unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev)), nil
}

// memoryFile is a file in RAM, closed to other processes.
func memoryFile(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memory file: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// makeFolder opens the folder at an absolute path without "..", and makes what
// is missing of it. It goes step by step and through no link: a part of the path
// may lie in a volume, where a container of an earlier boot could plant one.
func makeFolder(path string) (*os.File, error) {
	const how = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	at, err := unix.Open("/", how, 0)
	if err != nil {
		return nil, fmt.Errorf("open /: %w", err)
	}
	for name := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		next, err := unix.Openat(at, name, how, 0)
		if errors.Is(err, unix.ENOENT) {
			if err = unix.Mkdirat(at, name, 0o755); err == nil {
				next, err = unix.Openat(at, name, how, 0)
			}
		}
		unix.Close(at)
		if err != nil {
			return nil, fmt.Errorf("folder for a mount: %w", err)
		}
		at = next
	}
	return os.NewFile(uintptr(at), "folder"), nil
}

// mountOn mounts over the folder that at is open on, whatever its name leads to.
func mountOn(node string, at *os.File, fsType, options string) error {
	return unix.Mount(node, fmt.Sprintf("/proc/self/fd/%d", at.Fd()), fsType, mountFlags, options)
}

// noFilesystem: the kernel does not know this kind.
func noFilesystem(err error) bool { return errors.Is(err, unix.ENODEV) }

// ioctl requests, the same on both architectures.
const (
	ext4Resize  = 0x40086610 // EXT4_IOC_RESIZE_FS, fs/ext4: _IOW('f', 16, __u64), blocks
	xfsGrowData = 0x4010586E // XFS_IOC_FSGROWFSDATA, xfs_fs.h: _IOW('X', 110, struct xfs_growfs_data)
	xfsGeometry = 0x8070587C // XFS_IOC_FSGEOMETRY_V4, xfs_fs.h: _IOR('X', 124, 112 bytes)
	btrfsResize = 0x50009403 // BTRFS_IOC_RESIZE, btrfs.h: _IOW(0x94, 3, struct btrfs_ioctl_vol_args)
)

func ioctl(f *os.File, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

func growExt4(mount *os.File, bytes, block int64) error {
	blocks := uint64(bytes / block)
	return ioctl(mount, ext4Resize, unsafe.Pointer(&blocks))
}

func growXFS(mount *os.File, bytes, block int64) error {
	var geometry struct {
		blocksize, rtextsize, agblocks, agcount, logblocks, sectsize, inodesize, imaxpct uint32
		_                                                                                [80]byte
	}
	if err := ioctl(mount, xfsGeometry, unsafe.Pointer(&geometry)); err != nil {
		return err
	}
	grow := struct {
		blocks  uint64
		imaxpct uint32
		_       uint32
	}{blocks: uint64(bytes / block), imaxpct: geometry.imaxpct}
	return ioctl(mount, xfsGrowData, unsafe.Pointer(&grow))
}

func growBtrfs(mount *os.File, _, _ int64) error {
	args := struct {
		fd   int64
		name [4088]byte
	}{}
	copy(args.name[:], "max")
	return ioctl(mount, btrfsResize, unsafe.Pointer(&args))
}

// forget drops what the kernel remembers of a part of the disk: the next read
// asks the disk.
func forget(f *os.File, at, n int64) error {
	if err := unix.Fadvise(int(f.Fd()), at, n, unix.FADV_DONTNEED); err != nil {
		return fmt.Errorf("fadvise: %w", err)
	}
	return nil
}

// uevents is a socket on which the kernel tells of new devices.
type uevents struct{ f *os.File }

// newUevents listens before the caller looks for disks: what appears
// afterwards is told of.
func newUevents() (*uevents, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("uevents: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("uevents: %w", err)
	}
	return &uevents{os.NewFile(uintptr(fd), "uevents")}, nil
}

// wait returns true once the kernel has spoken, false at the deadline. What it
// said does not matter, nor what was lost: the caller looks for itself. Only
// the kernel is heard (sender 0): any process may write to such a socket.
func (u *uevents) wait(deadline time.Time) (bool, error) {
	if err := u.f.SetReadDeadline(deadline); err != nil {
		return false, err
	}
	conn, err := u.f.SyscallConn()
	if err != nil {
		return false, err
	}
	var heard bool
	var failed error
	buf := make([]byte, 8<<10)
	err = conn.Read(func(fd uintptr) bool {
		for {
			_, from, err := unix.Recvfrom(int(fd), buf, 0)
			switch {
			case errors.Is(err, unix.EAGAIN):
				return heard // false: wait for more
			case errors.Is(err, unix.ENOBUFS): // too many to keep
				heard = true
			case errors.Is(err, unix.EINTR):
			case err != nil:
				failed = err
				return true
			default:
				if a, ok := from.(*unix.SockaddrNetlink); ok && a.Pid == 0 {
					heard = true
				}
			}
		}
	})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return false, nil
	}
	return heard, errors.Join(err, failed)
}

func (u *uevents) close() { u.f.Close() }

// flush writes what the file system at target has not written yet.
func flush(target string) error {
	f, err := os.Open(target)
	if err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	return nil
}

func unmount(target string) error { return ignoreUnmounted(unix.Unmount(target, unix.UMOUNT_NOFOLLOW)) }

// detach takes a mount out of the tree although something still uses it.
func detach(target string) error {
	return ignoreUnmounted(unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW))
}

func ignoreUnmounted(err error) error {
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// gone is what the file of a mapping says of one that is being removed
// (drivers/md/dm-sysfs.c).
func gone(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL)
}

func busy(err error) bool { return errors.Is(err, unix.EBUSY) }

// limitChild bounds a child of ours that works on a disk's content.
func limitChild(pid int, memory uint64) error {
	for what, limit := range map[int]uint64{unix.RLIMIT_CORE: 0, unix.RLIMIT_AS: memory} {
		if err := unix.Prlimit(pid, what, &unix.Rlimit{Cur: limit, Max: limit}, nil); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("limit child: %w", err)
		}
	}
	return nil
}

// availableKiB is what the kernel thinks it can hand out.
func availableKiB() (uint64, error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		var n uint64
		if _, err := fmt.Sscanf(line, "MemAvailable: %d kB", &n); err == nil {
			return n, nil
		}
	}
	return 0, errors.New("no MemAvailable in meminfo")
}
