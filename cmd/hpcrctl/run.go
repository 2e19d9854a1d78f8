package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hpcr/initramfs"
	"hpcr/initramfs/qemu"
)

func init() { commands = append(commands, newRunCmd) }

// healthPort is where dev images answer on TCP.
const healthPort = 9080

// runOptions are the flags of hpcrctl run.
type runOptions struct {
	image, cidata        string
	files                cidataFiles
	disks, publish       []string
	memory               string
	cpus                 int
	rtc, console, until  string
	exec, state, accel   string
	keep, json           bool
	timeout              time.Duration
	qemuArgs, faultKills []string
}

func newRunCmd() *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run --image DIR (--user-data F | --cidata ISO)",
		Short: "Boot an image with a contract in a virtual machine",
		Long: `Boot an image under QEMU and tell what became of it.

The guest reaches this machine's loopback as 10.0.2.2. --publish opens a port
of this machine that leads to one of the guest; a dev image's health port is
forwarded by itself. --disk SERIAL=FILE attaches a raw file, whose serial says
which volume of the contract it is meant for; with :SIZE it is made if missing.

  --until ready   stop the guest in order once there is a verdict: 0 ready, 1 not
  --until exit    wait for the guest's end: 0 powered off in order without an error
  --exec CMD      run CMD once ready (HPCR_CONSOLE, HPCR_HEALTH, HPCR_PORT_<port>
                  in its environment), stop the guest, end with CMD's status
  --keep          leave the guest running; 'hpcrctl stop --state DIR' ends it

Ctrl-C asks the guest to stop in order. Exit status 124: the time limit.`,
		Example: `  hpcrctl run --image image --user-data user-data --disk data=data.img:2G --publish 8080:80 --until exit
  hpcrctl run --image image --user-data user-data --keep --state vm --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runGuest(cmd, o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.image, "image", "", "image folder")
	f.StringVar(&o.cidata, "cidata", "", "a finished cidata volume instead of its files")
	o.files.flags(cmd)
	f.StringArrayVar(&o.disks, "disk", nil, "SERIAL=FILE[:SIZE], may be repeated")
	f.StringArrayVar(&o.publish, "publish", nil, "[HOSTIP:]PORT:GUESTPORT, may be repeated")
	f.StringVar(&o.memory, "memory", "2G", "the guest's memory")
	f.IntVar(&o.cpus, "cpus", 1, "the guest's processors")
	f.StringVar(&o.rtc, "rtc", "", "the guest's clock at start (RFC 3339)")
	f.StringVar(&o.console, "console", "", "file for the console instead of stderr")
	f.StringVar(&o.until, "until", "exit", "ready or exit")
	f.StringVar(&o.exec, "exec", "", "command to run on this machine once the guest is ready")
	f.BoolVar(&o.keep, "keep", false, "leave the guest running once ready")
	f.StringVar(&o.state, "state", "", "folder that remembers a kept guest")
	f.DurationVar(&o.timeout, "timeout", 0, "limit for the whole run, without --keep")
	f.BoolVar(&o.json, "json", false, "one JSON object on stdout")
	f.StringVar(&o.accel, "accel", "tcg", "QEMU's accelerator: tcg or kvm")
	f.StringArrayVar(&o.qemuArgs, "qemu-arg", nil, "further argument for QEMU, may be repeated")
	f.StringArrayVar(&o.faultKills, "kill", nil, "PHASE:CHILD[:STOP], for tests of dev images: kill or stop a child when a phase starts")
	if err := f.MarkHidden("kill"); err != nil {
		panic(err) // the flag is defined two lines above
	}
	return cmd
}

// runGuest boots, follows and ends one guest.
func runGuest(cmd *cobra.Command, o runOptions) error {
	if err := o.check(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "hpcr-run-") // short: a socket's path has 107 bytes
	if err != nil {
		return usage("%w", err)
	}
	kept := false
	defer func() {
		if !kept {
			removeAll(cmd.ErrOrStderr(), dir)
		}
	}()
	q, r, err := o.machine(cmd, dir)
	if err != nil {
		return err
	}
	// The guest must outlive Ctrl-C, which asks it to stop in order.
	vm, err := qemu.Start(context.WithoutCancel(cmd.Context()), q)
	if err != nil {
		return environment(err)
	}
	f := &follower{o: &o, vm: vm, result: r, log: cmd.ErrOrStderr()}
	defer func() {
		if !kept {
			vm.Kill()
			<-vm.Done()
		}
	}()
	status, err := f.follow(cmd.Context())
	if err != nil {
		return err
	}
	if o.keep && status == 0 {
		if err := saveState(o.state, state{PID: vm.PID(), Dir: dir, Monitor: vm.Monitor(), Console: vm.Console(), Health: r.Health.HTTP, Publish: r.Publish}); err != nil {
			return usage("remember the guest: %w", err)
		}
		kept = true
	}
	if o.json {
		if err := emitJSON(cmd, r); err != nil {
			return err
		}
	} else {
		fmt.Fprintln(cmd.ErrOrStderr(), r.sentence())
	}
	if status != 0 {
		return &exitError{code: status}
	}
	return nil
}

func (o *runOptions) check() error {
	switch {
	case o.image == "":
		return usage("--image DIR is missing (make one with 'hpcrctl image build')")
	case o.cidata != "" && (o.files != cidataFiles{}):
		return usage("--cidata holds the files already: leave --user-data and the others away")
	case o.until != "ready" && o.until != "exit":
		return usage("--until is ready or exit")
	case o.keep && o.state == "":
		return usage("--keep needs --state DIR, which 'hpcrctl stop' is to be given")
	case o.keep && o.exec != "":
		return usage("--exec stops the guest, --keep leaves it running: choose one")
	}
	return nil
}

// machine turns flags into a machine and the first lines of its result.
func (o *runOptions) machine(cmd *cobra.Command, dir string) (qemu.Options, *runResult, error) {
	r := &runResult{Codes: []string{}, Phases: []phase{}, Publish: map[string]string{}, Console: o.console}
	q := qemu.Options{Image: o.image, CPUs: o.cpus, Args: o.qemuArgs, Dir: dir, Accel: o.accel, Keep: o.keep, Cidata: o.cidata}
	var err error
	if q.Memory, err = parseMiB(o.memory); err != nil {
		return q, r, usage("--memory: %w", err)
	}
	if o.rtc != "" {
		if q.RTC, err = time.Parse(time.RFC3339, o.rtc); err != nil {
			return q, r, usage("--rtc: %w", err)
		}
	}
	for _, d := range o.disks {
		disk, err := parseDisk(d)
		if err != nil {
			return q, r, usage("--disk %s: %w", d, err)
		}
		q.Disks = append(q.Disks, disk)
	}
	for _, p := range o.publish {
		port, err := parsePublish(p)
		if err != nil {
			return q, r, usage("--publish %s: %w", p, err)
		}
		q.Publish = append(q.Publish, port)
		r.Publish[strconv.Itoa(port.Guest)] = net.JoinHostPort(port.HostIP, strconv.Itoa(port.Host))
	}
	m, err := initramfs.ReadManifest(filepath.Join(o.image, initramfs.ManifestFile))
	if err != nil {
		return q, r, environment(err)
	}
	r.Arch, r.Flavour = m.Arch, m.Flavour
	if m.Flavour == "dev" {
		port, err := freePort()
		if err != nil {
			return q, r, usage("%w", err)
		}
		q.Publish = append(q.Publish, qemu.Port{HostIP: "127.0.0.1", Host: port, Guest: healthPort})
		r.Health.HTTP = fmt.Sprintf("http://127.0.0.1:%d", port)
	}
	if o.cidata == "" && o.files.userData != "" {
		device, err := o.files.device(cmd)
		if err != nil {
			return q, r, err
		}
		q.Cidata = filepath.Join(dir, "cidata.iso")
		if err := os.WriteFile(q.Cidata, device, 0o600); err != nil {
			return q, r, usage("%w", err)
		}
	} else if o.cidata != "" {
		if _, err := os.Stat(o.cidata); err != nil {
			return q, r, usage("%w", err)
		}
	}
	return q, r, nil
}

// parseDisk reads SERIAL=FILE[:SIZE] and makes a missing file of that size.
func parseDisk(s string) (qemu.Disk, error) {
	serial, file, ok := strings.Cut(s, "=")
	if !ok || file == "" || len(serial) > 20 {
		return qemu.Disk{}, errors.New("want SERIAL=FILE[:SIZE], the serial at most 20 characters")
	}
	var size int
	if i := strings.LastIndexByte(file, ':'); i >= 0 {
		if n, err := parseMiB(file[i+1:]); err == nil {
			file, size = file[:i], n
		}
	}
	if _, err := os.Stat(file); err == nil {
		return qemu.Disk{Serial: serial, File: file}, nil
	} else if !errors.Is(err, os.ErrNotExist) || size == 0 {
		return qemu.Disk{}, err
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return qemu.Disk{}, err
	}
	return qemu.Disk{Serial: serial, File: file}, errors.Join(f.Truncate(int64(size)<<20), f.Close())
}

// parsePublish reads [HOSTIP:]PORT:GUESTPORT.
func parsePublish(s string) (qemu.Port, error) {
	p := qemu.Port{HostIP: "127.0.0.1"}
	fields := strings.Split(s, ":")
	if len(fields) == 3 {
		if net.ParseIP(fields[0]).To4() == nil {
			return p, errors.New("the host's address must be IPv4")
		}
		p.HostIP, fields = fields[0], fields[1:]
	}
	if len(fields) != 2 {
		return p, errors.New("want [HOSTIP:]PORT:GUESTPORT")
	}
	for i, to := range []*int{&p.Host, &p.Guest} {
		n, err := strconv.Atoi(fields[i])
		if err != nil || n < 1 || n > 65535 {
			return p, errors.New("ports are numbers from 1 to 65535")
		}
		*to = n
	}
	return p, nil
}

// parseMiB reads a size such as 512M or 2G; a bare number is bytes.
func parseMiB(s string) (int, error) {
	digits := strings.TrimRight(s, "KMGTiB")
	n, err := strconv.ParseInt(digits, 10, 40)
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("%q is no size such as 512M or 2G", s)
	}
	shift := map[string]int{"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
	exp, ok := shift[strings.TrimSuffix(strings.TrimSuffix(s[len(digits):], "B"), "i")]
	if mib := n << exp >> 20; ok && mib > 0 && mib < 1<<30 {
		return int(mib), nil
	}
	return 0, fmt.Errorf("%q is no size such as 512M or 2G", s)
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}

func removeAll(log io.Writer, dir string) {
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(log, "hpcrctl: left behind:", err)
	}
}

// execute runs the --exec command with what it may want to know.
func (o *runOptions) execute(ctx context.Context, r *runResult, log io.Writer) (int, error) {
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", o.exec)
	cmd.Env = append(os.Environ(), "HPCR_CONSOLE="+r.Console, "HPCR_HEALTH="+r.Health.HTTP)
	for guest, host := range r.Publish {
		cmd.Env = append(cmd.Env, "HPCR_PORT_"+guest+"="+host)
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.WaitDelay = 5 * time.Second // children of the shell may hold its output open
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(1, exit.ExitCode()), nil
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		return 0, nil // the command itself ended well
	}
	return 0, err
}
