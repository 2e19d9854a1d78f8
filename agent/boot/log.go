package boot

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"hpcr/agent/event"
	"hpcr/agent/hpl"
	"hpcr/agent/kmsg"
	"hpcr/agent/logship"
	"hpcr/agent/workload"
	"hpcr/contract"
	"hpcr/network"
)

// drainLimit is how long an orderly end waits for the log host.
const drainLimit = 5 * time.Second

// openLog connects to the owner's log host and proves it by a probe. What was
// said before goes there first.
func (g *Guest) openLog(ctx context.Context) error {
	if g.plan.Syslog == nil && g.plan.LogRouter == nil && g.plan.LogDNA == nil {
		g.Console.Message("HPL01002W", "", "")
		return nil
	}
	g.Console.Unit("hpcr-logging", "Configuring logging ...")
	ship, err := g.reachLog(ctx)
	if err != nil {
		return err
	}
	g.ship = ship
	agent := ship.Source(logship.Origin{Name: "agent", Facility: logship.FacilityDaemon, App: "hpcr-agent", ProcID: strconv.Itoa(os.Getpid())})
	g.Hub.Attach(func(e event.Event) {
		agent.Send(logship.Entry{Time: e.Time, Severity: int(e.Severity), MsgID: string(e.ID), Text: []byte(e.Line())})
	})
	if g.kernel, err = kmsg.Open(); err != nil {
		g.note(event.StreamBroken, event.Error, "the kernel's messages cannot be read", slog.Any("error", err))
	} else {
		go g.followKernel(ship)
	}
	g.Console.Message("HPL01010I", "", "")
	g.Console.Unit("hpcr-logging", "Logging has been configured")
	return nil
}

func (g *Guest) reachLog(ctx context.Context) (*logship.Shipper, error) {
	if g.plan.Syslog == nil { // a service, which the system's authorities vouch for
		trust, err := network.RegistryConfig(rootsFile, g.plan.CACerts, g.now)
		if err != nil {
			return nil, hpl.Wrap(err, "HPL01004E", "/env/cacerts", "give a list of one NAME: base64 of a PEM certificate")
		}
		c := logship.Config{Hostname: g.plan.Hostname}
		// A copy of the key stays there: it is needed as long as there is a log.
		if l := g.plan.LogRouter; l != nil {
			c.Host, c.Port, c.Cloud = l.Host, l.Port, &logship.Cloud{IAM: l.IAM, APIKey: l.APIKey, TLS: trust}
		} else {
			l := g.plan.LogDNA
			c.Host, c.Port, c.DNA = l.Host, l.Port, &logship.DNA{Key: l.Key, Tags: l.Tags, TLS: trust}
		}
		return logship.Open(ctx, c, nil)
	}
	s := g.plan.Syslog
	defer s.Key.Wipe() // for connecting again, TLS keeps the key as numbers
	return logship.Open(ctx, logship.Config{
		Host: s.Host, Port: s.Port, CA: s.CA, Cert: s.Cert, Key: s.Key, Hostname: g.plan.Hostname, Now: g.now,
	}, nil)
}

// followKernel sends the kernel's messages, from the oldest that there is.
// Their text holds names that containers and the host chose.
func (g *Guest) followKernel(ship *logship.Shipper) {
	to := ship.Source(logship.Origin{Name: "kernel", Facility: logship.FacilityKernel, App: "kernel", Foreign: true})
	err := kmsg.Follow(g.kernel, func(r kmsg.Record, missed uint64) {
		if missed > 0 {
			g.note(event.LogLost, event.Warning, "messages of the kernel were overwritten before they were read, or have another form", slog.Uint64("count", missed))
		}
		to.Send(logship.Entry{Severity: r.Severity, Text: r.Text})
	})
	if err != nil {
		g.note(event.StreamBroken, event.Error, "the kernel's messages cannot be read any more", slog.Any("error", err))
	}
}

// closeLog sends the rest of the log, its counters last.
func (g *Guest) closeLog(ctx context.Context) error {
	if g.ship == nil {
		return nil
	}
	g.sayCounters()
	limited, cancel := context.WithTimeout(ctx, drainLimit)
	defer cancel()
	if err := g.ship.Drain(limited); err != nil {
		g.log.Warn("the log was not delivered in full", "error", err)
	}
	if g.kernel != nil {
		// Its follower ends, for nobody hears it any more.
		_ = g.kernel.Close()
	}
	err := g.ship.Close()
	if g.logKept {
		// What could not be sent is kept, but for what was said since: docs/logs.md.
		return nil
	}
	return err
}

func isLogStore(v contract.Volume) bool { return v.Mount == contract.LogStore }

const (
	keptMost  = 1 << 30 // octets of messages that wait on a disk
	keptShare = 2       // and at most one of so many parts of what is free
	parkLimit = 10 * time.Second
	parking   = drainLimit + parkLimit // before a volume closes
)

// keepLog lets messages wait on encrypted storage, once memory should not hold
// more of them. lasting = what an earlier boot could not send is there, and
// what this one cannot will be.
func (g *Guest) keepLog(lasting bool) error {
	if g.ship == nil {
		return nil
	}
	if err := os.MkdirAll(contract.LogStore, 0o700); err != nil {
		return fmt.Errorf("folder of waiting log messages: %w", err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(contract.LogStore, &fs); err != nil {
		return fmt.Errorf("folder of waiting log messages: %w", err)
	}
	n, err := g.ship.Keep(logship.Folder{
		Dir: contract.LogStore, Lasting: lasting,
		Limit: int64(min(keptMost, fs.Bavail*uint64(fs.Bsize)/keptShare)),
	})
	if err != nil {
		return err
	}
	g.logFolder = true
	if n > 0 {
		g.note(event.LogKept, event.Notice, "messages that an earlier boot could not send follow", slog.Int("count", n))
	}
	return nil
}

// parkLog leaves to the next boot what the log host does not take, before the
// place for it goes.
func (g *Guest) parkLog(ctx context.Context) {
	if !g.logFolder {
		return // the other volumes need not wait for the log host
	}
	g.logFolder = false
	limited, cancel := context.WithTimeout(ctx, drainLimit)
	defer cancel()
	// What is left shows in the count.
	_ = g.ship.Drain(limited)
	limited, cancel = context.WithTimeout(ctx, parkLimit)
	defer cancel()
	switch n, err := g.ship.Park(limited); {
	case err != nil:
		g.note(event.LogKept, event.Error, "messages that wait could not be kept for the next boot", slog.Any("error", err))
	case n > 0:
		g.logKept = true
		g.note(event.LogKept, event.Notice, "messages that wait were kept for the next boot", slog.Int("count", n))
	}
}

// watchLog says hourly how the log stands.
func (g *Guest) watchLog(ctx context.Context) {
	if g.ship == nil {
		return
	}
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Hour):
				g.sayCounters()
			}
		}
	}()
}

func (g *Guest) sayCounters() {
	s := g.ship.Stats()
	g.note(event.LogCounters, event.Info, "log messages so far",
		slog.Uint64("sent", s.Sent), slog.Uint64("repeated", s.Repeated), slog.Uint64("lost", s.Lost),
		slog.Int("spooled", s.Spooled), slog.Int("kept", s.Kept), slog.Duration("lag", s.Lag.Round(time.Millisecond)), slog.Uint64("reconnects", s.Reconnects))
}

// output is where a container's lines go: to the owner, or nowhere. They never
// reach the console.
func (g *Guest) output(stream workload.Stream) io.Writer {
	if g.ship == nil {
		return io.Discard
	}
	severity := logship.SeverityInfo
	if stream.Stderr {
		severity = logship.SeverityError
	}
	return lineSink{g.ship.Source(logship.Origin{
		Name: stream.Service + " " + stream.Name(), Facility: logship.FacilityUser, App: stream.Service, Foreign: true,
		Data: []logship.Param{{Name: "service", Value: stream.Service}, {Name: "container", Value: stream.Container},
			{Name: "image", Value: stream.Image}, {Name: "stream", Value: stream.Name()}},
	}), severity, stream.Name()}
}

// lineSink turns each Write, which is one line or a piece of one, into an entry.
type lineSink struct {
	to       *logship.Source
	severity int
	id       string
}

func (l lineSink) Write(p []byte) (int, error) {
	text, whole := bytes.CutSuffix(p, []byte("\n"))
	if whole {
		text = bytes.TrimSuffix(text, []byte("\r")) // a terminal's
	}
	l.to.Send(logship.Entry{Time: time.Now(), Severity: l.severity, MsgID: l.id, Text: text, More: !whole})
	return len(p), nil
}

// streamEnded hears of a container's output that ends before the container.
func (g *Guest) streamEnded(s workload.Stream, err error) {
	attrs := []slog.Attr{slog.String("service", s.Service), slog.String("stream", s.Name())}
	if err != nil {
		g.note(event.StreamBroken, event.Error, "a container's output cannot be read any more", append(attrs, slog.Any("error", err))...)
		return
	}
	g.note(event.StreamEnded, event.Notice, "a container has closed its output and runs on", attrs...)
}

// daemonOutput is where a child's own lines go. They quote names of the contract.
func (g *Guest) daemonOutput(app string) func(line []byte) {
	if g.ship == nil {
		return func([]byte) {}
	}
	to := g.ship.Source(logship.Origin{Name: app, Facility: logship.FacilityDaemon, App: app, Foreign: true})
	return func(line []byte) { to.Send(logship.Entry{Severity: logship.SeverityInfo, Text: line}) }
}
