package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"hpcr/initramfs/qemu"
	"hpcr/test/peers"
)

// setup is what all boots share.
type setup struct {
	root, arch, dir string

	registry *peers.Registry
	logHost  *peers.Rsyslog
}

func (s *setup) path(name string) string { return filepath.Join(s.dir, name) }

// prepare makes keys, image, peers and the contract of docs/examples/web.
func (s *setup) prepare(ctx context.Context) error {
	if err := s.image(ctx); err != nil {
		return err
	}
	ca, err := peers.NewCA("bench authority")
	if err != nil {
		return err
	}
	if s.registry, err = peers.StartRegistry(ca, "bench-puller", "bench-pull-password"); err != nil {
		return err
	}
	if s.logHost, err = peers.StartRsyslog(ctx, s.path("logs"), ca); err != nil {
		return err
	}
	client, err := ca.Client("bench guest")
	if err != nil {
		return err
	}
	busybox, err := peers.Busybox(ctx, s.arch, os.Stderr)
	if err != nil {
		return err
	}
	web, err := peers.WebImage(s.arch, busybox)
	if err != nil {
		return err
	}
	if _, err := s.registry.Push(ctx, "demo/web", web); err != nil {
		return err
	}
	text, err := peers.Example(s.example(), map[string]string{
		"REGISTRY": s.registry.Guest(), "REGISTRY_USER": s.registry.User, "REGISTRY_PASSWORD": s.registry.Password,
		"REGISTRY_CA": peers.Base64(ca.PEM), "WEB_DIGEST": web.Digest(),
		"WORKLOAD_SEED": "bench-workload-seed", "ENV_SEED": "bench-deployer-seed",
		"SYSLOG_PORT": strconv.Itoa(s.logHost.Port()), "SYSLOG_CA": peers.Base64(ca.PEM),
		"SYSLOG_CERT": peers.Base64(client.Cert), "SYSLOG_KEY": peers.Base64(client.Key),
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.path("contract.yaml"), text, 0o600); err != nil {
		return err
	}
	key := exec.CommandContext(ctx, "openssl", "genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:4096", "-out", s.path("signing.key"))
	if out, err := key.CombinedOutput(); err != nil {
		return fmt.Errorf("openssl: %w: %s", err, out)
	}
	err = s.hpcrctl(ctx, "user-data", "contract", "sign", "--signing-key", s.path("signing.key"), "--cert", s.path("keys/contract.crt"), s.path("contract.yaml"))
	if err != nil {
		return err
	}
	if err := s.hpcrctl(ctx, "", "cidata", "--user-data", s.path("user-data"), "--out", s.path("cidata.iso")); err != nil {
		return err
	}
	disk, err := os.Create(s.path("data.img"))
	if err != nil {
		return err
	}
	return errors.Join(disk.Truncate(1<<30), disk.Close())
}

// example is the contract's folder.
func (s *setup) example() string { return filepath.Join(s.root, "docs", "examples", "web") }

// image makes keys and image in an empty folder.
func (s *setup) image(ctx context.Context) error {
	if err := os.RemoveAll(s.dir); err != nil {
		return err
	}
	if err := os.MkdirAll(s.path("logs"), 0o755); err != nil {
		return err
	}
	if err := s.hpcrctl(ctx, "", "keys", "new", "--out", s.path("keys")); err != nil {
		return err
	}
	return s.hpcrctl(ctx, "", "image", "build", "--arch", s.arch, "--keys", s.path("keys"), "--dev", "--policy", filepath.Join(s.example(), "policy.yaml"), "--out", s.path("image"))
}

// hpcrctl runs the tool; its stdout goes to the file out, if that is named.
func (s *setup) hpcrctl(ctx context.Context, out string, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(s.root, "build", "hpcrctl"), args...)
	cmd.Dir = s.root
	cmd.Stderr = os.Stderr
	text, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("hpcrctl %s: %w", args[0], err)
	}
	if out == "" {
		return nil
	}
	return os.WriteFile(s.path(out), text, 0o600)
}

func (s *setup) close() error {
	var errs []error
	if s.registry != nil {
		errs = append(errs, s.registry.Close())
	}
	if s.logHost != nil {
		errs = append(errs, s.logHost.Stop())
	}
	return errors.Join(errs...)
}

// run is what one boot showed.
type run struct {
	hello, ready, served time.Duration
	order                []string // phases as they ended
	phases               map[string]time.Duration
	pss, highest         map[string]int // KiB by process name
}

func (r *run) idle() float64 { return total(r.pss) }
func (r *run) peak() float64 { return total(r.highest) }

func (r *run) processes() []string { return slices.Sorted(maps.Keys(r.pss)) }

func total(kib map[string]int) float64 {
	sum := 0
	for _, v := range kib {
		sum += v
	}
	return float64(sum) / 1024
}

// settling is how long a guest idles before its memory is read.
const settling = 5 * time.Second

// event is what a dev image says on its port.
type event struct {
	T         string `json:"t"`
	Name      string `json:"name"`
	Ms        int64  `json:"ms"`
	BootMs    int64  `json:"bootMs"`
	Verdict   string `json:"verdict"`
	Message   string `json:"message"`
	ReadyMs   int64  `json:"readyMs"`
	Ordered   bool   `json:"ordered"`
	ID        int    `json:"id"`
	Processes []struct {
		Name string `json:"name"`
		PSS  int    `json:"pssKiB"`
		Peak int    `json:"peakKiB"`
	} `json:"processes"`
}

// machine says how a boot differs from the usual one.
type machine struct {
	image string // a folder of s.dir
	args  []string
}

func (s *setup) boot(ctx context.Context, m machine) (*run, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	port, err := peers.ClosedPort()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "hpcr-bench-") // short, for its sockets
	if err != nil {
		return nil, err
	}
	defer func() {
		if err := os.RemoveAll(dir); err != nil {
			fmt.Fprintln(os.Stderr, "bench: left behind:", err)
		}
	}()
	start := time.Now()
	vm, err := qemu.Start(ctx, qemu.Options{
		Image: s.path(m.image), Cidata: s.path("cidata.iso"),
		Disks:   []qemu.Disk{{Serial: "data", File: s.path("data.img")}},
		Publish: []qemu.Port{{HostIP: peers.Loopback, Host: port, Guest: 8080}},
		Dir:     dir,
		Args:    m.args,
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		vm.Kill()
		<-vm.Done()
	}()
	r := &run{phases: map[string]time.Duration{}, pss: map[string]int{}, highest: map[string]int{}}
	served := make(chan time.Duration, 1)
	go poll(ctx, net.JoinHostPort(peers.Loopback, strconv.Itoa(port)), start, served)
	ordered := false
	for raw := range vm.Events() {
		var e event
		if err := json.Unmarshal(raw, &e); err != nil {
			return nil, fmt.Errorf("the guest's event: %w", err)
		}
		switch e.T {
		case "hello":
			r.hello = time.Duration(e.BootMs) * time.Millisecond
			if err := vm.Send(map[string]string{"cmd": "go"}); err != nil {
				return nil, err
			}
		case "phase":
			r.order = append(r.order, e.Name)
			r.phases[e.Name] = time.Duration(e.Ms) * time.Millisecond
		case "verdict":
			if e.Verdict != "ready" {
				return nil, fmt.Errorf("the guest failed: %s", e.Message)
			}
			r.ready = time.Duration(e.ReadyMs) * time.Millisecond
			select {
			case r.served = <-served:
			case <-ctx.Done():
				return nil, fmt.Errorf("the page was never served: %w", ctx.Err())
			}
			time.Sleep(settling)
			if err := vm.Send(map[string]any{"id": 1, "cmd": "memory"}); err != nil {
				return nil, err
			}
		case "reply":
			for _, p := range e.Processes {
				r.pss[p.Name] += p.PSS
				r.highest[p.Name] += p.Peak
			}
			if err := vm.Powerdown(ctx); err != nil {
				return nil, err
			}
		case "off":
			ordered = e.Ordered
		}
	}
	if len(r.pss) == 0 || !ordered {
		console, err := os.ReadFile(vm.Console())
		return nil, errors.Join(fmt.Errorf("the guest did not end in order:\n%s", console), err)
	}
	return r, nil
}

// poll tells when the page is served.
func poll(ctx context.Context, address string, start time.Time, served chan<- time.Duration) {
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for ctx.Err() == nil {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/", nil)
		if err != nil {
			return
		}
		if resp, err := client.Do(req); err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			if err = errors.Join(err, resp.Body.Close()); err == nil && resp.StatusCode == http.StatusOK {
				served <- time.Since(start)
				return
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
}
