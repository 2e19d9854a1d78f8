package initramfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// debianArchive is a Debian archive in a folder, with packages made on the spot.
type debianArchive struct {
	t   *testing.T
	dir string
}

func newArchive(t *testing.T) *debianArchive {
	t.Helper()
	if err := Have("apt-get", "apt-cache", "dpkg-deb"); err != nil {
		t.Skip(err)
	}
	return &debianArchive{t, t.TempDir()}
}

// offer makes the archive hold these versions ("name version") and no others.
func (a *debianArchive) offer(pkgs ...string) map[string]Package {
	a.t.Helper()
	made := map[string]Package{}
	var index strings.Builder
	for _, p := range pkgs {
		name, version, _ := strings.Cut(p, " ")
		root := a.t.TempDir()
		control := fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: all\nMaintainer: nobody\nDescription: test\n", name, version)
		for file, text := range map[string]string{"DEBIAN/control": control, "usr/share/" + name: version} {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(root, file)), 0o755); err != nil {
				a.t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(root, file), []byte(text), 0o644); err != nil {
				a.t.Fatal(err)
			}
		}
		deb := fmt.Sprintf("%s_%s_all.deb", name, version)
		cmd := exec.Command("dpkg-deb", "--root-owner-group", "-Znone", "-b", root, filepath.Join(a.dir, deb))
		cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1700000000")
		if out, err := cmd.CombinedOutput(); err != nil {
			a.t.Fatalf("%v: %s", err, out)
		}
		sum, size, err := hashFile(filepath.Join(a.dir, deb))
		if err != nil {
			a.t.Fatal(err)
		}
		made[p] = Package{Name: name, Version: version, Arch: "all", SHA256: sum}
		fmt.Fprintf(&index, "%sFilename: ./%s\nSize: %d\nSHA256: %s\n\n", control, deb, size, sum)
	}
	if err := os.WriteFile(filepath.Join(a.dir, "Packages"), []byte(index.String()), 0o644); err != nil {
		a.t.Fatal(err)
	}
	return made
}

func (a *debianArchive) debian() *Debian {
	return &Debian{arch: "amd64", dir: filepath.Join(a.t.TempDir(), "amd64"), log: io.Discard,
		sources: func(context.Context, string) (string, error) {
			return "deb [trusted=yes] file:" + a.dir + " ./\n", nil
		}}
}

// Attack: mirror, cache or lock hand the build another package than was
// reviewed. Claim: it takes exactly the pinned bytes, or stops by name.
func TestPinnedPackagesOrNone(t *testing.T) {
	ctx := context.Background()
	a := newArchive(t)
	made := a.offer("tool 1.0", "lib 2.0")
	wants := []Want{{"tool", ""}, {"lib", ""}}
	pins := []Package{made["lib 2.0"], made["tool 1.0"]}
	d := a.debian()
	got, err := d.FetchPinned(ctx, wants, pins)
	if err != nil {
		t.Fatal(err)
	}
	if got[0].Name != "tool" || got[1].Name != "lib" || !got[0].cached() || !got[1].cached() {
		t.Fatalf("got %v", got)
	}

	changed := slices.Clone(pins)
	changed[0].SHA256 = strings.Repeat("0", 64)
	renewed := slices.Clone(pins)
	renewed[0].Version = "2.1"
	for name, tc := range map[string]struct {
		pins []Package
		want error
		say  string
	}{
		"a hash that is not the archive's":       {changed, ErrPackageHash, "lib 2.0"},
		"a version the archive never had":        {func() []Package { p := slices.Clone(renewed); p[0].SHA256 = changed[0].SHA256; return p }(), ErrPackageGone, "lib 2.1"},
		"a package that the lock does not name":  {pins[:1], ErrNotLocked, "tool"},
		"a package that the image does not need": {append(slices.Clone(pins), Package{Name: "spy", SHA256: changed[0].SHA256}), ErrNotLocked, "3 packages"},
		"a pin without a hash":                   {[]Package{pins[0], {Name: "tool", Version: "1.0"}}, ErrNotLocked, "no hash"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := d.FetchPinned(ctx, wants, tc.pins)
			if !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.say) {
				t.Errorf("got %v", err)
			}
		})
	}

	t.Run("a name the archive never had", func(t *testing.T) {
		_, err := d.FetchPinned(ctx, []Want{{"spy", ""}}, []Package{{Name: "spy", Version: "1", SHA256: changed[0].SHA256}})
		if !errors.Is(err, ErrPackageGone) || !strings.Contains(err.Error(), "spy 1") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a copy that was changed in the cache is fetched again", func(t *testing.T) {
		if err := os.WriteFile(got[1].File, []byte("malware"), 0o644); err != nil {
			t.Fatal(err)
		}
		again, err := d.FetchPinned(ctx, wants, pins)
		if err != nil || !again[1].cached() {
			t.Errorf("%v %v", again, err)
		}
	})

	// The archive moves on, as backports do each week.
	a.offer("tool 1.0", "lib 2.1")
	t.Run("a package that has left the archive is taken from the cache", func(t *testing.T) {
		if _, err := d.FetchPinned(ctx, wants, pins); err != nil {
			t.Error(err)
		}
	})
	t.Run("without a copy it is named, with the next step", func(t *testing.T) {
		_, err := a.debian().FetchPinned(ctx, wants, pins)
		if !errors.Is(err, ErrPackageGone) || !strings.Contains(err.Error(), "lib 2.0") || !strings.Contains(err.Error(), "hpcrctl image update") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a changed copy of it is not taken either", func(t *testing.T) {
		if err := os.WriteFile(got[1].File, []byte("malware"), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := d.FetchPinned(ctx, wants, pins); !errors.Is(err, ErrPackageGone) {
			t.Errorf("got %v", err)
		}
	})
}

// A second build needs no network and gives the same; Renew takes what is new.
func TestResolvedPackagesStayUntilRenewed(t *testing.T) {
	ctx := context.Background()
	a := newArchive(t)
	a.offer("tool 1.0")
	d, wants := a.debian(), []Want{{"tool", ""}}
	version := func(fetch func(context.Context, string, []Want) ([]Package, error)) string {
		t.Helper()
		pkgs, err := fetch(ctx, "test", wants)
		if err != nil {
			t.Fatal(err)
		}
		return pkgs[0].Version
	}
	first := version(d.Fetch)
	a.offer("tool 1.1")
	if second := version(d.Fetch); first != "1.0" || second != "1.0" {
		t.Errorf("%s, then %s", first, second)
	}
	if renewed, after := version(d.Renew), version(d.Fetch); renewed != "1.1" || after != "1.1" {
		t.Errorf("renewed %s, after it %s", renewed, after)
	}
	a.offer()
	if _, err := d.Renew(ctx, "test", wants); err == nil {
		t.Error("an empty archive was taken")
	}
	if kept := version(d.Fetch); kept != "1.1" {
		t.Errorf("a failed renewal left %s", kept)
	}
}

func TestALocksChangesAreSaidOneByOne(t *testing.T) {
	kernel := func(v string) Package {
		return Package{Name: "linux-image-" + v + "-s390x", Version: v, SHA256: strings.Repeat("a", 64)}
	}
	lock := func(goVersion, runc string, cc Compiler, pkgs ...Package) *Lock {
		l := &Lock{}
		l.add("s390x", Toolchain{Go: goVersion, GoModules: []GoModule{{runcModule, runc, "h1:x"}}, Compiler: cc}, pkgs)
		return l
	}
	cc := Compiler{"gcc 12", strings.Repeat("c", 64)}
	old := lock("go1.26.6", "v1.5.1", cc, kernel("6.12.95"), Package{Name: "libss2", Version: "1", SHA256: strings.Repeat("b", 64)})
	for name, tc := range map[string]struct {
		now  *Lock
		want []string
	}{
		"nothing": {old, nil},
		"a newer kernel, of another package name": {
			lock("go1.26.6", "v1.5.1", cc, kernel("6.12.99"), old.Architectures["s390x"].Packages[1]),
			[]string{"s390x kernel: linux-image-6.12.95-s390x 6.12.95 (sha256 " + strings.Repeat("a", 64) + ") → linux-image-6.12.99-s390x 6.12.99 (sha256 " + strings.Repeat("a", 64) + ")"},
		},
		"tools and a package less": {
			lock("go1.26.8", "v1.5.2", Compiler{"gcc 14", cc.Links}, kernel("6.12.95")),
			[]string{
				"go: go1.26.6 → go1.26.8",
				runcModule + ": v1.5.1 h1:x → v1.5.2 h1:x",
				"s390x compiler: gcc 12 (links " + cc.Links + ") → gcc 14 (links " + cc.Links + ")",
				"s390x libss2: libss2 1 (sha256 " + strings.Repeat("b", 64) + ") is no longer used",
			},
		},
		"another hash, in its last digit": {
			lock("go1.26.6", "v1.5.1", cc, kernel("6.12.95"), Package{Name: "libss2", Version: "1", SHA256: strings.Repeat("b", 63) + "c"}),
			[]string{"s390x libss2: libss2 1 (sha256 " + strings.Repeat("b", 64) + ") → libss2 1 (sha256 " + strings.Repeat("b", 63) + "c)"},
		},
		"another loader": {
			&Lock{Go: old.Go, GoModules: old.GoModules, Loader: []Package{{Name: "s390-tools", Version: "2", SHA256: strings.Repeat("d", 64)}}},
			[]string{"loader s390-tools: s390-tools 2 (sha256 " + strings.Repeat("d", 64) + ") is new"},
		},
		"what another architecture has does not count": {&Lock{Go: old.Go, GoModules: old.GoModules}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, old.Changes(tc.now)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// Attack: a locked build runs with another compiler than was reviewed. Claim:
// it is refused before anything is fetched.
func TestALockedBuildTakesNoOtherTools(t *testing.T) {
	ctx := context.Background()
	root := t.TempDir()
	src := &Source{Root: root}
	tools := Toolchain{Go: "go1.26.8", GoModules: []GoModule{{runcModule, "v1.5.2", "h1:x"}}, Compiler: Compiler{"gcc 12", "c"}, AppArmor: "3.0.8"}
	d := &Debian{arch: "amd64", dir: t.TempDir(), log: io.Discard, sources: func(context.Context, string) (string, error) {
		t.Error("the archive was asked")
		return "", errors.New("no archive")
	}}
	o := BuildOptions{Arch: "amd64", Locked: true, Log: io.Discard}
	if _, err := fetchImage(ctx, o, src, d, nil, tools); !errors.Is(err, ErrNotLocked) {
		t.Errorf("without a lock: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(root, "initramfs"), 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(text string) {
		if err := os.WriteFile(filepath.Join(root, LockFile), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(`{"go":"go1.26.8","goModules":[{"path":"` + runcModule + `","version":"v1.5.2","sum":"h1:x"}],"apparmorParser":"3.0.8",
		"architectures":{"amd64":{"compiler":{"version":"gcc 12","links":"c"},"packages":[]}}}`)
	if _, err := fetchImage(ctx, o, src, d, nil, tools); err != nil {
		t.Errorf("what the lock names: %v", err)
	}
	for name, tc := range map[string]struct {
		change func(*Toolchain)
		say    string
	}{
		"another Go":                       {func(t *Toolchain) { t.Go = "go1.26.9" }, "go1.26.8 → go1.26.9"},
		"another runc":                     {func(t *Toolchain) { t.GoModules = []GoModule{{runcModule, "v1.5.3", "h1:x"}} }, "v1.5.3"},
		"the same runc with other content": {func(t *Toolchain) { t.GoModules = []GoModule{{runcModule, "v1.5.2", "h1:y"}} }, "h1:y"},
		"another C compiler":               {func(t *Toolchain) { t.Compiler.Version = "clang 19" }, "clang 19"},
		"another AppArmor parser":          {func(t *Toolchain) { t.AppArmor = "4.1" }, "3.0.8 → 4.1"},
		"another C library":                {func(t *Toolchain) { t.Compiler.Links = "d" }, "links d"},
	} {
		t.Run(name, func(t *testing.T) {
			other := tools
			tc.change(&other)
			_, err := fetchImage(ctx, o, src, d, nil, other)
			if !errors.Is(err, ErrNotLocked) || !strings.Contains(err.Error(), tc.say) {
				t.Errorf("got %v", err)
			}
		})
	}
	write(`{"go":"go1.26.8","extra":true}`)
	if _, err := fetchImage(ctx, o, src, d, nil, tools); err == nil || !strings.Contains(err.Error(), "extra") {
		t.Errorf("an unknown key: %v", err)
	}
}

// The committed lock is whole: it names all that an image is made of, for both
// architectures, at or above the floors. (Whether the archive still has it is
// no matter of a test: backports move on weekly.)
func TestTheCommittedLockIsWhole(t *testing.T) {
	lock, err := ReadLock("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, arch := range Architectures {
		wants, err := imageWants(arch)
		if err != nil {
			t.Fatal(err)
		}
		var want, got []string
		for _, w := range wants {
			want = append(want, w.role())
		}
		l := lock.Architectures[arch]
		for _, p := range l.Packages {
			got = append(got, p.role())
			if len(p.SHA256) != 64 || p.Version == "" || p.Arch != arch && p.Arch != "all" {
				t.Errorf("%s: %+v", arch, p)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: run 'hpcrctl image update': %s", arch, diff)
			continue
		}
		if err := checkFloors(Toolchain{Go: lock.Go, GoModules: lock.GoModules}, l.Packages[0]); err != nil {
			t.Errorf("%s: %v", arch, err)
		}
		if l.Compiler.Version == "" || len(l.Compiler.Links) != 64 {
			t.Errorf("%s: compiler %v", arch, l.Compiler)
		}
	}
	if l := lock.Loader; len(l) != 1 || l[0].Name != loaderPackages[0].Name || l[0].Arch != "s390x" || len(l[0].SHA256) != 64 {
		t.Errorf("loader: %v", l)
	}
}
