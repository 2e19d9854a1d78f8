package initramfs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// LockFile names, in the source tree, what a locked build is made from.
const LockFile = "initramfs/image.lock"

// What can be wrong with a locked build.
var (
	ErrNotLocked   = errors.New("not what " + LockFile + " says")
	ErrPackageGone = errors.New("package has left Debian's archive")
	ErrPackageHash = errors.New("package has another hash")
)

const updateHint = "run 'hpcrctl image update' and review what it changes"

// Architectures that images are built for.
var Architectures = []string{"amd64", "s390x"}

// Lock is LockFile: for a reader, who reviews its changes as those of source.
type Lock struct {
	Go            string              `json:"go"`
	GoModules     []GoModule          `json:"goModules"`
	AppArmor      string              `json:"apparmorParser"`
	Architectures map[string]ArchLock `json:"architectures"`
	Loader        []Package           `json:"loader"` // of Secure Execution images
}

// ArchLock is what one architecture's images are built with.
type ArchLock struct {
	Compiler Compiler  `json:"compiler"`
	Packages []Package `json:"packages"`
}

// ReadLock reads the lock of a source tree.
func ReadLock(root string) (*Lock, error) {
	text, err := os.ReadFile(filepath.Join(root, LockFile))
	if err != nil {
		return nil, err
	}
	l := &Lock{}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(l); err != nil {
		return nil, fmt.Errorf("%s: %w", LockFile, err)
	}
	return l, nil
}

func (l *Lock) add(arch string, t Toolchain, pkgs []Package) {
	l.Go, l.GoModules, l.AppArmor = t.Go, t.GoModules, t.AppArmor
	if l.Architectures == nil {
		l.Architectures = map[string]ArchLock{}
	}
	l.Architectures[arch] = ArchLock{t.Compiler, pkgs}
}

// Changes lists what differs in now, a line each, for the architectures it has.
func (l *Lock) Changes(now *Lock) []string {
	var lines []string
	compare := func(what, old, new string) {
		switch {
		case old == new:
		case old == "":
			lines = append(lines, fmt.Sprintf("%s: %s is new", what, new))
		case new == "":
			lines = append(lines, fmt.Sprintf("%s: %s is no longer used", what, old))
		default:
			lines = append(lines, fmt.Sprintf("%s: %s → %s", what, old, new))
		}
	}
	compare("go", l.Go, now.Go)
	compare("apparmor parser", l.AppArmor, now.AppArmor)
	each(l.GoModules, now.GoModules, func(m GoModule) string { return m.Path }, func(m GoModule) string { return m.Version + " " + m.Sum }, compare)
	for _, arch := range Architectures {
		new, ok := now.Architectures[arch]
		if !ok {
			continue
		}
		old := l.Architectures[arch]
		compare(arch+" compiler", old.Compiler.String(), new.Compiler.String())
		each(old.Packages, new.Packages, func(p Package) string { return arch + " " + p.role() }, Package.String, compare)
	}
	if now.Loader != nil {
		each(l.Loader, now.Loader, func(p Package) string { return "loader " + p.Name }, Package.String, compare)
	}
	return lines
}

// each compares two lists entry by entry, by what names them.
func each[T any](old, new []T, name, text func(T) string, compare func(what, old, new string)) {
	texts := map[string][2]string{}
	var names []string
	for i, list := range [][]T{old, new} {
		for _, x := range list {
			pair, ok := texts[name(x)]
			if !ok {
				names = append(names, name(x))
			}
			pair[i] = text(x)
			texts[name(x)] = pair
		}
	}
	slices.Sort(names)
	for _, n := range names {
		compare(n, texts[n][0], texts[n][1])
	}
}

func (c Compiler) String() string {
	if c.Version == "" {
		return ""
	}
	return fmt.Sprintf("%s (links %s)", c.Version, c.Links)
}

// String shows a kernel by its package name too, which holds its version.
func (p Package) String() string {
	return fmt.Sprintf("%s %s (sha256 %s)", p.Name, p.Version, p.SHA256)
}

// role is what a package is for, the same for all versions of a kernel.
func (p Package) role() string {
	if strings.HasPrefix(p.Name, "linux-image-") {
		return "kernel"
	}
	return p.Name
}

func (w Want) role() string { return Package{Name: w.Name}.role() }

// fetchImage gives the packages of an image: those of the lock if it must, else
// the newest that this machine resolved, with a note where they differ.
func fetchImage(ctx context.Context, o BuildOptions, src *Source, deb *Debian, wants []Want, t Toolchain) ([]Package, error) {
	lock, err := ReadLock(src.Root)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !o.Locked:
		lock = nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w: %s has no %s: %s", ErrNotLocked, src.Root, LockFile, updateHint)
	case err != nil:
		return nil, err
	}
	if o.Locked {
		pins := lock.Architectures[o.Arch].Packages
		now := &Lock{}
		now.add(o.Arch, t, pins)
		if changes := lock.Changes(now); len(changes) > 0 {
			return nil, fmt.Errorf("%w (lock → here): %s: use what it names, or %s", ErrNotLocked, strings.Join(changes, "; "), updateHint)
		}
		return deb.FetchPinned(ctx, wants, pins)
	}
	pkgs, err := deb.Fetch(ctx, "image", wants)
	if err != nil || lock == nil {
		return pkgs, err
	}
	now := &Lock{}
	now.add(o.Arch, t, pkgs)
	for _, c := range lock.Changes(now) {
		fmt.Fprintf(o.Log, "note: not as locked: %s\n", c)
	}
	return pkgs, nil
}

// FetchPinned gives exactly the pinned packages, in the order of wants: from
// the cache where they lie there with their hash, else from the archive.
func (d *Debian) FetchPinned(ctx context.Context, wants []Want, pins []Package) ([]Package, error) {
	var pkgs []Package
	for _, w := range wants {
		i := slices.IndexFunc(pins, func(p Package) bool { return p.role() == w.role() })
		if i < 0 {
			return nil, fmt.Errorf("%w: no %s for %s is in it: %s", ErrNotLocked, w.role(), d.arch, updateHint)
		}
		if len(pins[i].SHA256) != 64 {
			return nil, fmt.Errorf("%w: %s has no hash", ErrNotLocked, pins[i].Name)
		}
		p := pins[i]
		p.File = d.debFile(p)
		pkgs = append(pkgs, p)
	}
	if len(pins) != len(pkgs) {
		return nil, fmt.Errorf("%w: it names %d packages for %s, the image is made of %d: %s", ErrNotLocked, len(pins), d.arch, len(pkgs), updateHint)
	}
	return pkgs, locked(d.dir, "apt", func() error {
		missing := slices.DeleteFunc(slices.Clone(pkgs), Package.cached)
		if len(missing) == 0 {
			return nil
		}
		if err := d.refresh(ctx); err != nil {
			return err
		}
		for _, p := range missing {
			if err := d.offered(ctx, p); err != nil {
				return err
			}
		}
		return d.download(ctx, missing)
	})
}

// offered says whether the archive still has a pinned package, with its hash.
func (d *Debian) offered(ctx context.Context, p Package) error {
	// An unknown name is an error of apt-cache, an unknown version is silence;
	// the lists are fresh, so both mean the same.
	out, err := output(ctx, "", nil, "apt-cache", append(d.options(""), "show", p.Name+"="+p.Version)...)
	var sums []string
	for stanza := range strings.SplitSeq(string(out), "\n\n") {
		if sum := field(stanza, "SHA256"); sum == p.SHA256 {
			return nil
		} else if sum != "" {
			sums = append(sums, sum)
		}
	}
	if err != nil || len(sums) == 0 {
		return fmt.Errorf("%w: %s %s for %s, and no copy is in the cache: %s", ErrPackageGone, p.Name, p.Version, d.arch, updateHint)
	}
	return fmt.Errorf("%w: %s %s for %s is %s in Debian's archive, the lock says %s: one of the two was changed, find out which",
		ErrPackageHash, p.Name, p.Version, d.arch, strings.Join(sums, ", "), p.SHA256)
}

// Update resolves the newest packages for all architectures, rewrites the lock
// of the source tree and says what changed. Later unlocked builds use them too.
func Update(ctx context.Context, source string, log io.Writer) ([]string, error) {
	src, err := FindSource(ctx, source)
	if err != nil {
		return nil, err
	}
	old, err := ReadLock(src.Root)
	if errors.Is(err, fs.ErrNotExist) {
		old = &Lock{}
	} else if err != nil {
		return nil, err
	}
	now := &Lock{}
	for _, arch := range Architectures {
		wants, err := imageWants(arch)
		if err != nil {
			return nil, err
		}
		tools, err := src.toolchain(ctx, arch)
		if err != nil {
			return nil, err
		}
		deb, err := NewDebian(arch, log)
		if err != nil {
			return nil, err
		}
		pkgs, err := deb.Renew(ctx, "image", wants)
		if err != nil {
			return nil, err
		}
		if err := checkFloors(tools, pkgs[0]); err != nil {
			return nil, err
		}
		now.add(arch, tools, pkgs)
	}
	deb, err := newLoaderDebian(log)
	if err != nil {
		return nil, err
	}
	if now.Loader, err = deb.Renew(ctx, "loader", loaderPackages); err != nil {
		return nil, err
	}
	changes := old.Changes(now)
	if len(changes) == 0 {
		return nil, nil
	}
	text, err := json.MarshalIndent(now, "", "  ")
	if err != nil {
		return nil, err
	}
	return changes, writeFile(filepath.Join(src.Root, LockFile), append(text, '\n'), 0o644)
}
