//go:build vm

package initramfs

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
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
	return []string{"amd64", "s390x"}
}

// copySource puts the tree's files elsewhere, as another checkout would.
func copySource(t *testing.T, root string) string {
	t.Helper()
	out, err := exec.Command("git", "-c", "safe.directory=*", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard").Output()
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "elsewhere")
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
	}
	return to
}

// Attack: a builder slips something into a base that others cannot see. Claim:
// whoever builds the same source gets the same bytes, so a difference shows.
// Another folder, umask, time zone, cache of built programs and other keys.
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
	one, two := copySource(t, src.Root), copySource(t, src.Root)
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
			defer syscall.Umask(syscall.Umask(0o077))
			dirB, b := build(t, arch, second, BuildOptions{Source: two})

			if a.Base != b.Base || a.Init != b.Init || a.Agent != b.Agent || a.Runc != b.Runc {
				t.Errorf("two builds differ:\nbase  %v\n      %v\nagent %v\n      %v\nrunc  %v\n      %v", a.Base, b.Base, a.Agent, b.Agent, a.Runc, b.Runc)
			}
			for _, name := range []string{KernelFile, ParmFile} {
				if a.Parts[name] != b.Parts[name] {
					t.Errorf("%s differs", name)
				}
			}
			// Keyless: what the two keyed images share is exactly the base, so no
			// byte of it depends on the keys; and the keys do make a difference.
			ra, rb := readPart(t, dirA), readPart(t, dirB)
			if !bytes.Equal(ra[:a.Base.Size], rb[:b.Base.Size]) || bytes.Equal(ra, rb) {
				t.Error("the base is not the part of the initrd that has no keys")
			}
		})
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

// What an image holds is what the guest expects to find: its binary under all
// names, programs whose libraries are there, modules whose files are there.
func TestImageIsWhole(t *testing.T) {
	keys := handMade(t)
	for _, arch := range archs() {
		t.Run(arch, func(t *testing.T) {
			dir, m := build(t, arch, keys, BuildOptions{Agent: "./initramfs/testdata/init"})
			files := unpack(t, readPart(t, dir), m.Base.Size)
			machine := map[string]elf.Machine{"amd64": elf.EM_X86_64, "s390x": elf.EM_S390}[arch]
			for _, name := range slices.Concat([]string{"bin/runc", "sbin/mkfs.ext4", "sbin/e2fsck", "sbin/resize2fs"}, initLinks, applets) {
				f, err := elf.Open(filepath.Join(files, name))
				if err != nil {
					t.Error(err)
					continue
				}
				if f.Machine != machine {
					t.Errorf("%s is for %v", name, f.Machine)
				}
				libs, err := f.ImportedLibraries()
				if err != nil || strings.HasPrefix(name, "bin/") && len(libs) > 0 {
					t.Errorf("%s is not static: %v %v", name, libs, err)
				}
				for _, lib := range libs {
					if !exists(filepath.Join(files, "lib", triplet(arch), lib)) {
						t.Errorf("%s needs %s", name, lib)
					}
				}
				f.Close()
			}
			var mods struct {
				Groups map[string][]string `json:"groups"`
			}
			data, err := os.ReadFile(filepath.Join(files, "etc/hpcr/modules.json"))
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(data, &mods); err != nil {
				t.Fatal(err)
			}
			for _, group := range []string{"base", "network", "containers", "vsock", "disk"} {
				if len(mods.Groups[group]) == 0 {
					t.Errorf("group %s is empty", group)
				}
			}
			for group, list := range mods.Groups {
				for _, file := range list {
					f, err := elf.Open(filepath.Join(files, file))
					if err != nil {
						t.Errorf("group %s: %v", group, err)
						continue
					}
					f.Close()
				}
			}
			if !slices.Contains(m.Modules, "dm_crypt") || slices.Contains(m.Modules, "isofs") {
				t.Errorf("modules: %v", m.Modules)
			}
			if diff := cmp.Diff("0400", mode(t, filepath.Join(files, "keys/0/contract.key"))); diff != "" {
				t.Errorf("the contract key's mode: %s", diff)
			}
			if m.Parts[InitrdFile].Size > 25<<20 {
				t.Errorf("initrd has %d bytes, the budget is 25 MiB", m.Parts[InitrdFile].Size)
			}
		})
	}
}

func mode(t *testing.T, name string) string {
	t.Helper()
	out, err := exec.Command("stat", "-c", "0%a", name).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// unpack takes an initrd apart as the kernel does.
func unpack(t *testing.T, initrd []byte, base int64) string {
	t.Helper()
	zr, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer zr.Close()
	raw, err := zr.DecodeAll(bytes.TrimRight(initrd[:base], "\x00"), nil)
	if err != nil {
		// A frame may end in zeros itself: give them back.
		for n := 1; err != nil && n <= 512; n++ {
			raw, err = zr.DecodeAll(initrd[:len(bytes.TrimRight(initrd[:base], "\x00"))+n], nil)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	for _, part := range [][]byte{raw, initrd[base:]} {
		cmd := exec.Command("cpio", "-idm", "--quiet", "--no-absolute-filenames")
		cmd.Dir, cmd.Stdin, cmd.Stderr = dir, bytes.NewReader(part), io.Discard
		if out, err := cmd.Output(); err != nil {
			t.Fatalf("%v: %s (cpio missing? run make deps)", err, out)
		}
	}
	return dir
}
