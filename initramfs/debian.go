package initramfs

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// The Debian release whose packages go into the image. It is fixed, whatever
// the building machine runs, so that images of one commit are alike.
const (
	suite     = "bookworm"
	backports = "bookworm-backports"
	security  = "bookworm-security"

	// The loaders of Secure Execution images are in no earlier release.
	loaders = "forky"
)

// Package is one Debian package that went into an image or a tool.
type Package struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Arch    string `json:"arch"`
	SHA256  string `json:"sha256"`
	File    string `json:"-"` // the .deb in the cache
}

// mirror is what the machine's own apt configuration says of one archive.
type mirror struct{ uri, signedBy string }

// Debian fetches packages of one architecture with apt-get, in lists, status
// and cache folders of its own: the machine's packages are never touched.
type Debian struct {
	arch, dir string
	log       io.Writer
	sources   func(ctx context.Context, dir string) (string, error) // apt's list of archives
}

// NewDebian prepares the folders for arch ("amd64" or "s390x").
func NewDebian(arch string, log io.Writer) (*Debian, error) {
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	if err := Have("apt-get", "dpkg-deb"); err != nil {
		return nil, err
	}
	return &Debian{arch: arch, dir: filepath.Join(cache, "debian", arch), log: log, sources: sourcesList(suite, backports, security)}, nil
}

// newLoaderDebian has folders of its own: a later release must not offer its
// packages to the image, nor stop a build that needs none of it.
func newLoaderDebian(log io.Writer) (*Debian, error) {
	d, err := NewDebian("s390x", log)
	if err != nil {
		return nil, err
	}
	d.dir += "-" + loaders
	d.sources = sourcesList(loaders)
	return d, nil
}

func (d *Debian) options(status string) []string {
	if status == "" {
		status = filepath.Join(d.dir, "status")
	}
	// Debian's long-term support of a release leaves s390x out, and with it the
	// packages for all architectures: amd64's lists have the newer CA bundle.
	archs := d.arch
	if d.arch != "amd64" {
		archs += ",amd64"
	}
	return []string{
		"-qq",
		"-oAPT::Architecture=" + d.arch,
		"-oAPT::Architectures=" + archs,
		"-oDir::State=" + d.dir,
		"-oDir::State::Lists=" + filepath.Join(d.dir, "lists"),
		"-oDir::State::status=" + status,
		"-oDir::Cache=" + filepath.Join(d.dir, "cache"),
		"-oDir::Etc::SourceList=" + filepath.Join(d.dir, "sources.list"),
		"-oDir::Etc::SourceParts=/dev/null",
		"-oDir::Etc::Preferences=/dev/null",
		"-oDir::Etc::PreferencesParts=/dev/null",
		"-oAcquire::Languages=none",
		"-oAcquire::Retries=3",
		"-oAPT::Sandbox::User=root", // the cache may lie where apt's own user cannot write
		"-oAPT::Update::Post-Invoke-Success=",
	}
}

// refresh fetches the package lists, at most once for each stamp.
func (d *Debian) refresh(ctx context.Context) error {
	for _, sub := range []string{"lists/partial", "cache/archives/partial", "archives"} {
		if err := os.MkdirAll(filepath.Join(d.dir, sub), 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(d.dir, "status"), nil, 0o644); err != nil {
		return err
	}
	sources, err := d.sources(ctx, d.dir)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(d.dir, "sources.list"), []byte(sources), 0o644); err != nil {
		return err
	}
	fmt.Fprintf(d.log, "fetching Debian's package lists for %s\n", d.arch)
	_, err = output(ctx, "", nil, "apt-get", append(d.options(""), "-oAPT::Update::Error-Mode=any", "update")...)
	return err
}

// Want names a package, and the suite to take it from ("" = the best version
// of the release and its security updates).
type Want struct{ Name, Suite string }

// Fetch resolves and downloads packages. What a set resolved to is remembered
// and used again until Renew, so that a second build needs no network and
// gives the same image.
func (d *Debian) Fetch(ctx context.Context, set string, wants []Want) ([]Package, error) {
	return d.fetch(ctx, set, wants, false)
}

// Renew asks the archive again, and remembers the answer once it is whole.
func (d *Debian) Renew(ctx context.Context, set string, wants []Want) ([]Package, error) {
	return d.fetch(ctx, set, wants, true)
}

func (d *Debian) fetch(ctx context.Context, set string, wants []Want, anew bool) ([]Package, error) {
	var pkgs []Package
	err := locked(d.dir, "apt", func() error {
		lockfile := filepath.Join(d.dir, "resolved-"+set+".json")
		key := fmt.Sprint(wants)
		if !anew {
			if pkgs = d.remembered(lockfile, key); pkgs != nil {
				return nil
			}
		}
		if err := d.refresh(ctx); err != nil {
			return err
		}
		for _, w := range wants {
			p, err := d.resolve(ctx, w)
			if err != nil {
				return err
			}
			pkgs = append(pkgs, p)
		}
		if err := d.download(ctx, pkgs); err != nil {
			return err
		}
		return d.remember(lockfile, key, pkgs)
	})
	return pkgs, err
}

type resolved struct {
	Key      string    `json:"key"`
	Packages []Package `json:"packages"`
}

func (d *Debian) remembered(lockfile, key string) []Package {
	data, err := os.ReadFile(lockfile)
	if err != nil {
		return nil
	}
	var r resolved
	if json.Unmarshal(data, &r) != nil || r.Key != key {
		return nil
	}
	for i := range r.Packages {
		p := &r.Packages[i]
		if p.File = d.debFile(*p); !p.cached() {
			return nil
		}
	}
	return r.Packages
}

func (d *Debian) remember(lockfile, key string, pkgs []Package) error {
	data, err := json.MarshalIndent(resolved{key, pkgs}, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(lockfile, data, 0o644)
}

// cached says whether the package lies in the cache, byte for byte.
func (p Package) cached() bool {
	sum, _, err := hashFile(p.File)
	return err == nil && sum == p.SHA256
}

func (d *Debian) debFile(p Package) string {
	// Named by hash: what lies here is what was asked for, whatever a mirror renamed.
	return filepath.Join(d.dir, "archives", p.Name+"_"+p.SHA256[:16]+".deb")
}

var metaDepends = regexp.MustCompile(`(?m)^Depends: (linux-image-[^ ,(]+)`)

// resolve finds version and hash of one package; a kernel's meta package
// stands for the image it depends on.
func (d *Debian) resolve(ctx context.Context, w Want) (Package, error) {
	query := w.Name
	args := append(d.options(""), "show", "--no-all-versions")
	if w.Suite != "" {
		query += "/" + w.Suite
	}
	out, err := output(ctx, "", nil, "apt-cache", append(args, query)...)
	if err != nil {
		return Package{}, fmt.Errorf("package %s for %s: %w", query, d.arch, err)
	}
	stanza, _, _ := strings.Cut(string(out), "\n\n")
	if m := metaDepends.FindStringSubmatch(stanza); m != nil && strings.HasPrefix(w.Name, "linux-image") {
		return d.resolve(ctx, Want{m[1], ""})
	}
	p := Package{
		Name:    field(stanza, "Package"),
		Version: field(stanza, "Version"),
		Arch:    field(stanza, "Architecture"),
		SHA256:  field(stanza, "SHA256"),
	}
	if p.Name == "" || p.Version == "" || len(p.SHA256) != 64 {
		return Package{}, fmt.Errorf("package %s for %s: apt-cache gave no version and hash", query, d.arch)
	}
	p.File = d.debFile(p)
	return p, nil
}

// download gets what is missing. apt checks signatures and hashes; the hash is
// checked once more for what is put under its final name.
func (d *Debian) download(ctx context.Context, pkgs []Package) error {
	tmp, err := os.MkdirTemp(d.dir, ".download-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	args := append(d.options(""), "download")
	n := 0
	for _, p := range pkgs {
		if p.cached() {
			continue
		}
		args = append(args, p.Name+"="+p.Version)
		n++
	}
	if n == 0 {
		return nil
	}
	fmt.Fprintf(d.log, "downloading %d Debian packages for %s\n", n, d.arch)
	if _, err := output(ctx, tmp, nil, "apt-get", args...); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil {
		return err
	}
	got := map[string]string{}
	for _, f := range files {
		sum, _, err := hashFile(f)
		if err != nil {
			return err
		}
		got[sum] = f
	}
	for _, p := range pkgs {
		if f, ok := got[p.SHA256]; ok {
			if err := os.Rename(f, p.File); err != nil {
				return err
			}
		} else if !p.cached() {
			return fmt.Errorf("%w: %s %s was not downloaded with the hash its list gives", ErrPackageHash, p.Name, p.Version)
		}
	}
	return nil
}

// Unpack gives the folder that holds a package's files.
func (d *Debian) Unpack(ctx context.Context, p Package) (string, error) {
	dir := filepath.Join(d.dir, "unpacked", p.Name+"_"+p.SHA256[:16])
	return dir, once(dir, func(tmp string) error {
		_, err := output(ctx, "", nil, "dpkg-deb", "-x", p.File, tmp)
		return err
	})
}

// sourcesList writes the suites on the mirror that the machine is configured
// with. Where its lists were never fetched, they are, into a folder of ours.
func sourcesList(suites ...string) func(ctx context.Context, dir string) (string, error) {
	return func(ctx context.Context, dir string) (string, error) {
		main, sec, err := mirrors(ctx, dir)
		if err != nil {
			return "", err
		}
		var b strings.Builder
		for _, s := range suites {
			m := main
			if s == security {
				m = sec
			}
			if m.uri == "" {
				continue // a machine may do without the security archive
			}
			b.WriteString("deb ")
			if m.signedBy != "" {
				fmt.Fprintf(&b, "[signed-by=%s] ", m.signedBy)
			}
			fmt.Fprintf(&b, "%s %s main\n", m.uri, s)
		}
		return b.String(), nil
	}
}

func mirrors(ctx context.Context, dir string) (main, sec mirror, err error) {
	targets, err := output(ctx, "", nil, "apt-get", "indextargets", "Created-By: Packages")
	if err != nil {
		return main, sec, err
	}
	if len(bytes.TrimSpace(targets)) == 0 {
		lists := filepath.Join(dir, "host-lists")
		if err := os.MkdirAll(filepath.Join(lists, "partial"), 0o755); err != nil {
			return main, sec, err
		}
		opt := []string{"-qq", "-oDir::State::Lists=" + lists, "-oAPT::Sandbox::User=root", "-oAPT::Update::Post-Invoke-Success=", "-oAcquire::Languages=none"}
		if _, err := output(ctx, "", nil, "apt-get", append(opt, "update")...); err != nil {
			return main, sec, err
		}
		if targets, err = output(ctx, "", nil, "apt-get", append(opt, "indextargets", "Created-By: Packages")...); err != nil {
			return main, sec, err
		}
	}
	if main, sec = pickMirrors(string(targets)); main.uri == "" {
		return main, sec, errors.New("apt is configured with no Debian archive of component main: add one to its sources")
	}
	return main, sec, nil
}

// pickMirrors reads `apt-get indextargets` and finds Debian's main archive and
// its security archive.
func pickMirrors(targets string) (main, sec mirror) {
	for stanza := range strings.SplitSeq(targets, "\n\n") {
		if field(stanza, "Origin") != "Debian" || field(stanza, "Component") != "main" {
			continue
		}
		m := mirror{field(stanza, "Repo-URI"), signedBy(field(stanza, "Sourcesentry"))}
		switch field(stanza, "Label") {
		case "Debian":
			if main.uri == "" {
				main = m
			}
		case "Debian-Security":
			if sec.uri == "" {
				sec = m
			}
		}
	}
	return main, sec
}

const debianKeyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

var oneLineSigned = regexp.MustCompile(`\[[^\]]*signed-by=([^ \]]+)`)

// signedBy finds the keyring of a source entry ("FILE:N"); indextargets does
// not tell it. A key written into the entry itself counts as Debian's keyring
// when that is installed.
func signedBy(entry string) string {
	i := strings.LastIndexByte(entry, ':')
	if i < 0 {
		return fallbackKeyring()
	}
	n, err := strconv.Atoi(entry[i+1:])
	data, readErr := os.ReadFile(entry[:i])
	if err != nil || readErr != nil || n < 1 {
		return fallbackKeyring()
	}
	if strings.HasSuffix(entry[:i], ".sources") {
		stanzas := slices.DeleteFunc(strings.Split(string(data), "\n\n"), func(s string) bool {
			return !strings.Contains(s, "URIs:")
		})
		if n <= len(stanzas) {
			if v := field(stanzas[n-1], "Signed-By"); strings.HasPrefix(v, "/") {
				return v
			}
		}
		return fallbackKeyring()
	}
	sc := bufio.NewScanner(bytes.NewReader(data))
	for line := 1; sc.Scan(); line++ {
		if m := oneLineSigned.FindStringSubmatch(sc.Text()); line == n && m != nil {
			return m[1]
		}
	}
	return fallbackKeyring()
}

func fallbackKeyring() string {
	if exists(debianKeyring) {
		return debianKeyring
	}
	return "" // apt's own trusted keys
}

// field reads one single-line field of a control stanza.
func field(stanza, name string) string {
	for line := range strings.SplitSeq(stanza, "\n") {
		if v, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// harmless are the settings of Go that say where things lie and come from.
// What comes is checked by hash.
var harmless = []string{"GOROOT", "GOPATH", "GOCACHE", "GOMODCACHE", "GOTMPDIR", "GOENV", "GOTOOLCHAIN", "GOPROXY", "GOSUMDB",
	"GONOSUMDB", "GONOPROXY", "GOPRIVATE", "GOINSECURE", "GOAUTH", "GOVCS", "GOMAXPROCS", "GOTELEMETRY"}

// steers says whether a variable would change what compilers make. None
// reaches them: the image must not depend on the builder's profile.
func steers(variable string) bool {
	name, _, _ := strings.Cut(variable, "=")
	for _, prefix := range []string{"CGO_", "GCC_", "PKG_CONFIG", "HPCR_"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	if slices.Contains([]string{"CC", "CXX", "AR", "LD", "CFLAGS", "CPPFLAGS", "LDFLAGS", "CPATH", "C_INCLUDE_PATH", "LIBRARY_PATH",
		"COMPILER_PATH", "SOURCE_DATE_EPOCH"}, name) {
		return true
	}
	return strings.HasPrefix(name, "GO") && !slices.Contains(harmless, name)
}

// output runs a command and returns its stdout; stderr comes with the error.
func output(ctx context.Context, dir string, env []string, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = slices.Concat(slices.DeleteFunc(os.Environ(), steers), []string{"LC_ALL=C", "DEBIAN_FRONTEND=noninteractive"}, env)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		msg := strings.TrimSpace(stderr.String())
		if len(msg) > 2000 {
			msg = "…" + msg[len(msg)-2000:]
		}
		return out, fmt.Errorf("%s: %w: %s", filepath.Base(name), err, msg)
	}
	return out, nil
}

// writeFile replaces a file in one step.
func writeFile(name string, data []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".new-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if _, err := f.Write(data); err != nil {
		f.Close()
		return err
	}
	if err := f.Chmod(mode); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}
