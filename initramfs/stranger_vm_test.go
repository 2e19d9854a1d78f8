//go:build vm

package initramfs

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// stranger is another builder: a user without our rights, folders, caches,
// umask, time zone, language and date.
type stranger struct {
	t    *testing.T
	home string
	env  []string
	cred *syscall.Credential // nil where we may not change user
}

const strangersID = 65534 // nobody

// newStranger prepares a home that the stranger can reach and owns.
func newStranger(t *testing.T) *stranger {
	t.Helper()
	home, err := os.MkdirTemp("", "stranger-with-a-long-home-")
	if err != nil {
		t.Fatal(err)
	}
	s := &stranger{t: t, home: home}
	t.Cleanup(func() {
		// Go's module cache is read-only, which would stop os.RemoveAll.
		if err := s.command("chmod", "-R", "u+w", home).Run(); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(home); err != nil {
			t.Error(err)
		}
	})
	if os.Getuid() == 0 {
		s.cred = &syscall.Credential{Uid: strangersID, Gid: strangersID}
	} else {
		t.Log("not root: the second build runs as the same user")
	}
	// Modules come from our cache as from a proxy: go.sum says whether they are right.
	proxy := httptest.NewServer(http.FileServer(http.Dir(filepath.Join(goenv(t, "GOMODCACHE"), "cache", "download"))))
	t.Cleanup(proxy.Close)
	s.env = []string{
		"PATH=" + filepath.Join(home, "bin") + ":" + filepath.Join(goenv(t, "GOROOT"), "bin") + ":/usr/bin:/bin:/usr/sbin:/sbin",
		"HOME=" + home, "TMPDIR=" + home, "HPCR_CACHE=" + filepath.Join(home, "cache"), "SOURCE_DATE_EPOCH=" + os.Getenv("SOURCE_DATE_EPOCH"),
		"GOPROXY=" + proxy.URL, "GOSUMDB=off", "GOTOOLCHAIN=local",
		"GOAMD64=v3", "CGO_CFLAGS=-O0", "CFLAGS=-O0", // a builder's own taste must not reach the compiler
		"TZ=Pacific/Apia", "LANG=C.UTF-8", "USER=stranger", "HOSTNAME=elsewhere",
	}
	s.wrapTools()
	return s
}

func goenv(t *testing.T, name string) string {
	t.Helper()
	out, err := exec.Command("go", "env", name).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// wrapTools gives the C tools another date. Go's programs ask the kernel, whose
// one clock is everybody's: for the toolchain, which writes no dates, there are
// the files' times, and for our own code TestReproducible.
func (s *stranger) wrapTools() {
	s.t.Helper()
	if err := Have("faketime"); err != nil {
		s.t.Fatal(err)
	}
	bin := filepath.Join(s.home, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		s.t.Fatal(err)
	}
	for _, name := range []string{"gcc", "s390x-linux-gnu-gcc", "pkg-config", "dpkg-deb", "depmod"} {
		path := tool(name)
		if path == "" {
			continue // an architecture's compiler that nobody asked for
		}
		script := fmt.Sprintf("#!/bin/sh\nexec %s -f '@2031-02-03 04:05:06' %s \"$@\"\n", tool("faketime"), path)
		if err := os.WriteFile(filepath.Join(bin, name), []byte(script), 0o755); err != nil {
			s.t.Fatal(err)
		}
	}
}

// command runs as the stranger.
func (s *stranger) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command("sh", append([]string{"-c", `umask 077; exec "$@"`, "sh", name}, args...)...)
	cmd.Dir, cmd.Env, cmd.Stderr = s.home, s.env, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.cred}
	return cmd
}

func (s *stranger) run(name string, args ...string) {
	s.t.Helper()
	if err := s.command(name, args...).Run(); err != nil {
		s.t.Fatalf("%s %v: %v", name, args, err)
	}
}

// takeInputs copies the packages that were resolved for arch: they are what
// two builders must agree on, and are checked by hash.
func (s *stranger) takeInputs(cache, arch string) {
	s.t.Helper()
	from, to := filepath.Join(cache, "debian", arch), filepath.Join(s.home, "cache", "debian", arch)
	deb, err := NewDebian(arch, os.Stderr)
	if err != nil {
		s.t.Fatal(err)
	}
	wants, err := imageWants(arch)
	if err != nil {
		s.t.Fatal(err)
	}
	pkgs, err := deb.Fetch(context.Background(), "image", wants)
	if err != nil {
		s.t.Fatal(err)
	}
	files := []string{filepath.Join(from, "resolved-image.json")}
	for _, p := range pkgs {
		files = append(files, p.File)
	}
	for _, f := range files {
		rel, err := filepath.Rel(from, f)
		if err != nil {
			s.t.Fatal(err)
		}
		data, err := os.ReadFile(f)
		if err != nil {
			s.t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Dir(filepath.Join(to, rel)), 0o755); err != nil {
			s.t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, rel), data, 0o644); err != nil {
			s.t.Fatal(err)
		}
	}
}

// own gives the stranger what is in its home.
func (s *stranger) own() {
	s.t.Helper()
	if s.cred == nil {
		return
	}
	err := filepath.WalkDir(s.home, func(name string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(name, strangersID, strangersID)
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// The whole of TestReproducible: another user on another day compiles each
// package anew, with caches of its own, from module archives and Debian
// packages, with hpcrctl as users run it. It takes minutes, and is `make repro`.
func TestStrangersReproduceTheBase(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
	src, err := FindSource(context.Background(), "")
	if err != nil {
		t.Fatal(err)
	}
	cache, err := CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	ours := filepath.Join(t.TempDir(), "here")
	copySource(t, src.Root, ours, 2026)
	s := newStranger(t)
	copySource(t, src.Root, filepath.Join(s.home, "theirs"), 1999)
	for _, arch := range archs() {
		s.takeInputs(cache, arch)
	}
	hpcrctl := filepath.Join(s.home, "hpcrctl")
	build1 := exec.Command("go", "build", "-trimpath", "-o", hpcrctl, "./cmd/hpcrctl")
	build1.Dir, build1.Env = ours, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build1.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s.own()
	s.run(hpcrctl, "keys", "new", "--out", "keys")
	keys := handMade(t)
	for _, arch := range archs() {
		t.Run(arch, func(t *testing.T) {
			dir, a := build(t, arch, keys, BuildOptions{Source: ours})
			s.run(hpcrctl, "image", "build", "--arch", arch, "--keys", "keys", "--dev", "--source", "theirs", "--out", arch)
			b, err := ReadManifest(filepath.Join(s.home, arch, ManifestFile))
			if err != nil {
				t.Fatal(err)
			}
			compareBuilds(t, a, b)
			// And so an auditor would see it: each with keys of its own.
			s.run(hpcrctl, "image", "verify", "--image", arch)
			audit := exec.Command(hpcrctl, "image", "verify", "--image", dir, "--manifest", filepath.Join(s.home, arch, ManifestFile))
			if out, err := audit.CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}
