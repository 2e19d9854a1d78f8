//go:build vm

package initramfs

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func build(t *testing.T, arch, keys string, o BuildOptions) (string, *Manifest) {
	t.Helper()
	o.Arch, o.Keys, o.Dev, o.Log = arch, []string{keys}, true, os.Stderr
	o.Out = filepath.Join(t.TempDir(), "image")
	m, err := Build(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	if err := Verify(o.Out, m); err != nil {
		t.Fatal(err)
	}
	return o.Out, m
}

func archs() []string {
	if v := os.Getenv("HPCR_ARCHS"); v != "" {
		return strings.Fields(v)
	}
	return Architectures
}

// copySource puts the tree's files elsewhere, as another checkout would, with
// times of the given year.
func copySource(t *testing.T, root, to string, year int) {
	t.Helper()
	out, err := exec.Command("git", "-c", "safe.directory=*", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard").Output()
	if err != nil {
		t.Fatal(err)
	}
	when := time.Date(year, 2, 3, 4, 5, 6, 0, time.UTC)
	for name := range strings.SplitSeq(strings.TrimRight(string(out), "\x00"), "\x00") {
		data, err := os.ReadFile(filepath.Join(root, name))
		if os.IsNotExist(err) {
			continue // removed, not committed yet
		}
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(to, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, data, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(file, when, when); err != nil {
			t.Fatal(err)
		}
	}
}

// Attack: a builder slips something into a base that others cannot see. Claim:
// whoever builds the same source gets the same bytes, so a difference shows.
// Another folder, umask, time zone, year, cache of built programs, other keys.
//
// This is the cheap half, which shares Go's compiled packages between the two
// builds; TestStrangersReproduceTheBase is the whole.
func TestReproducible(t *testing.T) {
	src, err := FindSource(context.Background(), "")
	if err != nil {
		t.Fatal(err)
	}
	// A copy has no git: version and time are given, as a release build does.
	t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
	cache, err := CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	first, second := handMade(t), handMade(t)
	one, two := filepath.Join(t.TempDir(), "here"), filepath.Join(t.TempDir(), "elsewhere")
	copySource(t, src.Root, one, 2026)
	copySource(t, src.Root, two, 1999)
	for _, arch := range archs() {
		t.Run(arch, func(t *testing.T) {
			t.Setenv("HPCR_CACHE", cache)
			dirA, a := build(t, arch, first, BuildOptions{Source: one})

			// The packages are the inputs and are shared; what is built from them is not.
			other := t.TempDir()
			if err := os.Symlink(filepath.Join(cache, "debian"), filepath.Join(other, "debian")); err != nil {
				t.Fatal(err)
			}
			t.Setenv("HPCR_CACHE", other)
			t.Setenv("TZ", "Pacific/Apia")
			t.Setenv("LC_ALL", "C.UTF-8")
			t.Setenv("GOAMD64", "v3") // a builder's own taste must not reach the compiler
			t.Setenv("CGO_CFLAGS", "-O0")
			defer syscall.Umask(syscall.Umask(0o077))
			var dirB string
			var b *Manifest
			// In the bubble time.Now is what the test says: 2000, and 40 years later.
			synctest.Test(t, func(t *testing.T) {
				time.Sleep(40 * 365 * 24 * time.Hour)
				dirB, b = build(t, arch, second, BuildOptions{Source: two})
				compareBuilds(t, a, b)
				// Keyless: what the two keyed images share is exactly the base, so no
				// byte of it depends on the keys; and the keys do make a difference.
				ra, rb := readPart(t, dirA), readPart(t, dirB)
				if !bytes.Equal(ra[:a.Base.Size], rb[:b.Base.Size]) || bytes.Equal(ra, rb) {
					t.Error("the base is not the part of the initrd that has no keys")
				}
			})
		})
	}
}

// compareBuilds prints both hashes, part by part.
func compareBuilds(t *testing.T, a, b *Manifest) {
	t.Helper()
	for _, p := range []struct {
		name string
		a, b Part
	}{
		{"kernel", a.Parts[KernelFile], b.Parts[KernelFile]}, {"parmfile", a.Parts[ParmFile], b.Parts[ParmFile]},
		{"init", a.Init, b.Init}, {"agent", a.Agent, b.Agent}, {"disk", a.Disk, b.Disk}, {"runc", a.Runc, b.Runc}, {"policy", a.PolicyFile, b.PolicyFile}, {"base", a.Base, b.Base},
	} {
		verdict := "equal"
		if p.a != p.b {
			verdict = "DIFFERENT"
			t.Errorf("%s of %s differs between two builds", p.name, a.Arch)
		}
		t.Logf("%s %-8s %s %s %s", a.Arch, p.name, p.a.SHA256, p.b.SHA256, verdict)
	}
	if a.Inputs != b.Inputs {
		t.Errorf("inputs differ: %v", SameBase(a, b))
	}
	if err := SameBase(a, b); err != nil {
		t.Error(err)
	}
}

func readPart(t *testing.T, dir string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, InitrdFile))
	if err != nil {
		t.Fatal(err)
	}
	return data
}
