package scenario

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"hpcr/test/peers"
)

// Canary is in every secret and in every text that a scenario's contract
// chooses: no host may ever see it in clear.
const Canary = "canary"

// Lab is what scenarios share: the tool, keys, peers, and one image an
// architecture. A scenario works in Dir, which stays when it fails.
type Lab struct {
	Arch string // of this scenario
	Dir  string // of this scenario, empty at its start

	*shared
}

// shared is made once a run. Keys and images lie under build/test.
type shared struct {
	Root    string // the repository
	Ctl     string // hpcrctl
	Keys    string // the image's keys folder
	Other   string // another image's keys folder
	Signing string // the deployer's signing key

	RegistryCA, LogCA, OtherCA *peers.CA
	Registry                   *peers.Registry
	LogHost                    *peers.Rsyslog
	LogClient                  peers.Identity

	mu     sync.Mutex
	images map[string]*fixtures
}

// fixtures are one architecture's.
type fixtures struct {
	once  sync.Once
	err   error
	image string // the guest's image folder
	web   string // the container image, without the registry: "repo@sha256:…"
}

// NewLab builds the tool and makes keys and peers. The test's end stops them.
func NewLab(t *testing.T) *Lab {
	t.Helper()
	root, err := Root()
	must(t, err)
	s := &shared{Root: root, Ctl: filepath.Join(root, "build", "hpcrctl"), images: map[string]*fixtures{}}
	run(t, root, "go", "build", "-trimpath", "-o", s.Ctl, "./cmd/hpcrctl")

	top := filepath.Join(root, "build", "test")
	must(t, os.MkdirAll(top, 0o755))
	release, err := Claim(top)
	must(t, err)
	t.Cleanup(func() {
		if err := release(); err != nil {
			t.Error(err)
		}
	})
	s.Keys, s.Other, s.Signing = filepath.Join(top, "keys"), filepath.Join(top, "other-keys"), filepath.Join(top, "signing.key")
	// Keys cost seconds each and no scenario depends on their freshness.
	for _, dir := range []string{s.Keys, s.Other} {
		if _, err := os.Stat(filepath.Join(dir, "attestation.crt")); err != nil {
			must(t, os.RemoveAll(dir))
			run(t, root, s.Ctl, "keys", "new", "--out", dir)
		}
	}
	if _, err := os.Stat(s.Signing); err != nil {
		run(t, root, "openssl", "genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072", "-out", s.Signing)
	}

	for _, ca := range []struct {
		to   **peers.CA
		name string
	}{{&s.RegistryCA, "registry authority"}, {&s.LogCA, "log authority"}, {&s.OtherCA, "other authority"}} {
		*ca.to, err = peers.NewCA(ca.name)
		must(t, err)
	}
	s.Registry, err = peers.StartRegistry(s.RegistryCA, Canary+"-user", Canary+"-password")
	must(t, err)
	t.Cleanup(func() {
		if err := s.Registry.Close(); err != nil {
			t.Error(err)
		}
	})
	logs := filepath.Join(top, "rsyslog")
	must(t, os.RemoveAll(logs))
	must(t, os.MkdirAll(logs, 0o755))
	s.LogHost, err = peers.StartRsyslog(t.Context(), logs, s.LogCA)
	must(t, err)
	t.Cleanup(func() {
		if err := s.LogHost.Stop(); err != nil {
			t.Error(err)
		}
	})
	s.LogClient, err = s.LogCA.Client("guest")
	must(t, err)
	return &Lab{shared: s}
}

// For is the lab of one scenario on one architecture.
func (l *Lab) For(t *testing.T, arch string) *Lab {
	t.Helper()
	if _, err := l.fixtures(arch); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(l.Root, "build", "test", arch, slug(t.Name()))
	must(t, os.RemoveAll(dir))
	must(t, os.MkdirAll(dir, 0o755))
	t.Cleanup(func() {
		if !t.Failed() {
			if err := os.RemoveAll(dir); err != nil {
				t.Error(err)
			}
			return
		}
		t.Logf("consoles and results are kept in %s", dir)
	})
	return &Lab{Arch: arch, Dir: dir, shared: l.shared}
}

// policy keeps unlocking cheap: 32 MiB instead of 256.
const policy = "kdf: {memoryKiB: 32768, time: 4, parallel: 1}\n"

// fixtures builds an architecture's images, once.
func (s *shared) fixtures(arch string) (*fixtures, error) {
	s.mu.Lock()
	f := s.images[arch]
	if f == nil {
		f = &fixtures{}
		s.images[arch] = f
	}
	s.mu.Unlock()
	f.once.Do(func() { f.err = s.build(f, arch) })
	return f, f.err
}

func (s *shared) build(f *fixtures, arch string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	top := filepath.Join(s.Root, "build", "test", arch)
	if err := os.MkdirAll(top, 0o755); err != nil {
		return fmt.Errorf("image for %s: %w", arch, err)
	}
	rules := filepath.Join(top, "policy.yaml")
	if err := os.WriteFile(rules, []byte(policy), 0o644); err != nil {
		return fmt.Errorf("image for %s: %w", arch, err)
	}
	f.image = filepath.Join(top, "image")
	cmd := exec.CommandContext(ctx, s.Ctl, "image", "build", "--arch", arch, "--keys", s.Keys, "--dev", "--policy", rules, "--out", f.image)
	cmd.Dir = s.Root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("image for %s: %w: %s", arch, err, out)
	}
	busybox, err := peers.Busybox(ctx, arch, os.Stderr)
	if err != nil {
		return err
	}
	web, err := peers.WebImage(arch, busybox)
	if err != nil {
		return err
	}
	f.web, err = s.Registry.Push(ctx, Canary+"repo/web-"+arch, web)
	return err
}

// Image is the guest's image folder.
func (l *Lab) Image(t *testing.T) string {
	t.Helper()
	f, err := l.fixtures(l.Arch)
	must(t, err)
	return f.image
}

// Web is the container image's full reference, as a guest pulls it.
func (l *Lab) Web(t *testing.T) string {
	t.Helper()
	f, err := l.fixtures(l.Arch)
	must(t, err)
	return l.Registry.Guest() + "/" + f.web
}

// File writes a file into the scenario's folder and returns its path.
func (l *Lab) File(t *testing.T, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(l.Dir, name)
	must(t, os.WriteFile(path, data, 0o600))
	return path
}

// Hpcrctl runs the tool as a user does, expects exit status 0 and returns its
// stdout.
func (l *Lab) Hpcrctl(t *testing.T, args ...string) []byte {
	t.Helper()
	return run(t, l.Dir, l.Ctl, args...)
}

// Command runs a foreign program, expects exit status 0 and returns its
// stdout.
func (l *Lab) Command(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	return run(t, l.Dir, name, args...)
}

func run(t *testing.T, dir, name string, args ...string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v (missing? run 'make deps')\n%s", filepath.Base(name), strings.Join(args, " "), err, stderr.Bytes())
	}
	return out
}

// Root is the repository that holds the working directory.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the repository: %w", err)
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("run this inside the repository: no go.mod in any folder above")
		}
	}
}

var unsafe = regexp.MustCompile(`[^a-z0-9]+`)

// slug is the last part of a test's name, as a folder's name.
func slug(name string) string {
	name = name[strings.LastIndexByte(name, '/')+1:]
	return strings.Trim(unsafe.ReplaceAllString(strings.ToLower(name), "-"), "-")
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
