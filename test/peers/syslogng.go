package peers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"hpcr/initramfs"
)

// SyslogNG is Debian's syslog-ng, a child of this process, that takes RFC 5425
// over mutual TLS on the loopback and writes what it read of each message:
// PRI|HOST|PROGRAM|MSGID|SDATA|MSG.
type SyslogNG struct {
	Port  int
	lines string
	errs  *bytes.Buffer
	cmd   *exec.Cmd
	ended chan struct{}
}

// syslogNGPackages are what Debian's minimal system lacks. The package cannot be
// installed beside rsyslog, so it is unpacked.
var syslogNGPackages = []initramfs.Want{{Name: "syslog-ng-core"}, {Name: "libivykis0"}, {Name: "libnet1"}, {Name: "libwrap0"}}

const syslogNGConf = `@version: 3.38
options { keep-hostname(yes); log-msg-size(65536); };
source s { syslog(ip("127.0.0.1") port(%[2]d) transport("tls")
  tls(key-file("%[1]s/key.pem") cert-file("%[1]s/cert.pem") ca-file("%[1]s/ca.pem") peer-verify(required-trusted))); };
destination d { file("%[1]s/messages" template("${PRI}|${HOST}|${PROGRAM}|${MSGID}|${SDATA}|${MSG}\n")); };
log { source(s); destination(d); };
`

// StartSyslogNG starts it with its files in dir; log hears of downloads.
func StartSyslogNG(ctx context.Context, dir string, ca *CA, log io.Writer) (*SyslogNG, error) {
	debian, err := initramfs.NewDebian("amd64", log)
	if err != nil {
		return nil, fmt.Errorf("syslog-ng: %w", err)
	}
	packages, err := debian.Fetch(ctx, "syslog-ng", syslogNGPackages)
	if err != nil {
		return nil, fmt.Errorf("syslog-ng: %w", err)
	}
	var libs []string
	core := ""
	for _, p := range packages {
		root, err := debian.Unpack(ctx, p)
		if err != nil {
			return nil, fmt.Errorf("syslog-ng: %w", err)
		}
		libs = append(libs, filepath.Join(root, "usr/lib/x86_64-linux-gnu"), filepath.Join(root, "lib/x86_64-linux-gnu"), filepath.Join(root, "usr/lib/syslog-ng"))
		if p.Name == "syslog-ng-core" {
			core = root
		}
	}
	id, err := ca.Server("syslog-ng", GuestHost, Loopback)
	if err != nil {
		return nil, err
	}
	port, err := ClosedPort()
	if err != nil {
		return nil, err
	}
	s := &SyslogNG{Port: port, lines: filepath.Join(dir, "messages"), errs: new(bytes.Buffer), ended: make(chan struct{})}
	for name, data := range map[string][]byte{"ca.pem": ca.PEM, "cert.pem": id.Cert, "key.pem": id.Key, "conf": fmt.Appendf(nil, syslogNGConf, dir, port)} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return nil, fmt.Errorf("prepare syslog-ng: %w", err)
		}
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	s.cmd = exec.Command(filepath.Join(core, "usr/sbin/syslog-ng"), "--foreground", "--stderr", "--no-caps", "--cfgfile", in("conf"), "--pidfile", in("pid"),
		"--control", in("ctl"), "--persist-file", in("persist"), "--module-path", filepath.Join(core, "usr/lib/syslog-ng/3.38"))
	s.cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+strings.Join(libs, ":"))
	s.cmd.Stderr = s.errs
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start syslog-ng: %w", err)
	}
	go func() {
		// As with rsyslogd, an early end shows by the channel.
		_ = s.cmd.Wait()
		close(s.ended)
	}()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.DialTimeout("tcp", net.JoinHostPort(Loopback, fmt.Sprint(port)), time.Second)
		if err == nil {
			return s, c.Close()
		}
		select {
		case <-s.ended:
			return nil, fmt.Errorf("syslog-ng ended at once: %s", s.errs)
		default:
		}
		if time.Now().After(end) {
			return nil, errors.Join(fmt.Errorf("syslog-ng does not listen: %w", err), s.Stop())
		}
	}
}

// Messages are what it wrote so far.
func (s *SyslogNG) Messages() ([]string, error) {
	text, err := os.ReadFile(s.lines)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read syslog-ng's messages: %w", err)
	}
	return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n"), nil
}

// Stop ends the daemon.
func (s *SyslogNG) Stop() error {
	select {
	case <-s.ended:
		return fmt.Errorf("syslog-ng had ended: %s", s.errs)
	default:
	}
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop syslog-ng: %w", err)
	}
	select {
	case <-s.ended:
		return nil
	case <-time.After(10 * time.Second):
	}
	err := s.cmd.Process.Kill()
	<-s.ended
	return err
}
