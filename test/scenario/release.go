package scenario

import (
	"strings"
	"testing"
	"time"

	"hpcr/initramfs/qemu"
)

// Release is a guest of a release image: it has no event port, so what it says
// on its console is all there is, beside health on vsock.
type Release struct{ *Direct }

// Release boots a release image to ready.
func (l *Lab) Release(t *testing.T, image, userData string, publish ...int) *Release {
	t.Helper()
	r := &Release{l.start(t, userData, qemu.Options{Image: image, Vsock: true}, publish)}
	// Whatever a dev image would take as its start is offered, to no one.
	must(t, r.vm.Send(map[string]string{"cmd": "go"}))
	r.awaitConsole(t, "HPL10001I")
	return r
}

// awaitConsole waits for a text on the console, or for the guest's failure.
func (d *Direct) awaitConsole(t *testing.T, text string) {
	t.Helper()
	for end := time.Now().Add(defaultLimit); ; time.Sleep(100 * time.Millisecond) {
		console := d.Console(t)
		if strings.Contains(console, text) {
			return
		}
		select {
		case <-d.vm.Done():
			t.Fatalf("the guest went off before %q\n%s", text, tail(console))
		default:
		}
		if time.Now().After(end) {
			t.Fatalf("no %q within %s\n%s", text, defaultLimit, tail(console))
		}
	}
}

// Stop asks the guest to stop, expects that it does so in order, that it never
// used the event port, and that the console shows nothing that no host may see.
func (r *Release) Stop(t *testing.T) (console string) {
	t.Helper()
	must(t, r.vm.Powerdown(t.Context()))
	r.off(t, 2*time.Minute)
	for e := range r.vm.Events() {
		t.Errorf("a release image said %s on the event port", e)
	}
	console = r.Console(t)
	if !strings.Contains(console, "\n# stopped") {
		t.Errorf("the guest did not stop in order\n%s", tail(console))
	}
	return console
}

// Paused boots an image without a contract, stops its processors for a while
// when the console shows text, and returns the whole console.
func (l *Lab) Paused(t *testing.T, image, text string, pause time.Duration) string {
	t.Helper()
	d := l.machine(t, qemu.Options{Image: image})
	d.awaitConsole(t, text)
	d.Pause(t, pause)
	d.off(t, defaultLimit)
	return d.Console(t)
}

// Pause stops the guest's processors for a while.
func (d *Direct) Pause(t *testing.T, pause time.Duration) {
	t.Helper()
	must(t, d.vm.Pause(t.Context()))
	time.Sleep(pause)
	must(t, d.vm.Resume(t.Context()))
}
