//go:build linux

package compose

import (
	"testing"

	"github.com/moby/sys/signal"
)

// Claim: lint lets those signals pass that the guest knows, and no others.
func TestSignalsAreThoseThatTheGuestKnows(t *testing.T) {
	for name := range signal.SignalMap {
		if !signalKnown(name) || !signalKnown("SIG"+name) {
			t.Errorf("%s is refused, but the guest knows it", name)
		}
	}
	for _, text := range append(signals, "SIGTERM", "sigusr1", "15", "64", "RTMIN+3", "SIGRTMAX-2") {
		if _, err := signal.ParseSignal(text); err != nil || !signalKnown(text) {
			t.Errorf("%s: the guest says %v, lint %t", text, err, signalKnown(text))
		}
	}
	for _, text := range []string{"SIGFOO", "TERMX", "0", "65", "-9", "RTMIN+16", "RTMAX-15", "RTMIN+01", ""} {
		if signalKnown(text) {
			t.Errorf("%q is accepted", text)
		}
	}
}
