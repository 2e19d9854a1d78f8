package main

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
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"hpcr/test/peers"
)

func (s *stage) keys() error {
	if _, err := s.command(hpcrctl, "keys", "new", "--out", path("keys")); err != nil {
		return err
	}
	_, err := s.command("openssl", "genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:4096", "-out", path("signing.key"))
	return err
}

func (s *stage) peers() error {
	registryCA, err := peers.NewCA("demo registry authority")
	if err != nil {
		return err
	}
	logCA, err := peers.NewCA("demo log authority")
	if err != nil {
		return err
	}
	if s.registry, err = peers.StartRegistry(registryCA, "demo-puller", "demo-pull-password"); err != nil {
		return err
	}
	if s.logHost, err = peers.StartRsyslog(s.ctx, s.abs("logs"), logCA); err != nil {
		return err
	}
	client, err := logCA.Client("demo guest")
	if err != nil {
		return err
	}
	s.say("registry on %s, log host on %s:%d", s.registry.Host(), peers.Loopback, s.logHost.Port())

	busybox, err := peers.Busybox(s.ctx, s.arch, os.Stderr)
	if err != nil {
		return err
	}
	web, err := peers.WebImage(s.arch, busybox)
	if err != nil {
		return err
	}
	ref, err := s.registry.Push(s.ctx, "demo/web", web)
	if err != nil {
		return err
	}
	s.say("pushed a web server made of Debian's busybox-static: %s", ref)
	s.values = map[string]string{
		"REGISTRY":          s.registry.Guest(),
		"REGISTRY_USER":     s.registry.User,
		"REGISTRY_PASSWORD": s.registry.Password,
		"REGISTRY_CA":       peers.Base64(registryCA.PEM),
		"WEB_DIGEST":        web.Digest(),
		"WORKLOAD_SEED":     "demo-workload-seed-1",
		"ENV_SEED":          "demo-deployer-seed-1",
		"SYSLOG_PORT":       strconv.Itoa(s.logHost.Port()),
		"SYSLOG_CA":         peers.Base64(logCA.PEM),
		"SYSLOG_CERT":       peers.Base64(client.Cert),
		"SYSLOG_KEY":        peers.Base64(client.Key),
	}
	return nil
}

func (s *stage) contract() error {
	text, err := peers.Example(filepath.Join(s.root, "docs", "examples", "web"), s.values)
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.abs("contract.yaml"), text, 0o600); err != nil {
		return fmt.Errorf("write the contract: %w", err)
	}
	if _, err := s.command(hpcrctl, "contract", "lint", path("contract.yaml")); err != nil {
		return err
	}
	userData, err := s.command(hpcrctl, "contract", "sign", "--signing-key", path("signing.key"), "--cert", path("keys/contract.crt"), path("contract.yaml"))
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.abs("user-data"), userData, 0o600); err != nil {
		return fmt.Errorf("write the user-data: %w", err)
	}
	if err := os.WriteFile(s.abs("meta-data"), []byte("local-hostname: demo-guest\n"), 0o600); err != nil {
		return fmt.Errorf("write the meta-data: %w", err)
	}
	for line := range strings.Lines(string(userData)) {
		line = strings.TrimSpace(line)
		if len(line) > 90 {
			line = line[:90] + "…"
		}
		s.say("  %s", line)
	}
	return nil
}

func (s *stage) image() error {
	_, err := s.command(hpcrctl, "image", "build", "--arch", s.arch, "--keys", path("keys"), "--dev", "--policy", "docs/examples/web/policy.yaml", "--out", path("image"))
	return err
}

// started is what hpcrctl run says of a guest that it left running.
type started struct {
	Verdict string   `json:"verdict"`
	Codes   []string `json:"codes"`
	Message string   `json:"message"`
	Phases  []phase  `json:"phases"`
	ReadyMs int      `json:"readyMs"`
	Health  struct {
		HTTP string `json:"http"`
	} `json:"health"`
}

type phase struct {
	Name    string `json:"name"`
	StartMs int    `json:"startMs"`
	Ms      int    `json:"ms"`
}

func (s *stage) boot(n int) error {
	port, err := peers.ClosedPort()
	if err != nil {
		return err
	}
	s.page = net.JoinHostPort(peers.Loopback, strconv.Itoa(port))
	s.console = path(fmt.Sprintf("console-%d.log", n))
	end := echo(filepath.Join(s.root, s.console))
	begun := time.Now()
	out, err := s.command(hpcrctl, "run", "--image", path("image"), "--user-data", path("user-data"), "--meta-data", path("meta-data"),
		"--disk", "data="+path("data.img")+":1G", "--publish", s.page+":8080", "--console", s.console, "--keep", "--state", path("vm"), "--json")
	took := time.Since(begun)
	if echoed := end(); echoed != nil {
		err = errors.Join(err, fmt.Errorf("show the console: %w", echoed))
	}
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	var r started
	if err := json.Unmarshal(out, &r); err != nil {
		return fmt.Errorf("read the result of hpcrctl run: %w", err)
	}
	if r.Verdict != "ready" {
		return fmt.Errorf("the guest is %s, not ready: %s", r.Verdict, r.Message)
	}
	s.health = r.Health.HTTP
	if err := s.rest(); err != nil {
		return err
	}
	slices.SortFunc(r.Phases, func(a, b phase) int { return a.StartMs - b.StartMs })
	s.say("phase          starts     takes")
	for _, p := range r.Phases {
		s.say("%-12s %6.3f s  %6.3f s", p.Name, float64(p.StartMs)/1000, float64(p.Ms)/1000)
	}
	s.say("ready: %.1f s after our PID 1's agent started, %.1f s after QEMU", float64(r.ReadyMs)/1000, took.Seconds())
	return nil
}

// ask looks at the guest from outside, as its users, its operator and its
// owner do.
func (s *stage) ask(start int) error {
	s.say("$ curl http://%s/", s.page)
	page, err := s.fetch("http://" + s.page + "/")
	if err != nil {
		return fmt.Errorf("fetch the page: %w", err)
	}
	for line := range strings.Lines(page) {
		s.say("  %s", strings.TrimSpace(line))
	}
	for _, want := range []string{fmt.Sprintf("starts: %d\n", start), "greeting: hello from the contract\n"} {
		if !strings.Contains(page, want) {
			return fmt.Errorf("the page does not say %q", strings.TrimSpace(want))
		}
	}
	health, err := s.command(hpcrctl, "health", s.health)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(health)) {
		s.say("  %s", strings.TrimSpace(line))
	}
	want := fmt.Sprintf("web: start number %d", start)
	ctx, cancel := context.WithTimeout(s.ctx, 20*time.Second)
	defer cancel()
	line, err := s.logHost.WaitFor(ctx, func(m string) bool { return strings.Contains(m, " demo-guest ") && strings.Contains(m, want) })
	if err != nil {
		return fmt.Errorf("the container's line at the log host: %w", err)
	}
	all, err := s.logHost.Messages()
	if err != nil {
		return err
	}
	s.say("log host: %d messages, among them", len(all))
	s.say("  %s", line)
	return nil
}

// fetch gets a page; the container may need a moment after the guest is ready.
func (s *stage) fetch(url string) (string, error) {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	var last error
	for range 60 {
		req, err := http.NewRequestWithContext(s.ctx, http.MethodGet, url, nil)
		if err != nil {
			return "", err
		}
		resp, err := client.Do(req)
		if err == nil {
			body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
			if err = errors.Join(err, resp.Body.Close()); err == nil && resp.StatusCode == http.StatusOK {
				return string(body), nil
			}
			last = errors.Join(err, fmt.Errorf("status %s", resp.Status))
		} else {
			last = err
		}
		select {
		case <-s.ctx.Done():
			return "", s.ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
	return "", last
}

// rest shows what the kept guest has written since hpcrctl run stopped
// copying its console, and completes our copy.
func (s *stage) rest() error {
	ours := filepath.Join(s.root, s.console)
	copied, err := os.ReadFile(ours)
	if err != nil {
		return fmt.Errorf("read the console: %w", err)
	}
	if s.kept == nil {
		if s.kept, err = keptConsole(s.abs("vm/guest.json")); err != nil {
			return err
		}
	}
	if _, err := s.kept.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("read the console: %w", err)
	}
	whole, err := io.ReadAll(s.kept)
	if err != nil {
		return fmt.Errorf("read the console: %w", err)
	}
	// Whole lines only: the guest may be in the middle of one.
	whole = whole[:bytes.LastIndexByte(whole, '\n')+1]
	shown := bytes.LastIndexByte(copied, '\n') + 1
	for line := range bytes.Lines(whole[min(shown, len(whole)):]) {
		fmt.Printf("console| %s\n", bytes.TrimRight(line, "\r\n"))
	}
	if err := os.WriteFile(ours, whole, 0o600); err != nil {
		return fmt.Errorf("keep the console: %w", err)
	}
	return nil
}

// keptConsole opens the console of a kept guest: hpcrctl stop removes its name.
func keptConsole(state string) (*os.File, error) {
	var kept struct {
		Console string `json:"console"`
	}
	text, err := os.ReadFile(state)
	if err != nil {
		return nil, fmt.Errorf("find the guest: %w", err)
	}
	if err := json.Unmarshal(text, &kept); err != nil {
		return nil, fmt.Errorf("find the guest: %w", err)
	}
	f, err := os.Open(kept.Console)
	if err != nil {
		return nil, fmt.Errorf("open the console: %w", err)
	}
	return f, nil
}

// stop asks the guest to stop, as a host does.
func (s *stage) stop() error {
	_, stopped := s.command(hpcrctl, "stop", "--state", path("vm"))
	rest := s.rest()
	closed := s.kept.Close()
	s.kept = nil
	if err := errors.Join(stopped, rest, closed); err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(s.root, s.console))
	if err != nil {
		return fmt.Errorf("read the console: %w", err)
	}
	if !bytes.Contains(text, []byte("HPL10001I")) {
		return errors.New("the console never said HPL10001I")
	}
	return nil
}
