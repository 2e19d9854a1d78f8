package initramfs

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"runtime"
	"strings"

	"hpcr/contract"
)

// Recipe is all that decides the keyless bytes of an image, by hash where it
// is content. Two builders with equal recipes get equal kernels, bases and
// command lines; where their bases differ, this is where to look first.
type Recipe struct {
	Version     string          `json:"version"`
	Arch        string          `json:"arch"`
	Flavour     string          `json:"flavour"`
	BuildTime   int64           `json:"buildTime"`
	CommandLine string          `json:"commandLine"`
	Policy      contract.Policy `json:"policy"`
	Source      string          `json:"source"` // hash over our source files, go.mod and go.sum
	Toolchain
	Packages []Package `json:"packages"`
}

func (r Recipe) hash() (string, error) {
	text, err := json.Marshal(r)
	if err != nil {
		return "", err
	}
	return hashBytes(text), nil
}

// Toolchain is what turns source into programs, and the modules whose
// programs we ship as they are. go.sum, hashed in Source, pins all others.
type Toolchain struct {
	Go        string     `json:"go"`
	GoModules []GoModule `json:"goModules"`
	Compiler  Compiler   `json:"compiler"`
	AppArmor  string     `json:"apparmorParser"` // version of what compiles the containers' profile
}

// GoModule is a Go module; Sum is go.sum's hash of its content.
type GoModule struct {
	Path    string `json:"path"`
	Version string `json:"version"`
	Sum     string `json:"sum"`
}

// Compiler is the building machine's C compiler, which runc needs. Links is a
// hash over what it puts into a static program besides: the C library's
// archive, start files, linker, and the versions of the headers.
type Compiler struct {
	Version string `json:"version"`
	Links   string `json:"links"`
}

func (t Toolchain) module(path string) (GoModule, error) {
	for _, m := range t.GoModules {
		if m.Path == path {
			return m, nil
		}
	}
	return GoModule{}, fmt.Errorf("go.mod does not name %s", path)
}

func compilerName(arch string) string {
	if arch == runtime.GOARCH {
		return "gcc"
	}
	return triplet(arch) + "-gcc"
}

// linkedFiles are those of the C library and compiler that a static program,
// position independent or not, can take in.
var linkedFiles = []string{"libc.a", "libpthread.a", "libgcc.a", "libgcc_eh.a", "crt1.o", "rcrt1.o", "crti.o", "crtn.o",
	"crtbeginT.o", "crtbeginS.o", "crtend.o", "crtendS.o"}

// toolchain asks the tools what they are.
func (s *Source) toolchain(ctx context.Context, arch string) (Toolchain, error) {
	t := Toolchain{Go: s.Go}
	out, err := output(ctx, s.Root, goEnv(arch, "0"), "go", "list", "-m", "-json=Path,Version,Sum", ctrdModule, runcModule)
	if err != nil {
		return t, err
	}
	for dec := json.NewDecoder(strings.NewReader(string(out))); dec.More(); {
		var m GoModule
		if err := dec.Decode(&m); err != nil {
			return t, err
		}
		t.GoModules = append(t.GoModules, m)
	}
	if t.AppArmor, err = apparmorVersion(ctx); err != nil {
		return t, err
	}
	t.Compiler, err = compiler(ctx, compilerName(arch))
	return t, err
}

func compiler(ctx context.Context, cc string) (Compiler, error) {
	if err := Have(cc); err != nil {
		return Compiler{}, err
	}
	var parts []string
	ask := func(args ...string) (string, error) {
		out, err := output(ctx, "", nil, args[0], args[1:]...)
		return strings.TrimSpace(string(out)), err
	}
	version, err := ask(cc, "--version")
	if err != nil {
		return Compiler{}, err
	}
	version, _, _ = strings.Cut(version, "\n")
	// Predefined macros, and the versions of the C library's and kernel's headers.
	macros, err := ask(cc, "-E", "-dM", "-include", "features.h", "-include", "linux/version.h", "-x", "c", "/dev/null")
	if err != nil {
		return Compiler{}, err
	}
	parts = append(parts, macros)
	for _, prog := range []string{"as", "ld"} {
		path, err := ask(cc, "-print-prog-name="+prog)
		if err != nil {
			return Compiler{}, err
		}
		v, err := ask(path, "--version")
		if err != nil {
			return Compiler{}, err
		}
		parts = append(parts, v)
	}
	for _, name := range linkedFiles {
		path, err := ask(cc, "-print-file-name="+name)
		if err != nil {
			return Compiler{}, err
		}
		if !filepath.IsAbs(path) {
			continue // this C library has no such file
		}
		sum, _, err := hashFile(path)
		if err != nil {
			return Compiler{}, err
		}
		parts = append(parts, name, sum)
	}
	return Compiler{version, hashStrings(parts...)}, nil
}

// treeHash is the source behind packages of ours, by content.
func (s *Source) treeHash(ctx context.Context, arch string, dev bool, pkgs ...string) (string, error) {
	sources, err := s.sourceHash(ctx, flavourTags(dev), goEnv(arch, "0"), pkgs...)
	if err != nil {
		return "", err
	}
	parts := []string{sources}
	for _, name := range []string{"go.mod", "go.sum"} {
		sum, _, err := hashFile(filepath.Join(s.Root, name))
		if err != nil {
			return "", err
		}
		parts = append(parts, name, sum)
	}
	return hashStrings(parts...), nil
}
