package scenario

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"hpcr/initramfs/qemu"
	"hpcr/test/peers"
)

// Direct is a guest whose event port the scenario holds itself, for what
// hpcrctl run does not offer: commands to a running guest, and the raw events.
type Direct struct {
	Guest

	lab *Lab
	vm  *qemu.VM
	raw strings.Builder
	id  int
}

// Event is one of a dev image's.
type Event struct {
	T         string   `json:"t"`
	Verdict   string   `json:"verdict"`
	Codes     []string `json:"codes"`
	Message   string   `json:"message"`
	Ordered   bool     `json:"ordered"`
	ID        int      `json:"id"`
	OK        bool     `json:"ok"`
	Killed    int      `json:"killed"`
	Text      string   `json:"text"`
	Name      string   `json:"name"`
	Processes []struct {
		Name string `json:"name"`
		PID  int    `json:"pid"`
		PSS  int    `json:"pssKiB"`
	} `json:"processes"`
	Pages []Page `json:"pages"`
}

// Direct boots the lab's image to ready. The test's end kills what still runs.
func (l *Lab) Direct(t *testing.T, userData string, publish ...int) *Direct {
	t.Helper()
	return l.direct(t, userData, qemu.Options{}, publish, nil)
}

// DirectBare is Direct with a disk for the volume, and with memory that Search
// reads. It calls at when a phase has ended.
func (l *Lab) DirectBare(t *testing.T, userData, disk string, at func(d *Direct, phase string)) *Direct {
	t.Helper()
	return l.direct(t, userData, qemu.Options{Bare: true, Disks: []qemu.Disk{{Serial: Volume, File: disk}}}, nil, at)
}

// DirectMachine is Direct on a machine of the scenario's own making.
func (l *Lab) DirectMachine(t *testing.T, userData string, o qemu.Options, publish ...int) *Direct {
	t.Helper()
	return l.direct(t, userData, o, publish, nil)
}

func (l *Lab) direct(t *testing.T, userData string, o qemu.Options, publish []int, at func(*Direct, string)) *Direct {
	t.Helper()
	o.Image = l.Image(t)
	d := l.start(t, userData, o, publish)
	d.Await(t, "hello")
	must(t, d.vm.Send(map[string]string{"cmd": "go"}))
	for {
		switch e := d.Await(t, "phase", "verdict"); {
		case e.T == "verdict" && e.Verdict != "ready":
			t.Fatalf("verdict %s: %s\n%s", e.Verdict, e.Message, tail(d.Console(t)))
		case e.T == "verdict":
			return d
		case at != nil:
			at(d, e.Name)
		}
	}
}

// start boots an image with a contract.
func (l *Lab) start(t *testing.T, userData string, o qemu.Options, publish []int) *Direct {
	t.Helper()
	o.Cidata = filepath.Join(l.Dir, "cidata.iso")
	meta := l.File(t, "meta-data", []byte("local-hostname: "+l.Hostname()+"\n"))
	l.Hpcrctl(t, "cidata", "--user-data", userData, "--meta-data", meta, "--out", o.Cidata)
	ports := map[int]string{}
	for _, p := range publish {
		free, err := peers.ClosedPort()
		must(t, err)
		ports[p] = net.JoinHostPort(peers.Loopback, fmt.Sprint(free))
		o.Publish = append(o.Publish, qemu.Port{HostIP: peers.Loopback, Host: free, Guest: p})
	}
	d := l.machine(t, o)
	d.ports = ports
	return d
}

// machine boots an image. The test's end kills what still runs.
func (l *Lab) machine(t *testing.T, o qemu.Options) *Direct {
	t.Helper()
	// Sockets want a short path.
	dir, err := os.MkdirTemp("", "hpcr-test-")
	must(t, err)
	o.Dir = dir
	d := &Direct{lab: l}
	d.vm, err = qemu.Start(t.Context(), o)
	must(t, err)
	t.Cleanup(func() {
		d.vm.Kill()
		<-d.vm.Done()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return d
}

// Dial connects to a vsock port of the guest, as its host.
func (d *Direct) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	return d.vm.DialVsock(ctx, port)
}

// Await reads events until one of these kinds comes.
func (d *Direct) Await(t *testing.T, kinds ...string) Event {
	t.Helper()
	limit := time.After(defaultLimit)
	for {
		select {
		case raw, open := <-d.vm.Events():
			if !open {
				t.Fatalf("the guest went off before its %s\n%s", kinds, tail(d.Console(t)))
			}
			d.raw.Write(append(raw, '\n'))
			var e Event
			if err := json.Unmarshal(raw, &e); err != nil {
				t.Fatalf("event %s: %v", raw, err)
			}
			if slices.Contains(kinds, e.T) {
				return e
			}
		case <-limit:
			t.Fatalf("no %s within %s\n%s", kinds, defaultLimit, tail(d.Console(t)))
		}
	}
}

// Command sends a command to the guest and returns its reply.
func (d *Direct) Command(t *testing.T, cmd, child string) Event {
	t.Helper()
	return d.ask(t, map[string]any{"cmd": cmd, "child": child})
}

func (d *Direct) ask(t *testing.T, command map[string]any) Event {
	t.Helper()
	d.id++
	command["id"] = d.id
	must(t, d.vm.Send(command))
	for {
		if e := d.Await(t, "reply"); e.ID == d.id {
			return e
		}
	}
}

// Read is the content of one of the guest's files, or where a link of its
// /proc leads.
func (d *Direct) Read(t *testing.T, path string) string {
	t.Helper()
	return d.Command(t, "read", path).Text
}

// Type types on the guest's console as its host, then sends a break.
func (d *Direct) Type(t *testing.T, keys string) {
	t.Helper()
	must(t, d.vm.Type(t.Context(), []byte(keys)))
}

// Events is what the guest has said so far, a JSON object a line.
func (d *Direct) Events() string { return d.raw.String() }

// Stop asks the guest to stop, expects that it does so in order, and that
// neither console nor events show what no host may see.
func (d *Direct) Stop(t *testing.T) {
	t.Helper()
	must(t, d.vm.Powerdown(t.Context()))
	if e := d.Await(t, "off"); !e.Ordered {
		t.Errorf("the guest did not stop in order\n%s", tail(d.Console(t)))
	}
	d.off(t, 30*time.Second)
}

// off expects a clean end.
func (d *Direct) off(t *testing.T, limit time.Duration) {
	t.Helper()
	select {
	case <-d.vm.Done():
	case <-time.After(limit):
		t.Errorf("the guest is not off after %s", limit)
	}
	console := d.Console(t)
	if found := errorCode.FindString(console); found != "" {
		t.Errorf("%s on the console of a guest that is ready\n%s", found, console)
	}
	d.lab.Clean(t, "console", console)
	d.lab.Clean(t, "event port", d.raw.String())
}

func (d *Direct) Console(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(d.vm.Console())
	must(t, err)
	return string(text)
}
