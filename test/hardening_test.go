//go:build vm

package test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"hpcr/initramfs/qemu"
	"hpcr/test/peers"
	"hpcr/test/scenario"
)

var hardeningScenarios = []scenario.Scenario{{
	Name:     "the guest's walls hold against a privileged container",
	Attacker: "a container with every privilege that a contract can give, one beside it on the guest's network and process numbers, and a host that types on the console, attaches a random number generator, and asks on vsock for more than health",
	Claim: "Each row of docs/hardening.md: the state is what it says, read by the guest itself, and what the container tries against it " +
		"fails with the error it says. What a privileged container is used for still works. On vsock the host gets health and nothing else. The guest answers and stops in order after all that.",
	Tier:  scenario.Core,
	Archs: scenario.Both,
	Cost:  36 * time.Second,
	Run:   wallsHold,
}}

func wallsHold(t *testing.T, lab *scenario.Lab) {
	image := wallsImage(t, lab)
	c := lab.Small(t)
	c.Env.Logging = peers.SyslogTo(lab.LogHost.Port(), lab.LogCA, lab.LogClient)
	c.Workload.Compose = lab.Compose(t, fmt.Sprintf(`services:
  canarypowerful:
    image: %[1]s
    privileged: true
    command: [serve, "8080", none]
    ports: ["8080:8080"]
    volumes: ["/var/hyperprotect:/var/hyperprotect"]
  canarybeside:
    image: %[1]s
    network_mode: host
    pid: host
    command: [try, %[2]s]
`, image, `"`+strings.Join(tries(func(w wall) map[string]string { return w.beside }), `", "`)+`"`))
	bus := map[string]string{scenario.AMD64: "pci", scenario.S390X: "ccw"}[lab.Arch]
	d := lab.DirectMachine(t, lab.Encrypt(t, c), qemu.Options{
		Typing: true, Vsock: true, Memory: 1024,
		Args: []string{"-object", "rng-builtin,id=rng", "-device", "virtio-rng-" + bus + ",rng=rng"},
	}, 8080, 9080, 22)

	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("console:\n%s", d.Console(t))
		}
	})
	numbers := map[string]string{"AGENT": fmt.Sprint(pid(t, d, "agent")), "DAEMON": fmt.Sprint(pid(t, d, "containerd"))}
	for name, w := range walls {
		for _, s := range w.state {
			path := s.path
			for word, n := range numbers {
				path = strings.ReplaceAll(path, "/"+word+"/", "/"+n+"/")
			}
			if got := d.Read(t, path); !regexp.MustCompile(s.match).MatchString(got) {
				t.Errorf("%s: %s is %.2000q, want %s", name, path, got, s.match)
			}
		}
	}

	judge := func(who string, of func(wall) map[string]string, got map[string]string, last bool) {
		for name, w := range walls {
			for attack, want := range of(w) {
				errno, tried := got[attack]
				if !tried {
					if !last {
						continue
					}
					t.Errorf("%s: %s did not try: %s", name, who, attack)
				} else if !slices.Contains(strings.Fields(want), errno) {
					t.Errorf("%s: %s tried: %s: %q, want %s", name, who, attack, errno, want)
				}
			}
		}
	}
	attacks := func(w wall) map[string]string { return w.attacks }
	got := tryAt(t, d, tries(attacks))
	for attack, errno := range tryAt(t, d, uses) {
		if errno != "" {
			t.Errorf("a privileged container %s no more: %s", attack, errno)
		}
	}
	line := logged(t, lab, "walls: {")
	beside := map[string]string{}
	if err := json.Unmarshal([]byte(line[strings.Index(line, "walls: {")+len("walls: "):]), &beside); err != nil {
		t.Errorf("%v: %s", err, line)
	}
	judge("the container beside", func(w wall) map[string]string { return w.beside }, beside, true)

	healthByVsock(t, lab, d)
	typed(t, d, lab.Arch)
	memory(t, lab, d, numbers)
	closed(t, d)

	for _, attack := range []string{"eat all memory", "fork for ever"} {
		for k, v := range tryAt(t, d, []string{attack}) {
			got[k] = v
		}
		answers(t, d, attack)
	}
	judge("the privileged container", attacks, got, true)
	d.Stop(t)
}

// wallsImage builds test/walls for the guest and pushes it.
func wallsImage(t *testing.T, lab *scenario.Lab) string {
	t.Helper()
	program := filepath.Join(lab.Dir, "walls")
	lab.Command(t, "env", "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+lab.Arch, "go", "-C", lab.Root, "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "./test/walls")
	bin, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	image, err := peers.ProgramImage(lab.Arch, bin)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := lab.Registry.Push(t.Context(), scenario.Canary+"repo/walls-"+lab.Arch, image)
	if err != nil {
		t.Fatal(err)
	}
	return lab.Registry.Guest() + "/" + ref
}

// tryAt has the privileged container try and returns what came of it.
func tryAt(t *testing.T, d *scenario.Direct, names []string) map[string]string {
	t.Helper()
	got := map[string]string{}
	text := fetchSlow(t, "http://"+d.Address(8080)+"/"+url.PathEscape(strings.Join(names, ",")))
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		t.Fatalf("%v: %q", err, text)
	}
	return got
}

// fetchSlow is fetch for an answer that takes its time.
func fetchSlow(t *testing.T, address string) string {
	t.Helper()
	client := &http.Client{Timeout: 90 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	var last error
	for end := time.Now().Add(90 * time.Second); time.Now().Before(end); time.Sleep(300 * time.Millisecond) {
		resp, err := client.Get(address)
		if last = err; err != nil {
			continue
		}
		body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
		if last = err; err == nil {
			return string(body)
		}
	}
	t.Fatalf("no answer: %v", errors.Unwrap(last))
	return ""
}

// answers expects a live guest: its agent on the event port, its health to the
// host.
func answers(t *testing.T, d *scenario.Direct, after string) {
	t.Helper()
	start := time.Now()
	if report := fetch(t, "http://"+d.Address(9080)+"/healthz"); !strings.Contains(report, `"ready":true`) {
		t.Errorf("after %q the guest's health is %q", after, report)
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("after %q health took %s", after, took)
	}
}

// typed types what would matter to a kernel or a shell that listened.
func typed(t *testing.T, d *scenario.Direct, arch string) {
	t.Helper()
	// ^O and ^- are what s390x has for SysRq on its consoles.
	// A break precedes each but the first.
	for _, keys := range []string{"\x03\x04root\rreboot\r", "b", "c", "\x0fb", "\x0fc", "^-b\r", "^-c\r"} {
		t.Logf("typing %q", keys)
		d.Type(t, keys)
		time.Sleep(300 * time.Millisecond)
		answers(t, d, "typing "+keys)
	}
	console := d.Console(t)
	if found := regexp.MustCompile(`(?i)resetting|trigger a crash|login|panic|restarting`).FindString(console); found != "" {
		t.Errorf("typing on the console had an effect: %q\n%s", found, console)
	}
}

// memory expects bounce buffers where the architecture's release needs them,
// and none taken here: the guest is not protected.
func memory(t *testing.T, lab *scenario.Lab, d *scenario.Direct, _ map[string]string) {
	t.Helper()
	if line := d.Read(t, "/proc/cmdline"); strings.Contains(line, "swiotlb=262144") != (lab.Arch == scenario.S390X) {
		t.Errorf("the command line of %s is %q", lab.Arch, line)
	}
	var kib int
	if _, err := fmt.Sscanf(d.Read(t, "/proc/meminfo"), "MemTotal: %d kB", &kib); err != nil || kib < 800<<10 {
		t.Errorf("of 1024 MiB %d KiB are left: %v", kib, err)
	}
}

// closed expects that no link came up before the firewall stood, and that the
// host reaches no port but what is published and, in dev images, health.
func closed(t *testing.T, d *scenario.Direct) {
	t.Helper()
	events := d.Events()
	wall, link := strings.Index(events, `"name":"firewall","ok":true`), strings.Index(events, `"name":"network","t":"phase-start"`)
	if wall < 0 || link < 0 || link < wall {
		t.Errorf("the firewall's end and the network's start are at %d and %d of\n%s", wall, link, events)
	}
	client := &http.Client{Timeout: 3 * time.Second}
	if resp, err := client.Get("http://" + d.Address(22) + "/"); err == nil {
		t.Errorf("port 22 answers: %s", resp.Status)
		_ = resp.Body.Close() // the test has failed already
	}
}
