package main

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
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"hpcr/agent/logship"
	"hpcr/agent/secret"
	"hpcr/agent/workload"
	"hpcr/test/peers"
)

const (
	logLines = 200_000
	logUntil = 190_000 // the clock stops here: rsyslog's last lines may wait for more
	logWidth = 100     // octets of a line, its number included
	logTurns = 5
)

// logCost compares the way of a container's line to an rsyslogd over mutual TLS
// with the way that a Debian with podman or docker has: a log file that a second
// rsyslogd reads and forwards. Writing that file is not counted: the peer is
// better off here than where it is used. Each side is a process, in turns; the
// lines are there at once, and the clock stops when the collector has them.
func logCost(ctx context.Context, dir string) (_ []figure, err error) {
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	ca, err := peers.NewCA("bench's log")
	if err != nil {
		return nil, err
	}
	client, err := ca.Client("guest")
	if err != nil {
		return nil, err
	}
	b := &logBench{dir: dir, ca: ca}
	for name, data := range map[string][]byte{"ca.pem": ca.PEM, "cert.pem": client.Cert, "key.pem": client.Key} {
		if err := os.WriteFile(b.path(name), data, 0o600); err != nil {
			return nil, err
		}
	}
	var ours, theirs, bare []logRun
	for range logTurns {
		for side, runs := range map[string]*[]logRun{"ours": &ours, "theirs": &theirs, "bare": &bare} {
			r, err := b.run(ctx, side)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", side, err)
			}
			*runs = append(*runs, r)
		}
	}
	var out []figure
	for _, f := range []struct {
		name string
		of   func(logRun) time.Duration
	}{
		{"log: time a line, container to collector", func(r logRun) time.Duration { return r.wall }},
		{"log: processor time a line", func(r logRun) time.Duration { return r.cpu }},
	} {
		v, p, b := middle(ours, f.of), middle(theirs, f.of), middle(bare, f.of)
		ratio, limit := v/p, v/b
		out = append(out,
			figure{Name: f.name, Unit: "µs", Value: v, Peer: "rsyslog from the container's log file", PeerValue: p, Ratio: &ratio, most: 1},
			// The limit, which is nobody's path: whole syslog messages that are only passed on.
			figure{Name: f.name, Unit: "µs", Value: v, Peer: "rsyslog's bare forwarding", PeerValue: b, Ratio: &limit})
	}
	return out, nil
}

// logRun is what all lines of a run took.
type logRun struct{ wall, cpu time.Duration }

// middle is the median, in microseconds a line.
func middle(runs []logRun, of func(logRun) time.Duration) float64 {
	var all []float64
	for _, r := range runs {
		all = append(all, float64(of(r).Nanoseconds())/1000/logUntil)
	}
	slices.Sort(all)
	return all[len(all)/2]
}

type logBench struct {
	dir string
	ca  *peers.CA
}

func (b *logBench) path(name string) string { return filepath.Join(b.dir, name) }

// run starts a collector and one side, lets one line through, then all.
func (b *logBench) run(ctx context.Context, side string) (r logRun, err error) {
	collector := b.path("collector")
	if err := errors.Join(os.RemoveAll(collector), os.MkdirAll(collector, 0o755)); err != nil {
		return r, err
	}
	host, err := peers.StartRsyslog(ctx, collector, b.ca)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, host.Stop()) }()
	var (
		cmd *exec.Cmd
		to  io.WriteCloser
	)
	switch side {
	case "ours":
		self, err := os.Executable()
		if err != nil {
			return r, err
		}
		cmd = exec.CommandContext(ctx, self, "-log-child", b.dir, strconv.Itoa(host.Port()))
		if to, err = cmd.StdinPipe(); err != nil {
			return r, err
		}
	case "theirs":
		if to, err = os.Create(b.path("container.log")); err != nil {
			return r, err
		}
		if cmd, err = b.rsyslog(ctx, host.Port(), fmt.Sprintf(fileInput, b.path("container.log"))); err != nil {
			return r, err
		}
	case "bare":
		port, err := peers.ClosedPort()
		if err != nil {
			return r, err
		}
		to = &lateConn{address: net.JoinHostPort(peers.Loopback, strconv.Itoa(port))}
		if cmd, err = b.rsyslog(ctx, host.Port(), fmt.Sprintf(tcpInput, port)); err != nil {
			return r, err
		}
	}
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		return r, err
	}
	defer func() {
		// It is asked to end, and does: ours at the end of its input.
		err = errors.Join(err, to.Close())
		if side != "ours" {
			err = errors.Join(err, cmd.Process.Signal(syscall.SIGTERM))
		}
		if werr := cmd.Wait(); werr != nil {
			err = errors.Join(err, fmt.Errorf("%w: %s", werr, said.String()))
		}
	}()
	text := logText(side)
	first, rest, _ := bytes.Cut(text, []byte("\n"))
	if _, err := to.Write(append(first, '\n')); err != nil {
		return r, err
	}
	if err := b.arrives(ctx, collector, 1); err != nil {
		return r, fmt.Errorf("%w: %s", err, said.String())
	}
	before, err := processorTime(cmd.Process.Pid)
	if err != nil {
		return r, err
	}
	begin := time.Now()
	if _, err := to.Write(rest); err != nil {
		return r, err
	}
	if err := b.arrives(ctx, collector, logUntil); err != nil {
		return r, fmt.Errorf("%w: %s", err, said.String())
	}
	r.wall = time.Since(begin)
	after, err := processorTime(cmd.Process.Pid)
	r.cpu = after - before
	return r, err
}

// rsyslog is a second rsyslogd that forwards an input's messages.
func (b *logBench) rsyslog(ctx context.Context, port int, input string) (*exec.Cmd, error) {
	daemon, err := peers.RsyslogProgram()
	if err != nil {
		return nil, err
	}
	err = errors.Join(os.RemoveAll(b.path("state")), os.Mkdir(b.path("state"), 0o755), os.WriteFile(b.path("peer.conf"), fmt.Appendf(nil, peerConf, b.dir, port, input), 0o600))
	return exec.CommandContext(ctx, daemon, "-n", "-f", b.path("peer.conf"), "-i", b.path("peer.pid")), err
}

// logText is what the container writes, as each side gets it: from the
// container itself, as podman writes its log files (k8s-file), or as whole
// messages.
func logText(side string) []byte {
	var b bytes.Buffer
	for i := 1; i <= logLines; i++ {
		switch side {
		case "theirs":
			b.WriteString("2026-11-28T04:00:00.123456789+00:00 stdout F ")
		case "bare":
			b.WriteString("<14>1 2026-11-28T04:00:00.123456Z guest web - stdout - ")
		}
		line := fmt.Sprintf("n=%d. ", i)
		b.WriteString(line + strings.Repeat("x", logWidth-len(line)) + "\n")
	}
	return b.Bytes()
}

var logNumber = regexp.MustCompile(`n=(\d+)\. x`)

// arrives waits until the collector's last message is this line, or a later one.
func (b *logBench) arrives(ctx context.Context, collector string, n int) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	last := 0
	for {
		tail, err := lastOctets(filepath.Join(collector, "messages"), 4096)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		for _, f := range logNumber.FindAllSubmatch(tail, -1) {
			if last, err = strconv.Atoi(string(f[1])); err != nil {
				return err
			}
		}
		if last >= n {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("line %d does not arrive, %d did: %w", n, last, ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func lastOctets(name string, n int64) (_ []byte, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	out := make([]byte, min(n, info.Size()))
	_, err = f.ReadAt(out, info.Size()-int64(len(out)))
	return out, err
}

// processorTime is what the threads of a process have used: the first number of
// each one's schedstat, in nanoseconds (Documentation/scheduler/sched-stats).
func processorTime(pid int) (time.Duration, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		return 0, err
	}
	var sum time.Duration
	for _, t := range tasks {
		text, err := os.ReadFile(t)
		if errors.Is(err, os.ErrNotExist) {
			continue // a thread that has ended
		}
		if err != nil {
			return 0, err
		}
		word, _, _ := strings.Cut(string(text), " ")
		n, err := strconv.ParseInt(word, 10, 64)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(n)
	}
	return sum, nil
}

// The inputs have the file, and the port.
const (
	fileInput = `module(load="imfile" mode="inotify")
input(type="imfile" file="%s" tag="web" ruleset="out")`
	tcpInput = `module(load="imptcp")
input(type="imptcp" address="127.0.0.1" port="%d" ruleset="out")`
)

// lateConn connects at the first write, once somebody listens.
type lateConn struct {
	address string
	conn    net.Conn
}

func (c *lateConn) Write(p []byte) (int, error) {
	for end := time.Now().Add(10 * time.Second); c.conn == nil; time.Sleep(20 * time.Millisecond) {
		conn, err := net.Dial("tcp", c.address)
		if err != nil && time.Now().After(end) {
			return 0, err
		}
		if err == nil {
			c.conn = conn
		}
	}
	return c.conn.Write(p)
}

func (c *lateConn) Close() error {
	if c.conn == nil {
		return nil
	}
	return c.conn.Close()
}

// peerConf has the folder, the collector's port, and the input.
const peerConf = `global(
  workDirectory="%[1]s/state"
  defaultNetstreamDriver="gtls"
  defaultNetstreamDriverCAFile="%[1]s/ca.pem"
  defaultNetstreamDriverCertFile="%[1]s/cert.pem"
  defaultNetstreamDriverKeyFile="%[1]s/key.pem"
)
%[3]s
ruleset(name="out") {
  action(type="omfwd" target="127.0.0.1" port="%[2]d" protocol="tcp" TCP_Framing="octet-counted" template="RSYSLOG_SyslogProtocol23Format"
         StreamDriver="gtls" StreamDriverMode="1" StreamDriverAuthMode="x509/certvalid")
}
`

// logChild is our side: the agent's way from a container's FIFO to the log host.
// The arguments are the folder and the port.
func logChild(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("%d arguments", len(args))
	}
	pem := map[string][]byte{}
	for _, name := range []string{"ca.pem", "cert.pem", "key.pem"} {
		data, err := os.ReadFile(filepath.Join(args[0], name))
		if err != nil {
			return err
		}
		pem[name] = data
	}
	port, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	ship, err := logship.Open(ctx, logship.Config{
		Host: peers.Loopback, Port: port, CA: pem["ca.pem"], Cert: pem["cert.pem"], Key: secret.New(pem["key.pem"]), Hostname: "guest",
	}, nil)
	if err != nil {
		return err
	}
	to := ship.Source(logship.Origin{Name: "web stdout", Facility: logship.FacilityUser, App: "web", Foreign: true, Data: []logship.Param{
		{Name: "service", Value: "web"}, {Name: "container", Value: "c1"},
		{Name: "image", Value: "registry.example.com/web@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"}, {Name: "stream", Value: "stdout"}}})
	lines := 0
	err = workload.Lines(writer(func(p []byte) (int, error) {
		text, whole := bytes.CutSuffix(p, []byte("\n"))
		to.Send(logship.Entry{Time: time.Now(), Severity: logship.SeverityInfo, MsgID: "stdout", Text: text, More: !whole})
		// A guest drops and counts what memory cannot hold. The peer's file
		// drops nothing, so the container waits here.
		for lines++; lines%1000 == 0 && ship.Stats().SpooledSize > 4*mib; {
			time.Sleep(100 * time.Microsecond)
		}
		return len(p), nil
	}), os.Stdin)
	if stats := ship.Stats(); stats.Lost > 0 || stats.Reconnects > 0 {
		err = errors.Join(err, fmt.Errorf("%+v", stats))
	}
	return errors.Join(err, ship.Drain(ctx), ship.Close())
}

type writer func(p []byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

func onlyLogs(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp("", "hpcr-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	figures, err := logCost(ctx, filepath.Join(dir, "logs"))
	if err != nil {
		return err
	}
	return errors.Join(show(figures), overBudget(figures))
}
