package initramfs

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	modulePath = "hpcr"
	goTags     = "no_btrfs,no_devmapper,no_zfs,no_cri,no_systemd,no_tracing,no_rdt,netgo,osusergo,urfave_cli_no_docs,grpcnotrace"
	runcTags   = "seccomp,runc_nocriu,netgo,osusergo,urfave_cli_no_docs"
	runcModule = "github.com/opencontainers/runc"
	ctrdModule = "github.com/containerd/containerd/v2"
)

// Source is the tree the guest's programs are built from.
type Source struct {
	Root    string
	Version string    // from git; "unknown" without it
	Time    time.Time // SOURCE_DATE_EPOCH, else the commit's
	Go      string    // version of the toolchain
}

// FindSource finds the module's root: dir if given, else $HPCR_SOURCE, else
// upwards from the working folder, else upwards from the running program.
func FindSource(ctx context.Context, dir string) (*Source, error) {
	if dir == "" {
		dir = os.Getenv("HPCR_SOURCE")
	}
	var root string
	if dir != "" {
		root = moduleRoot(dir)
	} else {
		if wd, err := os.Getwd(); err == nil {
			root = moduleRoot(wd)
		}
		if exe, err := os.Executable(); err == nil && root == "" {
			root = moduleRoot(filepath.Dir(exe))
		}
	}
	if root == "" {
		return nil, fmt.Errorf("%w: the source tree of module %s was not found: run inside it, or name it with --source or HPCR_SOURCE", ErrEnvironment, modulePath)
	}
	if err := Have("go"); err != nil {
		return nil, err
	}
	s := &Source{Root: root, Version: "unknown"}
	out, err := output(ctx, root, nil, "go", "env", "GOVERSION")
	if err != nil {
		return nil, err
	}
	s.Go = strings.TrimSpace(string(out))
	git := func(args ...string) string {
		// safe.directory: a container's checkout may belong to another user.
		out, err := output(ctx, root, nil, "git", append([]string{"-c", "safe.directory=*"}, args...)...)
		if err != nil {
			return "" // an exported tree has no git: version and time stay at their defaults
		}
		return strings.TrimSpace(string(out))
	}
	if v := git("describe", "--tags", "--always", "--dirty"); v != "" {
		s.Version = v
	}
	epoch := os.Getenv("SOURCE_DATE_EPOCH")
	if epoch == "" {
		epoch = git("log", "-1", "--format=%ct")
	}
	if epoch != "" {
		n, err := strconv.ParseInt(epoch, 10, 64)
		if err != nil || n < 0 || n > 1<<32-1 {
			return nil, fmt.Errorf("%w: SOURCE_DATE_EPOCH is no time in seconds: %q", ErrEnvironment, epoch)
		}
		s.Time = time.Unix(n, 0).UTC()
	} else {
		s.Time = time.Unix(0, 0).UTC()
	}
	return s, nil
}

func moduleRoot(dir string) string {
	dir, err := filepath.Abs(dir)
	for err == nil {
		data, rerr := os.ReadFile(filepath.Join(dir, "go.mod"))
		if rerr == nil && strings.HasPrefix(string(data), "module "+modulePath+"\n") {
			return dir
		}
		if dir == "/" || dir == "." {
			break
		}
		dir = filepath.Dir(dir)
	}
	return ""
}

// goArgs are the build flags of one program, the same everywhere.
func goArgs(tags, ldflags string) []string {
	return []string{"-trimpath", "-buildvcs=false", "-mod=readonly", "-tags", tags, "-ldflags", ldflags}
}

// goEnv is the environment of a Go build, beside what output lets through.
func goEnv(arch, cgo string) []string {
	return []string{"CGO_ENABLED=" + cgo, "GOOS=linux", "GOARCH=" + arch, "GOAMD64=v1", "GOFLAGS=-mod=readonly", "GOWORK=off"}
}

func flavourTags(dev bool) string {
	if dev {
		return goTags + ",dev"
	}
	return goTags
}

// buildAgent builds the guest's static binary and returns its file in the cache.
func (s *Source) buildAgent(ctx context.Context, arch, pkg string, dev bool, log io.Writer) (string, error) {
	tags := flavourTags(dev)
	env := goEnv(arch, "0")
	args := goArgs(tags, "-s -w -buildid=")
	key, err := s.sourceHash(ctx, tags, env, pkg)
	if err != nil {
		return "", err
	}
	key = hashStrings(append(append([]string{s.Go, pkg, key}, env...), args...)...)
	return s.goBuild(ctx, key, pkg, env, args, log)
}

func (s *Source) goBuild(ctx context.Context, key, pkg string, env, args []string, log io.Writer) (string, error) {
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "go", key[:32])
	bin := filepath.Join(dir, "bin")
	return bin, once(dir, func(tmp string) error {
		fmt.Fprintf(log, "building %s\n", pkg)
		cmd := append(append([]string{"build"}, args...), "-o", filepath.Join(tmp, "bin"), pkg)
		_, err := output(ctx, s.Root, env, "go", cmd...)
		return err
	})
}

// sourceHash is the content of all our packages behind pkgs, and the versions
// of all modules: what decides whether a built binary can be used again.
func (s *Source) sourceHash(ctx context.Context, tags string, env []string, pkgs ...string) (string, error) {
	out, err := output(ctx, s.Root, env, "go", append([]string{"list", "-mod=readonly", "-deps", "-tags", tags,
		"-json=ImportPath,Dir,Standard,Module,GoFiles,EmbedFiles,SFiles,HFiles"}, pkgs...)...)
	if err != nil {
		return "", err
	}
	var parts []string
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for dec.More() {
		var p struct {
			ImportPath, Dir                     string
			Standard                            bool
			Module                              *struct{ Path, Version string }
			GoFiles, EmbedFiles, SFiles, HFiles []string
		}
		if err := dec.Decode(&p); err != nil {
			return "", err
		}
		if p.Standard || p.Module == nil {
			continue
		}
		if p.Module.Path != modulePath {
			parts = append(parts, p.Module.Path+"@"+p.Module.Version)
			continue
		}
		for _, list := range [][]string{p.GoFiles, p.EmbedFiles, p.SFiles, p.HFiles} {
			for _, name := range list {
				sum, _, err := hashFile(filepath.Join(p.Dir, name))
				if err != nil {
					return "", err
				}
				parts = append(parts, p.ImportPath, name, sum)
			}
		}
	}
	return hashStrings(parts...), nil
}

// buildRunc builds the static runc of the module's version with seccomp. It is
// the only program that needs a C compiler.
func (s *Source) buildRunc(ctx context.Context, arch string, tools Toolchain, seccomp []string, log io.Writer) (string, error) {
	if err := Have("pkg-config"); err != nil {
		return "", err
	}
	var args []string
	triplet := triplet(arch)
	// libseccomp's folders of header, archive and pkg-config file are one tree.
	root, err := overlay(seccomp)
	if err != nil {
		return "", err
	}
	if arch == "amd64" {
		args = append(goArgs(runcTags, "-s -w -buildid= -linkmode external -extldflags -static-pie"), "-buildmode=pie")
	} else {
		args = goArgs(runcTags, "-s -w -buildid= -extldflags -static")
	}
	env := append(goEnv(arch, "1"),
		"CC="+compilerName(arch), "CGO_CFLAGS=-O2 -g0", "CGO_LDFLAGS=-O2",
		"PKG_CONFIG_SYSROOT_DIR="+root,
		"PKG_CONFIG_LIBDIR="+filepath.Join(root, "usr/lib", triplet, "pkgconfig"),
		"PKG_CONFIG_ALLOW_SYSTEM_CFLAGS=1", "PKG_CONFIG_ALLOW_SYSTEM_LIBS=1",
	)
	runc, err := tools.module(runcModule)
	if err != nil {
		return "", err
	}
	key := hashStrings(append([]string{s.Go, runc.Version, runc.Sum, arch, tools.Compiler.Version, tools.Compiler.Links, filepath.Base(root)}, args...)...)
	return s.goBuild(ctx, key, runcModule, env, args, log)
}

// overlay makes one tree of symlinks over several unpacked packages.
func overlay(dirs []string) (string, error) {
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	root := filepath.Join(cache, "sysroot", hashStrings(dirs...)[:16])
	return root, once(root, func(tmp string) error {
		for _, dir := range dirs {
			err := filepath.WalkDir(dir, func(name string, e os.DirEntry, err error) error {
				if err != nil {
					return err
				}
				rel, err := filepath.Rel(dir, name)
				if err != nil {
					return err
				}
				to := filepath.Join(tmp, rel)
				if e.IsDir() {
					return os.MkdirAll(to, 0o755)
				}
				return os.Symlink(name, to)
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// triplet is Debian's multiarch name.
func triplet(arch string) string {
	if arch == "s390x" {
		return "s390x-linux-gnu"
	}
	return "x86_64-linux-gnu"
}
