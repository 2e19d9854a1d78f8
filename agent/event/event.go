// Package event gives the guest's log its stable ids. An Event goes to the
// owner (the log host, who may see names) and never to the console.
//
// Not promised: delivery. Events from before the log host is reachable wait in
// a bounded buffer; what overflows is counted and the count is delivered.
package event

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// ID names a kind of event for ever: scripts at the log host match on it.
type ID string

// The ids in use.
const (
	Log                 ID = "log" // free text of the agent's own logger
	LogProbe            ID = "log.probe"
	LogReconnected      ID = "log.reconnected"
	LogLost             ID = "log.lost"
	LogKept             ID = "log.kept"
	LogCounters         ID = "log.counters"
	StreamEnded         ID = "stream.ended"
	StreamBroken        ID = "stream.broken"
	PhaseStarted        ID = "phase.started"
	PhaseEnded          ID = "phase.ended"
	PhaseFailed         ID = "phase.failed"
	Verdict             ID = "boot.verdict"
	ContractWarning     ID = "contract.warning"
	ContractVerified    ID = "contract.verified"
	ImageVerified       ID = "image.verified"
	PortOpened          ID = "port.opened"
	LinkChanged         ID = "link.changed"
	ClockSet            ID = "clock.set"
	ClockUnset          ID = "clock.unset"
	ClockJumped         ID = "clock.jumped"
	CertificateExpiry   ID = "certificate.expiry"
	CertificateReplaced ID = "certificate.replaced"
	VolumeOpened        ID = "volume.opened"
	VolumeRolled        ID = "volume.rolled"
	VolumeCreated       ID = "volume.created"
	VolumeChecked       ID = "volume.checked"
	ScratchOpened       ID = "scratch.opened"
	RecordSigned        ID = "record.signed"
	ChildEnded          ID = "child.ended"
	Stopping            ID = "guest.stopping"
)

// Severity is that of RFC 5424 §6.2.1.
type Severity int

// The severities in use.
const (
	Error   Severity = 3
	Warning Severity = 4
	Notice  Severity = 5
	Info    Severity = 6
	Debug   Severity = 7
)

// Event is one line for the owner. Text is a constant sentence; Attrs carry
// what varies.
type Event struct {
	Time     time.Time
	ID       ID
	Severity Severity
	Text     string
	Attrs    []slog.Attr
}

// Line renders the event as one line: text, then key=value with quoted values.
func (e Event) Line() string {
	var b strings.Builder
	b.WriteString(e.Text)
	for _, a := range e.Attrs {
		writeAttr(&b, "", a)
	}
	return b.String()
}

func writeAttr(b *strings.Builder, prefix string, a slog.Attr) {
	v := a.Value.Resolve()
	if v.Kind() == slog.KindGroup {
		for _, sub := range v.Group() {
			writeAttr(b, prefix+a.Key+".", sub)
		}
		return
	}
	fmt.Fprintf(b, " %s%s=%q", prefix, a.Key, v.String())
}

// Sink takes events; it must not block.
type Sink func(Event)

// maxPending bounds what waits for the first sink.
const maxPending = 1024

// Hub fans events out to its sinks. The zero value is ready to use.
type Hub struct {
	mu      sync.Mutex
	sinks   []Sink
	pending []Event
	lost    int
}

// Emit delivers e to every sink, or keeps it for the first one to come.
func (h *Hub) Emit(e Event) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.sinks) == 0 {
		if len(h.pending) == maxPending {
			h.lost++
			return
		}
		h.pending = append(h.pending, e)
	}
	for _, s := range h.sinks {
		s(e)
	}
}

// Attach adds a sink; the first one receives what was pending.
func (h *Hub) Attach(s Sink) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.pending {
		s(e)
	}
	if h.lost > 0 {
		s(Event{Time: time.Now(), ID: Log, Severity: Warning, Text: "early events were dropped", Attrs: []slog.Attr{slog.Int("count", h.lost)}})
	}
	h.pending, h.lost = nil, 0
	h.sinks = append(h.sinks, s)
}

// Logger is a slog.Logger whose records become events with the id Log.
func (h *Hub) Logger() *slog.Logger { return slog.New(&handler{hub: h}) }

type handler struct {
	hub   *Hub
	attrs []slog.Attr
	group string
}

func (h *handler) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }

func (h *handler) Handle(_ context.Context, r slog.Record) error {
	e := Event{Time: r.Time, ID: Log, Severity: severity(r.Level), Text: r.Message, Attrs: h.attrs[:len(h.attrs):len(h.attrs)]}
	r.Attrs(func(a slog.Attr) bool {
		e.Attrs = append(e.Attrs, h.qualify(a))
		return true
	})
	h.hub.Emit(e)
	return nil
}

func (h *handler) WithAttrs(as []slog.Attr) slog.Handler {
	n := &handler{hub: h.hub, attrs: h.attrs[:len(h.attrs):len(h.attrs)], group: h.group}
	for _, a := range as {
		n.attrs = append(n.attrs, h.qualify(a))
	}
	return n
}

func (h *handler) WithGroup(name string) slog.Handler {
	return &handler{hub: h.hub, attrs: h.attrs, group: h.group + name + "."}
}

func (h *handler) qualify(a slog.Attr) slog.Attr {
	a.Key = h.group + a.Key
	return a
}

func severity(l slog.Level) Severity {
	switch {
	case l >= slog.LevelError:
		return Error
	case l >= slog.LevelWarn:
		return Warning
	case l >= slog.LevelInfo:
		return Info
	}
	return Debug
}
