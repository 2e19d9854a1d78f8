package peers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Rsyslog is Debian's rsyslogd, a child of this process, that takes RFC 5424
// messages over mutual TLS on the loopback (gtls driver, mode 1, any client
// certificate of its authority) and keeps each as it came.
type Rsyslog struct {
	daemon string // the program
	dir    string
	port   int
	lines  string // the file of raw messages
	errs   *bytes.Buffer
	cmd    *exec.Cmd
	ended  chan struct{} // closed once the child is reaped
}

// RsyslogProgram is the path of rsyslogd.
func RsyslogProgram() (string, error) { return tool("rsyslogd", "rsyslog") }

// StartRsyslog starts rsyslogd with its files in dir. Its certificate and its
// clients' come from ca. It returns once the port takes connections.
func StartRsyslog(ctx context.Context, dir string, ca *CA) (*Rsyslog, error) {
	daemon, err := RsyslogProgram()
	if err != nil {
		return nil, err
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("the folder of rsyslogd: %w", err)
	}
	id, err := ca.Server("log host", GuestHost, GuestHost6, Loopback)
	if err != nil {
		return nil, err
	}
	r := &Rsyslog{daemon: daemon, dir: dir, lines: filepath.Join(dir, "messages"), errs: new(bytes.Buffer)}
	for name, data := range map[string][]byte{"ca.pem": ca.PEM, "cert.pem": id.Cert, "key.pem": id.Key} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return nil, fmt.Errorf("prepare rsyslogd: %w", err)
		}
	}
	return r, r.Start(ctx)
}

// Start starts the daemon again after Stop, on its port and with its messages.
func (r *Rsyslog) Start(ctx context.Context) error {
	in := func(name string) string { return filepath.Join(r.dir, name) }
	conf := fmt.Sprintf(rsyslogConf, r.dir, in("ca.pem"), in("cert.pem"), in("key.pem"), Loopback, in("port"), r.lines, r.port)
	if err := os.WriteFile(in("rsyslog.conf"), []byte(conf), 0o600); err != nil {
		return fmt.Errorf("prepare rsyslogd: %w", err)
	}
	if err := os.Remove(in("port")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("prepare rsyslogd: %w", err)
	}
	r.cmd = exec.Command(r.daemon, "-n", "-f", in("rsyslog.conf"), "-i", in("pid"))
	r.cmd.Stderr = r.errs
	// A test that is killed must not leave a daemon behind.
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := r.cmd.Start(); err != nil {
		return fmt.Errorf("start rsyslogd: %w", err)
	}
	cmd, ended := r.cmd, make(chan struct{})
	r.ended = ended
	go func() {
		// The status says only how it was stopped; an early end shows by
		// the channel, with its words in errs.
		_ = cmd.Wait()
		close(ended)
	}()
	if err := r.ready(ctx, in("port")); err != nil {
		return errors.Join(err, r.Stop())
	}
	return nil
}

// rsyslogConf has the folder, the authority, certificate and key, the address,
// the file that rsyslogd writes its port to, the file of messages, and the
// port, 0 = any.
const rsyslogConf = `global(
  workDirectory="%s"
  defaultNetstreamDriver="gtls"
  defaultNetstreamDriverCAFile="%s"
  defaultNetstreamDriverCertFile="%s"
  defaultNetstreamDriverKeyFile="%s"
  maxMessageSize="64k"
)
module(load="imtcp" streamDriver.name="gtls" streamDriver.mode="1" streamDriver.authMode="x509/certvalid")
template(name="raw" type="string" string="%%rawmsg%%\n")
ruleset(name="guests") { action(type="omfile" file="%[7]s" template="raw") }
input(type="imtcp" address="%[5]s" port="%[8]d" listenPortFileName="%[6]s" ruleset="guests")
`

func (r *Rsyslog) ready(ctx context.Context, portFile string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		// The file is written for a port of rsyslogd's own choice only.
		if r.port == 0 {
			if text, err := os.ReadFile(portFile); err == nil {
				if port, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
					r.port = port
				}
			}
		}
		if r.port != 0 {
			c, err := net.DialTimeout("tcp", net.JoinHostPort(Loopback, strconv.Itoa(r.port)), time.Second)
			if err == nil {
				return c.Close()
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("rsyslogd does not listen: %w", ctx.Err())
		case <-r.ended:
			return fmt.Errorf("rsyslogd ended at once (rsyslog-gnutls missing? run 'make deps'): %s", r.errs)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Port is the TCP port on the loopback.
func (r *Rsyslog) Port() int { return r.port }

// Messages are the messages so far, as they came, without their framing.
func (r *Rsyslog) Messages() ([]string, error) {
	text, err := os.ReadFile(r.lines)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the log host's messages: %w", err)
	}
	return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n"), nil
}

// WaitFor returns the first message that match accepts; it waits for it until
// ctx ends.
func (r *Rsyslog) WaitFor(ctx context.Context, match func(string) bool) (string, error) {
	for {
		messages, err := r.Messages()
		if err != nil {
			return "", err
		}
		for _, m := range messages {
			if match(m) {
				return m, nil
			}
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("no such message among the log host's %d: %w", len(messages), ctx.Err())
		case <-r.ended:
			return "", fmt.Errorf("rsyslogd ended: %s", r.errs)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Stop ends the daemon; a second call does nothing.
func (r *Rsyslog) Stop() error {
	select {
	case <-r.ended:
		return nil
	default:
	}
	if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop rsyslogd: %w", err)
	}
	select {
	case <-r.ended:
		return nil
	case <-time.After(10 * time.Second):
	}
	if err := r.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill rsyslogd: %w", err)
	}
	<-r.ended
	return nil
}

// ClosedPort is a port on the loopback where nothing listens.
func ClosedPort() (int, error) {
	l, err := net.Listen("tcp", net.JoinHostPort(Loopback, "0"))
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	return port, nil
}

// tool finds a program of a Debian package, in the folders that root's PATH
// has and a user's has not as well.
func tool(name, pkg string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is missing: run 'make deps' (Debian package %s)", name, pkg)
}
