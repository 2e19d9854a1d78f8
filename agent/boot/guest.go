package boot

import (
	"context"
	"log/slog"
	"os"
	"sync"
	"time"

	"hpcr/agent/attest"
	"hpcr/agent/event"
	"hpcr/agent/health"
	"hpcr/agent/logship"
	"hpcr/agent/storage"
	"hpcr/agent/workload"
	"hpcr/contract"
	"hpcr/disk"
	"hpcr/network"
)

// Config is what the agent gives a boot.
type Config struct {
	Image     Image
	Console   *Console
	Hub       *event.Hub
	Health    *health.State
	Interlock func() error // refuses to go on outside Secure Execution
	Dev       bool
}

// Guest is what a boot builds up, phase by phase. A field is written by one
// phase and read by phases after it.
type Guest struct {
	Config
	log     *slog.Logger
	modules *modules
	record  *attest.Record
	floor   time.Time // the clock is never believed below it

	cidata       []byte // whole device; dropped after the contract phase
	cidataDevice string
	policy       contract.Policy
	verified     *contract.Verified
	plan         *contract.Plan // of verified
	ends         []certificate

	net       *network.Net
	ship      *logship.Shipper // nil = no logging
	logKept   bool             // messages are left to the next boot
	logFolder bool             // messages may wait in contract.LogStore
	kernel    *os.File         // its messages
	volumes   []*disk.Volume

	disksEnd    chan struct{}   // closed when phase disks has ended
	scratchDisk bool            // a disk has its serial
	scratch     *disk.Volume    // open; nil = the store is in memory
	imageDisk   bool            // a disk has its serial
	images      *storage.Images // nil = none, or no longer needed

	stop func() // of the containerd daemon
	work *workload.Workload
	tls  endpoints

	mu         sync.Mutex
	bootloader bool // HPCR's bootloader part is not over yet
}

// NewGuest prepares a boot.
func NewGuest(c Config) *Guest {
	return &Guest{
		Config: c, log: c.Hub.Logger(),
		floor:  timeFloor(c.Image.Built(), keysDir+"/contract.crt", keysDir+"/attestation.crt"),
		record: attest.NewRecord(c.Image.Version), bootloader: true, disksEnd: make(chan struct{}),
	}
}

// InBootloader says whether the boot is still in the part that HPCR's
// bootloader does.
func (g *Guest) InBootloader() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.bootloader
}

// endBootloader marks the border, for init too.
func (g *Guest) endBootloader(marker string) error {
	g.mu.Lock()
	g.bootloader = false
	g.mu.Unlock()
	g.Console.Bootloader("HPL11099I: bootloader end") // the console's spelling
	return os.WriteFile(marker, nil, 0o600)
}

// note records an event for the owner.
func (g *Guest) note(id event.ID, s event.Severity, text string, attrs ...slog.Attr) {
	g.Hub.Emit(event.Event{ID: id, Severity: s, Text: text, Attrs: attrs})
}

// Drain gives the log a bounded time to deliver what it holds.
func (g *Guest) Drain(limit time.Duration) {
	if g.ship == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := g.ship.Drain(ctx); err != nil {
		g.log.Warn("the log was not delivered in full", "error", err)
	}
}
