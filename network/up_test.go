package network

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netns"

	"hpcr/agent/hpl"
)

func nsHandle(name string) (netns.NsHandle, error) { return netns.GetFromName(name) }

func TestStatic(t *testing.T) {
	c := wire(t, "isp", "eth0", "192.0.2.1/24")
	n, err := up(t, Config{Links: []LinkConfig{{
		Name: "enc1", MTU: 1400,
		Addresses:   []netip.Prefix{prefix("192.0.2.10/24"), prefix("198.51.100.7/25")},
		Gateway:     addr("192.0.2.1"),
		Routes:      []Route{{To: prefix("203.0.113.0/24"), Via: addr("198.51.100.1")}},
		Nameservers: []netip.Addr{addr("192.0.2.53")}, Search: []string{"example.com"},
	}}}, c)
	if err != nil {
		t.Fatal(err)
	}
	out := ip(t, "addr show dev enc1")
	for _, want := range []string{"192.0.2.10/24", "198.51.100.7/25", "mtu 1400", "LOWER_UP"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if strings.Contains(out, "inet6") {
		t.Errorf("IPv6 is on:\n%s", out)
	}
	routes := ip(t, "route")
	for _, want := range []string{"default via 192.0.2.1 dev enc1", "203.0.113.0/24 via 198.51.100.1"} {
		if !strings.Contains(routes, want) {
			t.Errorf("no %q in\n%s", want, routes)
		}
	}
	path := filepath.Join(t.TempDir(), "resolv.conf")
	if err := n.WriteResolvConf(path); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := "nameserver 192.0.2.53\nsearch example.com\noptions timeout:2 attempts:2\n"; string(text) != want {
		t.Errorf("resolv.conf: %q", text)
	}
	if diff := cmp.Diff([]string{"enc1"}, n.Links()); diff != "" {
		t.Error(diff)
	}
	// Out yes, in no.
	listen(t, "isp", "tcp", "192.0.2.1:80", "world")
	reaches(t, "", "tcp", "192.0.2.1:80", "world")
	listen(t, "", "tcp", "0.0.0.0:9080", "health")
	blocked(t, "isp", "tcp", "192.0.2.10:9080")
	if err := n.Allow(9080); err != nil {
		t.Fatal(err)
	}
	reaches(t, "isp", "tcp", "192.0.2.10:9080", "health")
	reaches(t, "", "tcp", "127.0.0.1:9080", "health")
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if out := ip(t, "addr show dev enc1"); strings.Contains(out, "inet ") || !strings.Contains(out, "state DOWN") {
		t.Errorf("after Close:\n%s", out)
	}
}

func TestStaticRefusals(t *testing.T) {
	tests := map[string]struct {
		link LinkConfig
		want string
	}{
		"gateway of no network": {LinkConfig{Addresses: []netip.Prefix{prefix("192.0.2.10/24")}, Gateway: addr("10.1.1.1")}, "the kernel refused these addresses or routes"},
		"absurd MTU":            {LinkConfig{Addresses: []netip.Prefix{prefix("192.0.2.10/24")}, MTU: 100000}, "refuses this MTU"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := wire(t, "isp", "eth0", "192.0.2.1/24")
			tt.link.Path = "/network/ethernets/#1"
			_, err := up(t, Config{Links: []LinkConfig{tt.link}}, c)
			e := hpl.From(err)
			if e.Code != "HPL14001E" || e.Path != "/network/ethernets/#1" || !strings.Contains(e.Detail, tt.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestNoDHCPServer(t *testing.T) {
	c := wire(t, "isp", "eth0", "192.0.2.1/24")
	n, err := start(testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	err = n.up(t.Context(), Config{}, []card{c}, 1500*time.Millisecond)
	if e := hpl.From(err); e.Code != "HPL14002E" || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if took := time.Since(begin); took > 4*time.Second {
		t.Errorf("took %v", took)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestChooseCards(t *testing.T) {
	eth0, eth1 := card{"eth0", "enc1"}, card{"eth1", "enc8"}
	tests := map[string]struct {
		cfg   Config
		cards []card
		want  []card
		code  hpl.Code
		path  string
	}{
		"all without a configuration": {Config{}, []card{eth0, eth1}, []card{eth0, eth1}, "", ""},
		"configured order":            {Config{Links: []LinkConfig{{Name: "enc8"}, {Name: "enc1"}}}, []card{eth0, eth1}, []card{eth1, eth0}, "", ""},
		"others stay unused":          {Config{Links: []LinkConfig{{Name: "enc8"}}}, []card{eth0, eth1}, []card{eth1}, "", ""},
		"none at all":                 {Config{}, nil, nil, "HPL14001E", ""},
		"missing":                     {Config{Links: []LinkConfig{{Name: "enc1"}, {Name: "enc5", Path: "/network/ethernets/#2"}}}, []card{eth0, eth1}, nil, "HPL14001E", "/network/ethernets/#2"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := waitForCards(t.Context(), tt.cfg, func() ([]card, error) { return tt.cards, nil }, 30*time.Millisecond)
			if diff := cmp.Diff(tt.want, got, cmpopts.EquateComparable(card{})); diff != "" {
				t.Error(diff)
			}
			if e := hpl.From(err); err != nil && (e.Code != tt.code || e.Path != tt.path) || (err == nil) != (tt.code == "") {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestCardNames mimics the sysfs of both architectures.
func TestCardNames(t *testing.T) {
	tests := map[string]struct {
		devices map[string]string // interface → device folder under /sys/devices
		want    []card
	}{
		"s390x by devno": {
			map[string]string{"eth0": "css0/0.0.0003/0.0.0008/virtio2", "eth1": "css0/0.0.0002/0.0.0001/virtio1", "eth2": "css0/0.0.0009/0.0.0a00/virtio3", "eth3": "css0/0.0.0010/0.0.0000/virtio4", "lo": ""},
			[]card{{"eth3", "enc0"}, {"eth1", "enc1"}, {"eth0", "enc8"}, {"eth2", "enca00"}},
		},
		"amd64 by PCI order": {
			map[string]string{"eth0": "pci0000:00/0000:00:05.0/virtio1", "eth1": "pci0000:00/0000:00:02.0/virtio3", "eth2": "pci0000:00/0000:00:02.1/0000:02:00.0/virtio4", "hpcr0": "", "lo": ""},
			[]card{{"eth1", "enc1"}, {"eth0", "enc2"}, {"eth2", "enc3"}},
		},
		"s390x with a PCI card besides": {
			map[string]string{"eth0": "css0/0.0.0002/0.0.0001/virtio1", "eth1": "pci0001:00/0001:00:00.0/virtio3"},
			[]card{{"eth0", "enc1"}, {"eth1", "enc2"}},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			class := filepath.Join(root, "class/net")
			for iface, device := range tt.devices {
				dir := filepath.Join(class, iface)
				if err := os.MkdirAll(dir, 0o755); err != nil {
					t.Fatal(err)
				}
				if device == "" {
					continue
				}
				target := filepath.Join(root, "devices", device)
				if err := os.MkdirAll(target, 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.Symlink(target, filepath.Join(dir, "device")); err != nil {
					t.Fatal(err)
				}
			}
			got, err := cardsIn(class)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, cmpopts.EquateComparable(card{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}
