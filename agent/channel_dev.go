//go:build dev

package agent

import (
	"bufio"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"hpcr/agent/boot"
	"hpcr/agent/hpl"
)

// portName is the virtio-serial port of dev images: JSON lines both ways.
const portName = "org.hpcr.events"

// kill asks for a child's death when a phase starts.
type kill struct {
	Phase string `json:"phase"`
	Child string `json:"child"`
}

// command is what the host may send.
type command struct {
	ID    int      `json:"id"`
	Cmd   string   `json:"cmd"`   // go, kill, memory, pages, read, stop
	Child string   `json:"child"` // read: a path
	Kill  []kill   `json:"kill"`
	Pages []uint64 `json:"pages"`
}

// port is the dev image's channel. Without the device it says nothing.
type port struct {
	mu    sync.Mutex
	f     *os.File
	kills []kill
	stop  func()
}

func openChannel(image boot.Image, stop func()) channel {
	p := &port{stop: stop}
	path := findPort(time.Second)
	if path == "" {
		return p
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return p
	}
	p.f = f
	p.send(map[string]any{"t": "hello", "arch": image.Arch, "flavour": Flavour, "version": image.Version, "bootMs": sinceBoot().Milliseconds()})
	ready := make(chan struct{})
	go p.listen(ready)
	select {
	case <-ready:
	case <-time.After(2 * time.Second): // nobody listens: boot without them
	}
	return p
}

// findPort waits for the driver to have found the port.
func findPort(limit time.Duration) string {
	for end := time.Now().Add(limit); ; time.Sleep(10 * time.Millisecond) {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return ""
		}
		for _, n := range names {
			b, err := os.ReadFile(n)
			if err == nil && strings.TrimSpace(string(b)) == portName {
				return filepath.Join("/dev", filepath.Base(filepath.Dir(n)))
			}
		}
		if time.Now().After(end) {
			return ""
		}
	}
}

func sinceBoot() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

func (p *port) send(v any) {
	if p.f == nil {
		return
	}
	b, err := json.Marshal(v)
	if err != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	// With nobody at the other end the driver would block for ever.
	if p.f.SetWriteDeadline(time.Now().Add(200*time.Millisecond)) != nil {
		return
	}
	if _, err := p.f.Write(append(b, '\n')); err != nil {
		return // the event is lost, the boot is not
	}
}

func (p *port) listen(ready chan struct{}) {
	var once sync.Once
	in := bufio.NewScanner(p.f)
	for in.Scan() {
		var c command
		if json.Unmarshal(in.Bytes(), &c) != nil {
			continue
		}
		reply := map[string]any{"t": "reply", "id": c.ID, "ok": true}
		switch c.Cmd {
		case "go":
			p.kills = c.Kill
			once.Do(func() { close(ready) })
			continue
		case "kill":
			reply["killed"] = killNow(c.Child)
		case "memory":
			reply["processes"] = memory()
		case "pages":
			reply["pages"] = owners(c.Pages)
		case "read":
			reply["text"] = readState(c.Child)
		case "stop":
			p.stop()
		default:
			reply["ok"] = false
		}
		p.send(reply)
	}
}

func (p *port) phaseStarted(name string) {
	p.send(map[string]any{"t": "phase-start", "name": name})
	for _, k := range p.kills {
		if k.Phase == name {
			go killSoon(k.Child)
		}
	}
}

func (p *port) phaseEnded(r boot.Report) {
	p.send(map[string]any{"t": "phase", "name": r.Name, "startMs": r.Start.Milliseconds(), "ms": r.Took.Milliseconds(), "ok": r.Err == nil})
}

func (p *port) verdict(ready bool, codes []hpl.Code, message string, after time.Duration) {
	v := "failed"
	if ready {
		v = "ready"
	}
	p.send(map[string]any{"t": "verdict", "verdict": v, "codes": codes, "message": message, "readyMs": after.Milliseconds()})
}

func (p *port) stopping()        { p.send(map[string]any{"t": "stopping"}) }
func (p *port) off(inOrder bool) { p.send(map[string]any{"t": "off", "ordered": inOrder}) }
