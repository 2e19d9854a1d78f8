package workload

import (
	"os"
	"strings"
	"testing"
	"time"

	"hpcr/contract/compose"
)

func TestShareOfTheStop(t *testing.T) {
	const s = time.Second
	for name, tt := range map[string]struct{ own, below, left, want time.Duration }{
		"enough for all":            {10 * s, 20 * s, 55 * s, 10 * s},
		"just enough":               {10 * s, 20 * s, 30 * s, 10 * s},
		"a long one above short":    {90 * s, 10 * s, 50 * s, 45 * s},
		"a short one above long":    {10 * s, 90 * s, 50 * s, 5 * s},
		"nothing left":              {10 * s, 10 * s, -3 * s, 0},
		"no grace":                  {0, 90 * s, 50 * s, 0},
		"alone, and longer than it": {3600 * s, 0, 55 * s, 55 * s},
	} {
		t.Run(name, func(t *testing.T) {
			if got := share(tt.own, tt.below, tt.left); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func TestBelow(t *testing.T) {
	one := func(name string, grace time.Duration, on ...string) *service {
		def := &compose.Service{Name: name, StopGrace: grace}
		for _, d := range on {
			def.DependsOn = append(def.DependsOn, compose.Dependency{Service: d})
		}
		return &service{def: def}
	}
	got := below([]*service{
		one("db", 30), one("cache", 5), one("app", 10, "db", "cache"), one("web", 1, "app", "not there"),
	})
	for name, want := range map[string]time.Duration{"db": 0, "cache": 0, "app": 30, "web": 40} {
		if got[name] != want {
			t.Errorf("%s: %d, want %d", name, got[name], want)
		}
	}
}

// A volume may lie in a folder of a contract's volume: it is made, filled from
// the image as any new volume, and what is in it stays.
func TestVolumeInAFolder(t *testing.T) {
	b := newBench(t)
	ref := b.hub.push(t, "app", busybox(t, nil))
	text := `
services:
  keeper:
    image: ` + ref + `
    network_mode: none
    volumes: ["state:/data"]
    command: [sh, -c, "cat /data/shipped; echo more >> /data/shipped"]
volumes: {state: {driver_opts: {type: none, o: bind, device: ` + b.dir + `/mnt/a/b}}}
`
	for boot, want := range []string{"from the image\n", "from the image\nfrom the image\nmore\n"} {
		w := b.up(t, text)
		waitFor(t, "its end", func() bool { return w.Services()[0].Phase == Exited })
		b.down(t, w)
		if got := b.out.get("keeper"); got != want {
			t.Errorf("boot %d read %q, want %q", boot+1, got, want)
		}
	}
	kept, err := os.ReadFile(b.dir + "/mnt/a/b/shipped")
	if err != nil || string(kept) != "from the image\nmore\nmore\n" {
		t.Errorf("kept %q: %v", kept, err)
	}
}

// A service in another one's network has its localhost, address, name and
// resolver.
func TestSharedNetwork(t *testing.T) {
	b := newBench(t)
	ref := b.hub.push(t, "app", busybox(t, nil))
	o := b.options(t, project(t, `
services:
  side:
    image: `+ref+`
    network_mode: service:main
    restart: on-failure
    stop_grace_period: 100ms
    command: [sh, -c, "wget -q -O - http://127.0.0.1/index.html || exit 1; hostname; grep main /etc/hosts; cat /etc/resolv.conf"]
  main:
    image: `+ref+`
    stop_grace_period: 100ms
    command: [sh, -c, "mkdir -p /tmp/w; echo a page > /tmp/w/index.html; exec httpd -f -p 80 -h /tmp/w -u 1234"]
`, nil))
	o.NewBridge = func(bool) (Bridge, error) {
		return &wire{t: t, next: 50, asked: map[string][]string{}}, nil
	}
	w, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.down(t, w) })
	const want = "a page\nmain\n10.77.51.2\tmain\nnameserver 10.77.0.1\n"
	waitFor(t, "what the side sees", func() bool { return strings.HasSuffix(b.out.get("side"), want) })
}
