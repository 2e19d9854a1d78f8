package boot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"hpcr/agent/event"
	"hpcr/agent/hpl"
	"hpcr/network"
)

// How the clock is kept.
const (
	syncLimit  = 6 * time.Second // for the answers by NTP
	syncEvery  = 5 * time.Minute
	syncAgain  = 30 * time.Second // when nobody answered
	proveLimit = 40 * time.Second // for answers by NTS: handshakes, and tries again; the phase has a minute
	lookEvery  = 10 * time.Second // at the clock itself
	proveAgain = time.Second
	slewLimit  = 128 * time.Millisecond // below it the clock runs faster or slower; above it is set
	jumpNotice = time.Second
)

// clock is the system's, kept by servers whom, but for NTS, nobody vouches for.
// So it never goes before the floor, and once it was set it goes back by no
// step: who could turn it back could have ended certificates accepted again.
type clock struct {
	floor   time.Time
	servers []string
	ask     func(ctx context.Context, servers []string, floor time.Time) (network.Reading, error)
	now     func() time.Time
	step    func(time.Time) error
	slew    func(time.Duration) error
	say     event.Sink
	limit   time.Duration // for all answers of one time
	vouched string        // who says that the servers are who they are

	set     bool // servers have agreed once
	refused bool // it is ahead of what the servers say, and that was told
	silent  bool // nobody answers, and that was told
}

// timeFloor is the later of the build and of the first instants of the image's
// certificates. One that cannot be read is the record's matter.
func timeFloor(built time.Time, files ...string) time.Time {
	floor := built
	for _, f := range files {
		if c, err := readCertificate(f); err == nil && c.NotBefore.After(floor) {
			floor = c.NotBefore
		}
	}
	return floor
}

// now is the clock, but never before the floor.
func (g *Guest) now() time.Time {
	if t := time.Now(); !t.Before(g.floor) {
		return t
	}
	return g.floor
}

// setTime sets the clock to the floor at least, and by the time servers of the
// contract, or else of DHCP. Silence of theirs does not end the boot: whoever
// can silence them could as well have lied. That of NTS servers does, for they
// cannot be made to lie.
func (g *Guest) setTime(ctx context.Context) error {
	c := &clock{
		floor: g.floor, servers: g.plan.Time.NTP, ask: network.AskTime,
		now: time.Now, step: stepClock, slew: slewClock, say: g.Hub.Emit,
		limit: syncLimit, vouched: "whom nobody vouches for",
	}
	if err := c.raise(); err != nil {
		return err
	}
	if len(g.plan.Time.NTS) > 0 {
		trust, err := network.RegistryConfig(rootsFile, g.plan.CACerts, g.now)
		if err != nil {
			return err
		}
		c.servers, c.ask = g.plan.Time.NTS, network.NewNTS(trust, g.now).Ask
		c.limit, c.vouched = proveLimit, "who prove who they are"
		if err := c.prove(ctx); err != nil {
			return err
		}
		go c.keep(context.Background())
		return nil
	}
	if len(c.servers) == 0 {
		for _, a := range g.net.Timeservers() {
			c.servers = append(c.servers, a.String())
		}
	}
	if len(c.servers) == 0 {
		c.tell(event.ClockUnset, event.Warning, "no time server is named: the clock is the host's")
		return nil
	}
	limited, cancel := context.WithTimeout(ctx, syncLimit)
	defer cancel()
	if err := c.sync(limited); err != nil {
		return err
	}
	go c.keep(context.Background())
	return nil
}

// prove asks until the servers have agreed.
func (c *clock) prove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.limit)
	defer cancel()
	for {
		if err := c.sync(ctx); err != nil || c.set {
			return err
		}
		select {
		case <-ctx.Done():
			return hpl.New("HPL14001E", "/env/x-hpcr/time/nts", "no majority of the time servers proves itself and agrees: see the log, or name others")
		case <-time.After(proveAgain):
		}
	}
}

// raise brings the clock to the floor.
func (c *clock) raise() error {
	if !c.now().Before(c.floor) {
		return nil
	}
	if err := c.step(c.floor); err != nil {
		return fmt.Errorf("clock: %w", err)
	}
	c.tell(event.ClockJumped, event.Warning, "the clock was before the image was made: set to that time", slog.Time("time", c.floor))
	return nil
}

// sync asks the servers and does what they say, within the rules. Only a
// kernel that refuses is an error.
func (c *clock) sync(ctx context.Context) error {
	r, err := c.ask(ctx, c.servers, c.floor)
	if err == nil && c.now().Add(r.Offset).Before(c.floor) {
		err = errors.New("the time servers give a time before the image was made")
	}
	if err != nil {
		if !c.silent {
			c.tell(event.ClockUnset, event.Warning, "the time servers do not set the clock", slog.String("error", err.Error()))
		}
		c.silent = true
		return nil
	}
	first := !c.set
	c.silent = false
	agreed := []slog.Attr{slog.Duration("offset", r.Offset), slog.Int("agreed", r.Agreed), slog.Int("asked", r.Of)}
	switch {
	case !first && r.Offset < -slewLimit:
		if !c.refused {
			c.tell(event.ClockJumped, event.Warning, "the clock is ahead of the time servers and is not set back", agreed...)
		}
		c.refused = true
		return nil
	case r.Offset.Abs() <= slewLimit:
		if err := c.slew(r.Offset); err != nil {
			return fmt.Errorf("clock: %w", err)
		}
	default:
		if err := c.step(c.now().Add(r.Offset)); err != nil {
			return fmt.Errorf("clock: %w", err)
		}
		if !first {
			c.tell(event.ClockJumped, event.Warning, "the clock was behind the time servers and was set", agreed...)
		}
	}
	c.refused, c.set = false, true
	if first {
		c.tell(event.ClockSet, event.Notice, "the clock is set by the time servers, "+c.vouched, agreed...)
	}
	return nil
}

// keep asks again and again, and at once when the clock moves by itself.
func (c *clock) keep(ctx context.Context) {
	wall := c.now()
	for {
		wait := syncEvery
		if c.silent {
			wait = syncAgain
		}
		next := time.Now().Add(wait)
		for time.Now().Before(next) {
			select {
			case <-ctx.Done():
				return
			case <-time.After(lookEvery):
			}
			now := c.now()
			moved := jump(wall, now)
			wall = now
			if moved.Abs() >= jumpNotice {
				c.tell(event.ClockJumped, event.Warning, "the clock jumped", slog.Duration("by", moved))
				break
			}
		}
		if err := c.raise(); err != nil {
			c.tell(event.ClockUnset, event.Error, "the clock cannot be set", slog.String("error", err.Error()))
		}
		limited, cancel := context.WithTimeout(ctx, c.limit)
		err := c.sync(limited)
		cancel()
		if err != nil {
			c.tell(event.ClockUnset, event.Error, "the clock cannot be set", slog.String("error", err.Error()))
		}
		wall = c.now()
	}
}

// jump is by how much the wall clock went further than the monotonic one.
func jump(from, to time.Time) time.Duration {
	return to.Round(0).Sub(from.Round(0)) - to.Sub(from)
}

func (c *clock) tell(id event.ID, s event.Severity, text string, attrs ...slog.Attr) {
	c.say(event.Event{Time: c.now(), ID: id, Severity: s, Text: text, Attrs: attrs})
}

func stepClock(t time.Time) error {
	tv := unix.NsecToTimeval(t.UnixNano())
	return unix.Settimeofday(&tv)
}

// slewClock lets the clock run up to 0.5 ms a second faster or slower until d
// is made up for, as adjtime(3) does.
func slewClock(d time.Duration) error {
	const offsetSingleshot = 0x8001 // ADJ_OFFSET_SINGLESHOT of linux/timex.h
	_, err := unix.Adjtimex(&unix.Timex{Modes: offsetSingleshot, Offset: d.Microseconds()})
	return os.NewSyscallError("adjtimex", err)
}
