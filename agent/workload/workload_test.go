package workload

import (
	"strings"
	"testing"
)

func TestPullAndStart(t *testing.T) {
	b := newBench(t)
	ref := b.hub.push(t, "team/app", busybox(t, nil))
	w := b.up(t, `
services:
  web:
    image: `+ref+`
    network_mode: none
    environment: {GREETING: "hello there"}
    command: ["sh", "-c", "echo $$GREETING $$FROM_IMAGE; echo oops >&2; exec sleep 1000"]
`)
	waitFor(t, "output", func() bool { return strings.Contains(b.out.get("web!"), "oops") })
	if got := b.out.get("web"); got != "hello there yes\n" {
		t.Errorf("output %q", got)
	}
	st := w.Services()
	if len(st) != 1 || st[0].Phase != Running || st[0].Pid == 0 || !alive(st[0].Pid) {
		t.Errorf("state %+v", st)
	}
}
