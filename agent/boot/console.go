package boot

import (
	"fmt"
	"io"
	"sync"
	"time"

	"hpcr/agent/hpl"
)

// Console is the one way to the host's eyes. Whatever goes in here is public:
// catalogue text, JSON paths, constants.
type Console struct {
	mu     sync.Mutex
	out    io.Writer
	pid    int
	coarse bool // release images: durations in whole seconds
}

// NewConsole writes to out as process pid.
func NewConsole(out io.Writer, pid int, coarse bool) *Console {
	return &Console{out: out, pid: pid, coarse: coarse}
}

func (c *Console) line(s string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	// A console that takes no more bytes must not stop the boot, and there is
	// no other place to report it to.
	if _, err := io.WriteString(c.out, s+"\n"); err != nil {
		c.out = io.Discard
	}
}

// Bootloader prints a line of HPCR's bootloader: "# text".
func (c *Console) Bootloader(text string) { c.line("# " + text) }

// Raw prints a line without a prefix.
func (c *Console) Raw(text string) { c.line(text) }

// Unit prints a line under one of HPCR's unit names: "unit[pid]: text".
func (c *Console) Unit(unit, text string) { c.line(fmt.Sprintf("%s[%d]: %s", unit, c.pid, text)) }

// Message prints a catalogue message under its unit.
func (c *Console) Message(code hpl.Code, path, detail string) {
	e, _ := hpl.Lookup(code)
	text := hpl.Message(code, path, detail)
	if e.Unit == "" {
		c.Bootloader(text)
		return
	}
	c.Unit(e.Unit, text)
}

// Phase prints the one short line that each phase has.
func (c *Console) Phase(r Report) {
	took := fmt.Sprintf("%.3f s", r.Took.Seconds())
	if c.coarse {
		took = fmt.Sprintf("%d s", int64(r.Took.Round(time.Second)/time.Second))
	}
	state := "done"
	if r.Err != nil {
		state = "failed"
	}
	c.Unit("hpcr-boot", fmt.Sprintf("%s %s in %s", r.Name, state, took))
}

// Ready prints the good verdict, as operators' tools look for it.
func (c *Console) Ready() {
	c.Unit("hpcr-catch-success", "VSI has started successfully.")
	c.Unit("hpcr-catch-success", hpl.Message("HPL10001I", "", ""))
}

// Failed prints the bad verdict: the failure's own line, then, unless HPCR's
// bootloader would have failed, the lines of HPCR's catch-failure unit.
func (c *Console) Failed(e *hpl.Error, bootloader bool) {
	c.Message(e.Code, e.Path, e.Detail)
	if bootloader && e.Code.Bootloader() {
		return
	}
	c.Unit("hpcr-catch-failure", "VSI has failed to start!")
	c.Unit("hpcr-catch-failure", hpl.Message("HPL10000E", "", ""))
}
