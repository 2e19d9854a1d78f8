package workload

import (
	"strings"
	"testing"
)

func TestContainerCannot(t *testing.T) {
	b := newBench(t)
	ref := b.hub.push(t, "app", busybox(t, nil))
	b.up(t, `
services:
  plain:
    image: `+ref+`
    network_mode: none
    command: [/probe]
    volumes: ["`+lab+`/probe:/probe:ro"]
  user:
    image: `+ref+`
    network_mode: none
    user: "1234"
    command: [/probe]
    volumes: ["`+lab+`/probe:/probe:ro"]
  powerful:
    image: `+ref+`
    network_mode: none
    privileged: true
    command: [/probe]
    volumes: ["`+lab+`/probe:/probe:ro"]
`)
	for _, s := range []string{"plain", "user", "powerful"} {
		waitFor(t, "probe "+s, func() bool { return strings.Contains(b.out.get(s), "end of the probe") })
	}
	for _, s := range []string{"plain", "user"} {
		for line := range strings.Lines(b.out.get(s)) {
			if strings.Contains(line, "DONE") {
				t.Errorf("%s: %s", s, line)
			}
		}
		for _, want := range []string{"NoNewPrivs:\t1", "Seccomp:\t2", "0::/ <nil>"} {
			if !strings.Contains(b.out.get(s), want) {
				t.Errorf("%s: no %q in %s", s, want, b.out.get(s))
			}
		}
	}
	// Docker's set without CAP_MKNOD.
	if !strings.Contains(b.out.get("plain"), "CapEff:\t00000000a00425fb") || !strings.Contains(b.out.get("user"), "CapEff:\t0000000000000000") {
		t.Errorf("capabilities: %s %s", b.out.get("plain"), b.out.get("user"))
	}
	if out := b.out.get("powerful"); !strings.Contains(out, "vsock: refused") || !strings.Contains(out, "device console: refused") || !strings.Contains(out, "mount: DONE") {
		t.Errorf("a privileged container has too much or too little: %s", out)
	}
}
