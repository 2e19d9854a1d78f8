//go:build vm

package test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"hpcr/test/peers"
	"hpcr/test/scenario"
)

var networkScenarios = []scenario.Scenario{
	{
		Name:     "a guest takes its addresses from network-config",
		Attacker: "nobody",
		Claim: "With DHCP off and the addresses that QEMU's network expects, the image is pulled and the published port answers; " +
			"the console says which interface was configured, in HPCR's words.",
		Tier:  scenario.Core,
		Archs: scenario.Both,
		Cost:  18 * time.Second,
		Run:   staticNetwork,
	},
	{
		Name:     "a network-config that breaks the schema is refused",
		Attacker: "nobody; an operator leaves the addresses out",
		Claim:    "The guest does not fall back to DHCP: it fails with a code and powers off.",
		Tier:     scenario.Full,
		Archs:    []string{scenario.AMD64},
		Cost:     8 * time.Second,
		Run: func(t *testing.T, lab *scenario.Lab) {
			r := lab.Boot(t, scenario.Boot{
				UserData:      lab.Encrypt(t, lab.Small(t)),
				NetworkConfig: "network:\n  version: 2\n  ethernets:\n    enc1:\n      dhcp4: false\n",
			})
			if r.Verdict != "failed" || r.Exit != 1 || !r.StoppedInOrder || len(r.Codes) == 0 {
				t.Errorf("verdict %s, codes %v, exit status %d, in order %v, want a failure with a code: %s", r.Verdict, r.Codes, r.Exit, r.StoppedInOrder, r.Message)
			}
		},
	},
	{
		Name:     "a guest with two cards and a VLAN logs over IPv6",
		Attacker: "nobody",
		Claim: "By env.x-hpcr.network the first card takes an IPv4 lease, by which the image is pulled; the second an address from its router's prefix, " +
			"by which alone the log host is reached; and what a VLAN on it sends is tagged on the wire.",
		Tier:  scenario.Full,
		Archs: scenario.Both,
		Cost:  25 * time.Second,
		Run:   twoCards,
	},
	{
		Name:     "a clock at 1970 or 2100 is set by the contract's time server",
		Attacker: "a host whose clock is wrong by decades",
		Claim: "With env.x-hpcr.time the clock is right before the first certificate is judged on the wire: the log host's and the registry's, " +
			"which are valid today and neither then nor at 2100; and the owner's log says that the clock was set.",
		Tier:  scenario.Full,
		Archs: scenario.Both,
		Cost:  30 * time.Second,
		Run:   wrongClocks,
	},
	{
		Name:     "a clock at 2100 is set by a time server that proves who it is, and nothing starts without its word",
		Attacker: "a host whose clock is wrong by decades, which then silences the server",
		Claim: "With env.x-hpcr.time.nts the clock is right before the log host's certificate is judged, although chronyd's own is not valid at 2100; " +
			"without an answer the guest fails with HPL14001E and powers off in order.",
		Tier:  scenario.Full,
		Archs: scenario.Both,
		Cost:  70 * time.Second,
		Run:   provedClock,
	},
	{
		Name:     "names are asked by TLS alone",
		Attacker: "a host whose resolver, the one that DHCP names, answers as it likes",
		Claim: "With env.x-hpcr.dns a container on the project's network and one on the guest's own, whose resolver is the agent's too, " +
			"get the answer that only dnsmasq behind openssl's TLS gives.",
		Tier:  scenario.Full,
		Archs: scenario.Both,
		Cost:  25 * time.Second,
		Run:   namesOverTLS,
	},
	{
		Name:     "a scan from the wire finds a published port and nothing else, from the first packet on",
		Attacker: "a neighbour on the guest's wire who scans it from its first ARP answer on",
		Claim: "nmap, again and again while the guest boots, finds no port open but those of the container and of a dev image's health, and none that " +
			"refuses, as a machine's without firewall does, but the container's until it listens; of all 65535 of the guest that is ready the same.",
		Tier:  scenario.Full,
		Archs: scenario.Both,
		Cost:  75 * time.Second,
		Run:   scanned,
	},
}

// nmapPort is a port that answered: open, or closed by a refusal.
var nmapPort = regexp.MustCompile(`(\d+)/(open|closed)/tcp`)

func scanned(t *testing.T, lab *scenario.Lab) {
	const guest, host = "192.0.2.10", "192.0.2.1"
	tap := "hpcrscan-" + lab.Arch[:4]
	second, bus := "enc2", "virtio-net-pci"
	if lab.Arch == scenario.S390X {
		second, bus = "enc8", "virtio-net-ccw,devno=fe.0.0008"
	}
	type m = map[string]any
	c := lab.Contract(t)
	c.Workload.Volumes, c.Env.Volumes = nil, nil
	c.Workload.Compose = lab.Compose(t, fmt.Sprintf("services:\n  canaryweb:\n    image: %s\n    ports: [\"8080:8080\"]\n    environment: {DATA: /tmp/data}\n", lab.Web(t)))
	c.Env.XHPCR = m{"network": m{"ethernets": m{"enc1": m{"dhcp4": true}, second: m{"addresses": []string{guest + "/24"}}}}}

	// scan is one look at ports: those that are open, and whether somebody is there.
	scan := func(ctx context.Context, ports string, args ...string) (open []string, there bool) {
		t.Helper()
		out, err := exec.CommandContext(ctx, "nmap", append([]string{"-n", "-sS", "-T4", "-e", tap, "-p", ports, "-oG", "-", guest}, args...)...).CombinedOutput()
		if err != nil || strings.Contains(string(out), "State: closed") {
			t.Errorf("nmap: %v: %s", err, out)
		}
		for _, m := range nmapPort.FindAllStringSubmatch(string(out), -1) {
			if m[1] != "8080" && m[1] != "9080" {
				t.Errorf("port %s answers: %s", m[1], out)
			}
			if m[2] == "open" {
				open = append(open, m[1])
			}
		}
		return open, strings.Contains(string(out), "Status: Up")
	}
	booting, ready := context.WithCancel(t.Context())
	seen := make(chan int, 1)
	go func() {
		n := 0
		defer func() { seen <- n }()
		for booting.Err() == nil {
			// QEMU makes the tap, and takes it away.
			if exec.CommandContext(t.Context(), "sh", "-c", "ip addr replace "+host+"/24 dev "+tap+" && ip link set "+tap+" up").Run() != nil { // not yet, or no longer
				time.Sleep(50 * time.Millisecond)
				continue
			}
			if _, there := scan(t.Context(), "1-1100,2375,2376,5000,5355,6443,8000-8100,9000-9100,9443,10010,10250,32768-32800", "--max-retries", "1"); there {
				n++
			}
		}
	}()
	lab.Boot(t, scenario.Boot{
		UserData: lab.Encrypt(t, c), Limit: 6 * time.Minute, Publish: []int{8080},
		Args: []string{
			"--qemu-arg=-netdev", "--qemu-arg=tap,id=second,ifname=" + tap + ",script=no,downscript=no",
			"--qemu-arg=-device", "--qemu-arg=" + bus + ",netdev=second",
		},
		While: func(g *scenario.Guest) {
			ready()
			if n := <-seen; n == 0 {
				t.Error("no scan of a guest that was there")
			}
			ctx, stop := context.WithTimeout(t.Context(), 4*time.Minute)
			defer stop()
			fetch(t, "http://"+g.Address(8080)+"/")
			if open, _ := scan(ctx, "8080,9080"); !slices.Equal(open, []string{"8080", "9080"}) {
				t.Errorf("of two ports %v are open", open)
			}
			if _, there := scan(ctx, "1-65535", "--max-retries", "0", "--min-rate", "3000"); !there {
				t.Error("the guest was not there for the whole scan")
			}
		},
	}).Ready(t)
	ready()
}

func namesOverTLS(t *testing.T, lab *scenario.Lab) {
	ca, err := peers.NewCA("resolvers")
	if err != nil {
		t.Fatal(err)
	}
	id, err := ca.Server("dns", "dns.example")
	if err != nil {
		t.Fatal(err)
	}
	port := func() int {
		p, err := peers.ClosedPort()
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	plain, secure := port(), port()
	background := func(name string, args ...string) {
		t.Helper()
		c := exec.CommandContext(t.Context(), name, args...)
		c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = c.Process.Kill(), c.Wait() }) // it has served
	}
	background("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--user=root", "--no-resolv", "--no-hosts", "--bind-interfaces",
		fmt.Sprintf("--port=%d", plain), "--listen-address="+peers.Loopback, "--address=/owner.example/203.0.113.9")
	background("socat", fmt.Sprintf("OPENSSL-LISTEN:%d,bind=%s,reuseaddr,fork,verify=0,cert=%s,key=%s", secure, peers.Loopback,
		lab.File(t, "dns.crt", id.Cert), lab.File(t, "dns.key", id.Key)), fmt.Sprintf("TCP:%s:%d", peers.Loopback, plain))

	c := lab.Contract(t)
	c.Workload.Volumes, c.Env.Volumes = nil, nil
	service := func(name, mode string) string {
		return fmt.Sprintf(`  %s:
    image: %s%s
    entrypoint: [/bin/sh, -c, "echo \"%[1]s asks: $$(/bin/busybox nslookup owner.example | /bin/busybox tr '\\n' ' ')\"; exec /bin/busybox sleep 1000000"]
    stop_grace_period: 1s
`, name, lab.Web(t), mode)
	}
	c.Workload.Compose = lab.Compose(t, "services:\n"+service("canarybridged", "")+service("canaryhosted", "\n    network_mode: host"))
	c.Env.XHPCR = map[string]any{
		"dns": map[string]any{"servers": []map[string]any{{"address": peers.GuestHost, "port": secure, "serverName": "dns.example", "authority": "canaryca"}}},
		"tls": map[string]any{"authorities": map[string]any{"canaryca": string(ca.PEM)}},
	}
	lab.Boot(t, scenario.Boot{
		UserData: lab.Encrypt(t, c),
		While: func(*scenario.Guest) {
			for _, name := range []string{"canarybridged", "canaryhosted"} {
				if line := logged(t, lab, name+" asks: "); !strings.Contains(line, "203.0.113.9") {
					t.Errorf("the answer is %q", line)
				}
			}
		},
	}).Ready(t)
}

// ntpPort: guests ask at port 123 of this machine, which one scenario at a time
// can have.
var ntpPort sync.Mutex

// chronyd is a foreign time server, behind QEMU's network, until it is stopped.
func chronyd(t *testing.T, lab *scenario.Lab, more string) (stop func()) {
	t.Helper()
	ntpPort.Lock()
	conf := lab.File(t, "chrony.conf", fmt.Appendf(nil, "local stratum 5\nallow all\nbindaddress %s\ncmdport 0\nbindcmdaddress /\npidfile %s\n%s", peers.Loopback, filepath.Join(lab.Dir, "chrony.pid"), more))
	ctx, end := context.WithCancel(t.Context())
	chrony := exec.CommandContext(ctx, "chronyd", "-x", "-d", "-u", "root", "-f", conf)
	chrony.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := chrony.Start(); err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		end()
		if err := chrony.Wait(); err == nil {
			t.Error("chronyd ended by itself")
		}
		ntpPort.Unlock()
	})
	t.Cleanup(stop)
	return stop
}

func provedClock(t *testing.T, lab *scenario.Lab) {
	id, err := lab.RegistryCA.Server("time", peers.GuestHost)
	if err != nil {
		t.Fatal(err)
	}
	stop := chronyd(t, lab, fmt.Sprintf("ntsservercert %s\nntsserverkey %s\n", lab.File(t, "time.crt", id.Cert), lab.File(t, "time.key", id.Key)))
	c := lab.Contract(t)
	c.Workload.Volumes, c.Env.Volumes = nil, nil
	c.Workload.Compose = lab.Compose(t, fmt.Sprintf("services:\n  canaryidle:\n    image: %s\n    command: [idle]\n", lab.Web(t)))
	c.Env.XHPCR = map[string]any{"time": map[string]any{"nts": []string{peers.GuestHost}}}
	userData := lab.Encrypt(t, c)
	lab.Boot(t, scenario.Boot{UserData: userData, Args: []string{"--rtc", "2100-01-01T00:00:00Z"}}).Ready(t)
	logged(t, lab, "who prove who they are")
	stop()
	lab.Boot(t, scenario.Boot{UserData: userData}).Failed(t, "HPL14001E")
}

func wrongClocks(t *testing.T, lab *scenario.Lab) {
	chronyd(t, lab, "")
	for rtc, events := range map[string][]string{"1970-01-01T00:00:00Z": {"clock.jumped", "clock.set"}, "2100-01-01T00:00:00Z": {"clock.set"}} {
		c := lab.Contract(t)
		c.Workload.Volumes, c.Env.Volumes = nil, nil
		c.Workload.Compose = lab.Compose(t, fmt.Sprintf("services:\n  canaryidle:\n    image: %s\n    command: [idle]\n", lab.Web(t)))
		c.Env.XHPCR = map[string]any{"time": map[string]any{"ntp": []string{peers.GuestHost}}}
		name := "clock-" + rtc[:4]
		r := lab.Boot(t, scenario.Boot{UserData: lab.Encrypt(t, c), MetaData: "local-hostname: " + name + "\n", Args: []string{"--rtc", rtc}})
		r.Ready(t)
		for _, id := range events {
			wait, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			if _, err := lab.LogHost.WaitFor(wait, func(line string) bool {
				return strings.Contains(line, " "+name+" ") && strings.Contains(line, " "+id+" ")
			}); err != nil {
				t.Errorf("%s: no %s at the log host: %v", rtc, id, err)
			}
			cancel()
		}
	}
}

// twoCards: the second card's network has no IPv4, and its host is known to
// nobody but it. The tag is read from QEMU's own capture.
func twoCards(t *testing.T, lab *scenario.Lab) {
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	taken := relay(t, l, net.JoinHostPort(peers.Loopback, fmt.Sprint(lab.LogHost.Port())))
	second, bus := "enc2", "virtio-net-pci"
	if lab.Arch == scenario.S390X {
		second, bus = "enc8", "virtio-net-ccw,devno=fe.0.0008"
	}
	type m = map[string]any
	c := lab.Contract(t)
	c.Workload.Volumes, c.Env.Volumes = nil, nil
	c.Workload.Compose = lab.Compose(t, fmt.Sprintf("services:\n  canaryidle:\n    image: %s\n    command: [idle]\n", lab.Web(t)))
	c.Env.Logging.Syslog.Hostname, c.Env.Logging.Syslog.Port = peers.GuestHost6, l.Addr().(*net.TCPAddr).Port
	c.Env.XHPCR = m{"network": m{
		"ethernets": m{"enc1": m{"dhcp4": true}, second: m{"accept-ra": true}},
		"vlans":     m{"vlan100": m{"id": 100, "link": second, "addresses": []string{"2001:db8:64::7/64"}}},
	}}
	capture := filepath.Join(lab.Dir, "second.pcap")
	r := lab.Boot(t, scenario.Boot{
		UserData: lab.Encrypt(t, c),
		Args: []string{
			"--qemu-arg=-netdev", "--qemu-arg=user,id=second,ipv4=off,ipv6=on,ipv6-prefix=2001:db8:5::,ipv6-host=" + peers.GuestHost6,
			"--qemu-arg=-device", "--qemu-arg=" + bus + ",netdev=second",
			"--qemu-arg=-object", "--qemu-arg=filter-dump,id=dump,netdev=second,file=" + capture,
		},
	})
	r.Ready(t)
	if want := fmt.Sprintf("HPL13004I: Netplan file is updated -> configured IP parameters - [enc1 %s vlan100]", second); !strings.Contains(r.Console, want) {
		t.Errorf("the console lacks %q:\n%s", want, r.Console)
	}
	if taken.Load() == 0 {
		t.Error("the log host was not reached over IPv6")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := lab.LogHost.WaitFor(ctx, func(line string) bool {
		return strings.Contains(line, " "+lab.Hostname()+" ") && strings.Contains(line, "boot.verdict")
	}); err != nil {
		t.Error(err)
	}
	frames, err := os.ReadFile(capture)
	if err != nil {
		t.Fatal(err)
	}
	// EtherType 802.1Q, priority 0 and number 100, then IPv6.
	if !bytes.Contains(frames, []byte{0x81, 0x00, 0x00, 100, 0x86, 0xdd}) {
		t.Errorf("no tagged frame among %d octets of capture", len(frames))
	}
}

// relay joins what l takes with a peer, and counts it.
func relay(t *testing.T, l net.Listener, to string) *atomic.Int64 {
	t.Helper()
	var taken atomic.Int64
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to)
			if err != nil {
				near.Close()
				continue
			}
			taken.Add(1)
			go func() { io.Copy(far, near); far.Close() }()
			go func() { io.Copy(near, far); near.Close() }()
		}
	}()
	return &taken
}

// healthByVsock is part of the scenario of the walls, whose boot has a vsock:
// after ready, /healthz is the fixed JSON and says so; every answer has 512
// octets and its status whatever is asked; no other vsock port has a listener.
// The host is CID 2 here as in production, where vhost-vsock stands for this
// backend.
func healthByVsock(t *testing.T, lab *scenario.Lab, d *scenario.Direct) {
	t.Helper()
	const port, size = 9080, 512
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.Dial(ctx, port)
		},
	}}
	for _, ask := range []struct {
		method, path, body string
		status             int
		want               string // "" = the report
	}{
		{http.MethodGet, "/healthz", "", http.StatusOK, ""},
		{http.MethodGet, "/livez", "", http.StatusOK, "ok"},
		{http.MethodGet, "/readyz", "", http.StatusOK, "ok"},
		{http.MethodPost, "/healthz", "stop", http.StatusMethodNotAllowed, "GET or HEAD only"},
		{http.MethodDelete, "/healthz", "", http.StatusMethodNotAllowed, "GET or HEAD only"},
		{http.MethodGet, "/healthz", "more than asked for", http.StatusBadRequest, "no body, please"},
		{http.MethodGet, "/metrics", "", http.StatusNotFound, "not found"},
		{http.MethodGet, "/debug/pprof/", "", http.StatusNotFound, "not found"},
	} {
		what := ask.method + " " + ask.path
		req, err := http.NewRequestWithContext(t.Context(), ask.method, "http://guest"+ask.path, strings.NewReader(ask.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
		if err = errors.Join(err, resp.Body.Close()); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		lab.Clean(t, "answer on vsock", string(body))
		if resp.StatusCode != ask.status || len(body) != size {
			t.Errorf("%s: status %s with %d octets, want %d with %d", what, resp.Status, len(body), ask.status, size)
		}
		if ask.want != "" {
			if got := strings.TrimSpace(string(body)); got != ask.want {
				t.Errorf("%s: %q, want %q", what, got, ask.want)
			}
			continue
		}
		var report struct {
			Schema        int
			Live, Ready   bool
			Phase, Code   string
			Flavour       string
			UptimeSeconds int64
		}
		strict := json.NewDecoder(bytes.NewReader(body))
		strict.DisallowUnknownFields()
		if err := strict.Decode(&report); err != nil {
			t.Errorf("%s: %v: %q", what, err, body)
		}
		if report.Schema != 1 || !report.Live || !report.Ready || report.Phase != "ready" || report.Code != "" || report.Flavour != "dev" || report.UptimeSeconds%10 != 0 {
			t.Errorf("%s of a guest that is ready: %q", what, body)
		}
	}
	for _, other := range []uint32{1, 22, 1024, port - 1, port + 1} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		conn, err := d.Dial(ctx, other)
		cancel()
		if err == nil {
			t.Errorf("vsock port %d answers", other)
			_ = conn.Close() // the test has failed already
		} else if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("vsock port %d: %v, want refused", other, err)
		}
	}
}

func staticNetwork(t *testing.T, lab *scenario.Lab) {
	c := lab.Small(t)
	c.Workload.Compose = lab.Compose(t, fmt.Sprintf("services:\n  canaryweb:\n    image: %s\n    environment: {DATA: /tmp/data, GREETING: static}\n    ports: [\"8080:8080\"]\n", lab.Web(t)))
	r := lab.Boot(t, scenario.Boot{
		UserData: lab.Encrypt(t, c),
		NetworkConfig: `network:
  version: 2
  ethernets:
    enc1:
      dhcp4: false
      addresses: [10.0.2.15/24]
      gateway4: 10.0.2.2
      nameservers: {addresses: [10.0.2.3]}
      mtu: 1400
`,
		Publish: []int{8080},
		While: func(g *scenario.Guest) {
			if page := fetch(t, "http://"+g.Address(8080)+"/"); !strings.Contains(page, "greeting: static") {
				t.Errorf("the page is %q", page)
			}
		},
	})
	r.Ready(t)
	for _, want := range []string{"HPL13000I: Validation Successfull", "[enc1]", "HPL13004I: Netplan file is updated"} {
		if !strings.Contains(r.Console, want) {
			t.Errorf("the console lacks %q:\n%s", want, r.Console)
		}
	}
}
