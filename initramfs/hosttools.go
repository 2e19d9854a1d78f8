package initramfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// ErrEnvironment marks what is wrong with the machine, not with the request:
// a missing tool, no source tree. hpcrctl ends with 2.
var ErrEnvironment = errors.New("environment")

// tool finds a program also in the sbin folders, which a user's PATH may lack.
func tool(name string) string {
	if p, err := exec.LookPath(name); err == nil {
		return p
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if p := filepath.Join(dir, name); exists(p) {
			return p
		}
	}
	return ""
}

// Have complains about the tools that are missing.
func Have(names ...string) error {
	var missing []string
	for _, n := range names {
		if tool(n) == "" {
			missing = append(missing, n)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("%w: missing %s (`make deps` installs what is needed)", ErrEnvironment, strings.Join(missing, ", "))
}

// hostTool is a program or file that proves a package is there, the package,
// and the architecture whose guests alone need it ("" = all).
type hostTool struct{ file, pkg, arch string }

var hostTools = []hostTool{
	{"gcc", "gcc", ""},
	{"/usr/include/stdio.h", "libc6-dev", ""},
	{"pkg-config", "pkg-config", ""},
	{"/usr/include/seccomp.h", "libseccomp-dev", ""}, // tests build a runc of the host's
	{"depmod", "kmod", ""},
	{"git", "git", ""},
	{"apparmor_parser", "apparmor", ""},
	{"qemu-system-x86_64", "qemu-system-x86", "amd64"},
	{"s390x-linux-gnu-gcc", "gcc-s390x-linux-gnu", "s390x"},
	{"/usr/s390x-linux-gnu/include/stdio.h", "libc6-dev-s390x-cross", "s390x"},
	// Peers of the tests and the demo.
	{"/etc/ssl/certs/ca-certificates.crt", "ca-certificates", ""},
	{"openssl", "openssl", ""},
	{"gpg", "gnupg", ""},
	{"skopeo", "skopeo", ""},
	{"rsyslogd", "rsyslog", ""},
	{"/usr/lib/x86_64-linux-gnu/rsyslog/lmnsd_gtls.so", "rsyslog-gnutls", ""},
	{"genisoimage", "genisoimage", ""},
	{"xorriso", "xorriso", ""},
	{"mkfs.vfat", "dosfstools", ""},
	{"mcopy", "mtools", ""},
	{"cryptsetup", "cryptsetup-bin", ""},
	{"mke2fs", "e2fsprogs", ""},
	{"qemu-nbd", "qemu-utils", ""},
	{"mkfs.xfs", "xfsprogs", ""},
	{"mkfs.btrfs", "btrfs-progs", ""},
	{"sgdisk", "gdisk", ""},
	{"sfdisk", "fdisk", ""},
	{"cpio", "cpio", ""},
	{"faketime", "faketime", ""}, // for the C tools of `make repro`
	{"busybox", "busybox-static", ""},
	{"ip", "iproute2", ""},
	{"nft", "nftables", ""},
	{"dnsmasq", "dnsmasq-base", ""},
	{"gnutls-cli", "gnutls-bin", ""},
	{"nmap", "nmap", ""},
	{"chronyd", "chrony", ""},
	{"curl", "curl", ""},
	{"socat", "socat", ""},
	{"virt-xml-validate", "libvirt-clients", ""},
	{"xmllint", "libxml2-utils", ""}, // which virt-xml-validate calls
}

func (t hostTool) there() bool {
	if strings.HasPrefix(t.file, "/") {
		return exists(t.file)
	}
	return tool(t.file) != ""
}

// EnsureHostTools installs what builds and tests of these architectures need
// from Debian's packages; it does nothing where all is there. Installing needs
// root.
func EnsureHostTools(ctx context.Context, archs []string, log io.Writer) error {
	if len(archs) == 0 {
		archs = []string{"amd64", "s390x"}
	}
	var missing []string
	for _, t := range hostTools {
		if (t.arch == "" || slices.Contains(archs, t.arch)) && !t.there() && !slices.Contains(missing, t.pkg) {
			missing = append(missing, t.pkg)
		}
	}
	if len(missing) > 0 {
		if tool("apt-get") == "" || os.Getuid() != 0 {
			return fmt.Errorf("%w: as root on Debian: apt-get install --no-install-recommends %s", ErrEnvironment, strings.Join(missing, " "))
		}
		cache, err := CacheDir()
		if err != nil {
			return err
		}
		if err := locked(cache, "install", func() error { return install(ctx, log, missing) }); err != nil {
			return err
		}
	}
	if slices.Contains(archs, "s390x") {
		_, err := QemuS390x(ctx, log)
		return err
	}
	return nil
}

// install runs apt-get for missing packages. Services (rsyslog) must not start
// on the machine for it: invoke-rc.d asks /usr/sbin/policy-rc.d, so one that
// forbids stands there meanwhile, unless the machine has its own.
func install(ctx context.Context, log io.Writer, pkgs []string) error {
	fmt.Fprintf(log, "installing %s\n", strings.Join(pkgs, " "))
	const policy = "/usr/sbin/policy-rc.d"
	if f, err := os.OpenFile(policy, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755); err == nil {
		_, werr := f.WriteString("#!/bin/sh\nexit 101\n")
		if err := errors.Join(werr, f.Close()); err != nil {
			return err
		}
		defer os.Remove(policy)
	}
	args := []string{"-qq", "-oDPkg::Lock::Timeout=120", "-oAcquire::Retries=3"}
	// A fresh machine has no lists, an old one has stale ones: always look again.
	if _, err := output(ctx, "", nil, "apt-get", append(args, "update")...); err != nil {
		fmt.Fprintf(log, "apt-get update: %v\n", err) // one broken source must not stop the others
	}
	_, err := output(ctx, "", nil, "apt-get", append(append(args, "install", "-y", "--no-install-recommends"), pkgs...)...)
	return err
}

// Qemu is an emulator and the options it needs to find its own files.
type Qemu struct {
	Path string
	Args []string // firmware folder
	Env  []string // library folder
}

// QemuS390x gives QEMU 10 for s390x. Debian 12's own 7.2 hangs in four of ten
// boots; the backport cannot be installed beside qemu-system-x86 7.2, so it is
// unpacked into the cache with the libraries that the machine lacks.
func QemuS390x(ctx context.Context, log io.Writer) (Qemu, error) {
	if q, ok := systemQemu(ctx, "qemu-system-s390x"); ok {
		return q, nil
	}
	d, err := NewDebian("amd64", log)
	if err != nil {
		return Qemu{}, err
	}
	dir := filepath.Join(d.dir, "qemu-s390x")
	q := Qemu{
		Path: filepath.Join(dir, "usr/bin/qemu-system-s390x"),
		Args: []string{"-L", filepath.Join(dir, "usr/share/qemu")},
		Env: []string{"LD_LIBRARY_PATH=" + filepath.Join(dir, "usr/lib/x86_64-linux-gnu") + ":" + filepath.Join(dir, "lib/x86_64-linux-gnu"),
			"QEMU_MODULE_DIR=" + filepath.Join(dir, "usr/lib/x86_64-linux-gnu/qemu")},
	}
	if q.works(ctx) {
		return q, nil
	}
	err = locked(d.dir, "qemu", func() error {
		if q.works(ctx) {
			return nil
		}
		wants, err := d.missingFor(ctx, "qemu-system-s390x/"+backports, "qemu-system-common/"+backports, "qemu-system-data/"+backports)
		if err != nil {
			return err
		}
		pkgs, err := d.Fetch(ctx, "qemu", wants)
		if err != nil {
			return err
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		return once(dir, func(tmp string) error {
			for _, p := range pkgs {
				if _, err := output(ctx, "", nil, "dpkg-deb", "-x", p.File, tmp); err != nil {
					return err
				}
			}
			return nil
		})
	})
	if err != nil {
		return Qemu{}, err
	}
	if !q.works(ctx) {
		return Qemu{}, fmt.Errorf("%w: the unpacked %s does not start on this machine", ErrEnvironment, q.Path)
	}
	return q, nil
}

// QemuX86 gives the machine's emulator for amd64.
func QemuX86(context.Context, io.Writer) (Qemu, error) {
	if err := Have("qemu-system-x86_64"); err != nil {
		return Qemu{}, err
	}
	return Qemu{Path: tool("qemu-system-x86_64")}, nil
}

func (q Qemu) works(ctx context.Context) bool {
	if !exists(q.Path) {
		return false
	}
	out, err := output(ctx, "", q.Env, q.Path, "--version")
	return err == nil && strings.HasPrefix(string(out), "QEMU emulator version ")
}

// systemQemu takes an installed emulator of version 10 or later.
func systemQemu(ctx context.Context, name string) (Qemu, bool) {
	q := Qemu{Path: tool(name)}
	if q.Path == "" {
		return q, false
	}
	out, err := output(ctx, "", nil, q.Path, "--version")
	var major int
	if err != nil {
		return q, false
	}
	if _, err := fmt.Sscanf(string(out), "QEMU emulator version %d.", &major); err != nil {
		return q, false
	}
	return q, major >= 10
}

// missingFor asks apt which packages an installation on this machine would
// add or replace. Nothing is installed.
func (d *Debian) missingFor(ctx context.Context, pkgs ...string) ([]Want, error) {
	var wants []Want
	err := locked(d.dir, "apt", func() error {
		if err := d.refresh(ctx); err != nil {
			return err
		}
		args := append(d.options("/var/lib/dpkg/status"), "-s", "--no-install-recommends", "install")
		// A backport's own parts must be named: apt takes the release's otherwise,
		// and gives up.
		out, err := output(ctx, "", nil, "apt-get", append(args, pkgs...)...)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(out)) {
			f := strings.Fields(line) // Inst NAME [OLD] (NEW Debian Backports:… [amd64])
			if len(f) < 3 || f[0] != "Inst" {
				continue
			}
			w := Want{Name: f[1]}
			if strings.Contains(line, "Backports") || strings.Contains(line, backports) || strings.HasPrefix(f[1], "qemu-") {
				w.Suite = backports
			}
			wants = append(wants, w)
		}
		return nil
	})
	return wants, err
}
