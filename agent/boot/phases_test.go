package boot

import (
	"bytes"
	"slices"
	"testing"

	"hpcr/agent/event"
	"hpcr/agent/hpl"
)

// TestPhases holds the list to the order of the security argument.
func TestPhases(t *testing.T) {
	g := NewGuest(Config{Console: NewConsole(&bytes.Buffer{}, 1, false), Hub: &event.Hub{}})
	phases := g.Phases()
	r := Runner{Phases: phases}
	if err := r.Check(); err != nil {
		t.Fatal(err)
	}
	needs := map[string][]string{} // phase → all phases that have ended before it
	for i, p := range phases {
		after := p.After
		if after == nil && i > 0 {
			after = []string{phases[i-1].Name}
		}
		for _, a := range after {
			needs[p.Name] = append(append(needs[p.Name], a), needs[a]...)
		}
		if e, ok := hpl.Lookup(p.Code); !ok || !e.Fatal {
			t.Errorf("%s: %s is no failure of the catalogue", p.Name, p.Code)
		}
	}
	for _, order := range [][2]string{
		{"interlock", "cidata"}, {"firewall", "cidata"}, {"entropy", "contract"},
		{"contract", "keys"}, {"keys", "network"}, {"lockdown", "network"}, {"time", "expiry"}, {"expiry", "logging"},
		{"logging", "store"}, {"lockdown", "store"}, {"store", "disks"}, {"store", "containerd"}, {"disks", "record"}, {"images", "record"}, {"record", "seal"}, {"seal", "pull"}, {"pull", "containers"}, {"containers", "ready"},
	} {
		if !slices.Contains(needs[order[1]], order[0]) {
			t.Errorf("%s may run before %s", order[1], order[0])
		}
	}
}
