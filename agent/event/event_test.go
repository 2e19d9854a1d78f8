package event

import (
	"log/slog"
	"testing"

	"hpcr/agent/secret"
)

func TestHubKeepsEarlyEventsInOrder(t *testing.T) {
	var h Hub
	h.Emit(Event{ID: PhaseStarted, Text: "one"})
	h.Logger().With("a", 1).WithGroup("g").Warn("two", "b", "x\ny", "s", secret.FromString("hide"))
	var got []string
	h.Attach(func(e Event) { got = append(got, e.Line()) })
	h.Emit(Event{ID: Log, Text: "three"})
	want := []string{"one", `two a="1" g.b="x\ny" g.s="[secret]"`, "three"}
	if len(got) != len(want) {
		t.Fatalf("got %q", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("got %q, want %q", got[i], want[i])
		}
	}
}

func TestHubIsBounded(t *testing.T) {
	var h Hub
	for range maxPending + 7 {
		h.Emit(Event{Text: "x"})
	}
	var last Event
	n := 0
	h.Attach(func(e Event) { last = e; n++ })
	if n != maxPending+1 || last.Line() != `early events were dropped count="7"` {
		t.Errorf("%d events, last %q", n, last.Line())
	}
	h.Attach(func(e Event) { t.Errorf("a later sink got an old event: %q", e.Line()) })
}

func TestLoggerSeverity(t *testing.T) {
	var h Hub
	var got Severity
	h.Attach(func(e Event) { got = e.Severity })
	for l, want := range map[slog.Level]Severity{slog.LevelError: Error, slog.LevelWarn: Warning, slog.LevelInfo: Info} {
		h.Logger().Log(t.Context(), l, "x")
		if got != want {
			t.Errorf("%v: got %d, want %d", l, got, want)
		}
	}
}
