package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

func socket(domain, kind int) func() error {
	return func() error {
		// Not package unix's, which on s390x is made of socketcall.
		return call(unix.SYS_SOCKET, uintptr(domain), uintptr(kind))()
	}
}

func init() {
	helpers["eat"], helpers["fork"] = eat, forkAll
	add(map[string]func() error{
		"vsock":                  socket(unix.AF_VSOCK, unix.SOCK_STREAM),
		"vsock datagrams":        socket(unix.AF_VSOCK, unix.SOCK_DGRAM),
		"vsock by socketcall":    func() error { return socketcall(unix.AF_VSOCK, unix.SOCK_STREAM) },
		"containerd's socket":    func() error { return dial("unix", "/run/containerd/containerd.sock") },
		"sockets without a path": abstract,
		"the guest's health port": func() error {
			gateway, err := gateway()
			if err != nil {
				return err
			}
			return dial("tcp", net.JoinHostPort(gateway, "9080"))
		},

		"raise its memory":        func() error { return write("/sys/fs/cgroup/memory.max", "max") },
		"raise its processes":     func() error { return write("/sys/fs/cgroup/pids.max", "max") },
		"leave its control group": func() error { return write("/sys/fs/cgroup/../cgroup.procs", "0") },
		"fork for ever":           fork,
		"eat all memory":          eatAll,

		"signal init":      func() error { return unix.Kill(1, unix.SIGTERM) },
		"signal the agent": func() error { return eachGuest(func(pid int) error { return unix.Kill(pid, unix.SIGKILL) }) },
		"files of the agent": func() error {
			return eachGuest(func(pid int) error { return missing(fmt.Sprintf("/proc/%d/root/run/containerd", pid)) })
		},
		"descriptors of the agent": func() error {
			return eachGuest(func(pid int) error { _, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/1", pid)); return err })
		},
		"memory of the agent": func() error {
			return eachGuest(func(pid int) error { return read(fmt.Sprintf("/proc/%d/mem", pid)) })
		},
		"trace the agent": func() error { return eachGuest(unix.PtraceAttach) },

		"may open a raw socket":        call(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP),
		"may set its own network":      func() error { return write("/proc/sys/net/ipv4/ip_forward", "1") },
		"may filter its own packets":   filter,
		"may open a tunnel":            tunnel,
		"may set its own messages":     setting("kernel/msgmax", "16384"),
		"may set its own host name":    func() error { return unix.Sethostname([]byte("mine")) },
		"may divide its control group": func() error { return os.Mkdir("/sys/fs/cgroup/part", 0o755) },
		"may make namespaces": func() error {
			cmd := exec.Command("/proc/self/exe", "nothing")
			cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC}
			return cmd.Run()
		},
	})
	helpers["nothing"] = func() {}
}

// filter adds a rule with a match of iptables, as iptables-nft does.
func filter() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "walls"})
	chain := c.AddChain(&nftables.Chain{Table: table, Name: "walls"})
	info := make(xt.Unknown, 256)
	copy(info, "hello")
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Match{Name: "comment", Info: &info}, &expr.Verdict{Kind: expr.VerdictAccept}}})
	return c.Flush()
}

// tunnel makes a network device of its own.
func tunnel() error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	name, err := unix.NewIfreq("walls0")
	if err != nil {
		return err
	}
	name.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	return unix.IoctlIfreq(fd, unix.TUNSETIFF, name)
}

func dial(network, address string) error {
	conn, err := net.DialTimeout(network, address, 2*time.Second)
	if err == nil {
		return conn.Close()
	}
	if e, ok := err.(net.Error); ok && e.Timeout() {
		return unix.ETIMEDOUT
	}
	return err
}

// abstract connects to every abstract UNIX socket of its network.
func abstract() error {
	table, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(table)) {
		f := strings.Fields(line)
		if len(f) == 8 && strings.HasPrefix(f[7], "@") {
			return dial("unix", f[7])
		}
	}
	return unix.ENOENT
}

// gateway is the first router of the container.
func gateway() (string, error) {
	routes, err := os.ReadFile("/proc/net/route")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(routes)) {
		f := strings.Fields(line)
		if len(f) < 3 || f[1] != "00000000" {
			continue
		}
		n, err := strconv.ParseUint(f[2], 16, 32)
		if err != nil {
			return "", err
		}
		var b [4]byte // as the kernel prints it: the bytes read as a number of the machine
		binary.NativeEndian.PutUint32(b[:], uint32(n))
		return netip.AddrFrom4(b).String(), nil
	}
	return "", errors.New("no router")
}

// eachGuest does something to the processes of the guest that a container with
// the guest's process numbers sees; the first success counts.
func eachGuest(do func(pid int) error) error {
	last := errors.New("no process of the guest is seen")
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		line, err := os.ReadFile(dir + "/cmdline")
		name := filepath.Base(string(bytes.SplitN(line, []byte{0}, 2)[0]))
		if err != nil || name != "init" && name != "agent" && name != "containerd" {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			return err
		}
		if last = do(pid); last == nil {
			return fmt.Errorf("reached %s", name)
		}
	}
	return last
}

// forkTime is how long a bomb may take to reach the limit.
const forkTime = 15 * time.Second

// fork has a helper make children that stay, until the kernel refuses one or
// the time is over. All of them are the memory killer's first choice.
func fork() error {
	err := exec.Command("/proc/self/exe", "fork").Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return unix.ETIME
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		return syscall.Errno(exit.ExitCode())
	case exit != nil && exit.Sys().(syscall.WaitStatus).Signal() == unix.SIGKILL:
		return unix.ENOMEM
	}
	return err
}

func forkAll() {
	first()
	for end := time.Now().Add(forkTime); time.Now().Before(end); {
		pid, err := clone()
		var e syscall.Errno
		if errors.As(err, &e) {
			os.Exit(int(e))
		}
		if pid == 0 {
			for {
				unix.RawSyscall(unix.SYS_PAUSE, 0, 0, 0)
			}
		}
	}
}

// first makes the process the memory killer's first choice.
func first() {
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0); err != nil {
		fmt.Println(err)
	}
}

func rawClone(a, b uintptr) (uintptr, error) {
	pid, _, e := unix.RawSyscall6(unix.SYS_CLONE, a, b, 0, 0, 0, 0)
	if e != 0 {
		return 0, e
	}
	return pid, nil
}

// eatAll has a child take memory until somebody ends it.
func eatAll() error {
	err := exec.Command("/proc/self/exe", "eat").Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == unix.SIGKILL {
		return unix.ENOMEM
	}
	return err
}

func eat() {
	first()
	for {
		const chunk = 64 << 20
		b, err := unix.Mmap(-1, 0, chunk, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_POPULATE)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		_ = b
	}
}
