package boot

import (
	"context"
	"fmt"
	"time"

	"hpcr/agent/attest"
	"hpcr/agent/event"
	"hpcr/agent/hpl"
	"hpcr/contract"
)

// certificate is one whose end a running guest speaks of, to its owner only.
type certificate struct {
	name     string                   // of the file or field, ours
	schedule func() contract.Schedule // of the certificate that there is now
	valid    hpl.Code                 // "" = nothing to say while the end is far
	ending   hpl.Code
	ended    hpl.Code
	plain    bool // an identity of the contract's: HPCR has no codes for it
}

// always is the schedule of a certificate that nothing replaces.
func always(s contract.Schedule) func() contract.Schedule {
	return func() contract.Schedule { return s }
}

// notice is what there is to say at a time; ok is false for nothing.
func (c certificate) notice(now time.Time) (e event.Event, ok bool) {
	code, severity, end, schedule := c.valid, event.Info, "ends", c.schedule()
	switch {
	case now.After(schedule.End):
		code, severity, end = c.ended, event.Warning, "has ended"
	case schedule.Near(now):
		code, severity = c.ending, event.Warning
	}
	if c.plain {
		return event.Event{Time: now, ID: event.CertificateExpiry, Severity: severity,
			Text: fmt.Sprintf("the %s certificate %s on %s", c.name, end, attest.ValidUntil(schedule.End))}, severity == event.Warning
	}
	text := hpl.Message(code, "", fmt.Sprintf("the %s certificate %s on %s", c.name, end, attest.ValidUntil(schedule.End)))
	return event.Event{Time: now, ID: event.CertificateExpiry, Severity: severity, Text: text}, code != ""
}

// watch speaks at once and then by the schedule. The clock may be set while it
// waits, so it looks at it every hour at least.
func (c certificate) watch(ctx context.Context, clock func() time.Time, say event.Sink) {
	for {
		now := clock()
		if e, ok := c.notice(now); ok {
			say(e)
		}
		next := c.schedule().Next(now)
		for now = clock(); now.Before(next); now = clock() {
			select {
			case <-ctx.Done():
				return
			case <-time.After(min(next.Sub(now), time.Hour)):
			}
		}
	}
}

// watchCertificates speaks of the ends of the certificates for as long as the
// guest runs.
func (g *Guest) watchCertificates(ctx context.Context) {
	for _, c := range g.ends {
		go c.watch(ctx, g.now, g.Hub.Emit)
	}
}
