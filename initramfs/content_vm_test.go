//go:build vm

package initramfs

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"debug/elf"
	"debug/gosym"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// image is a built image, taken apart.
type image struct {
	m    *Manifest
	base *Tree
	parm string
}

var images = map[string]*image{}

// imageOf builds each image once for all tests of a run.
func imageOf(t *testing.T, arch string, dev bool) *image {
	t.Helper()
	id := fmt.Sprint(arch, dev)
	if images[id] != nil {
		return images[id]
	}
	keys := newKeys(t, KeyOptions{Flavour: map[bool]string{true: FlavourDev, false: FlavourRelease}[dev]})
	out := filepath.Join(t.TempDir(), "image")
	m, err := Build(context.Background(), BuildOptions{Arch: arch, Keys: []string{keys}, Dev: dev, Out: out, Log: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	if err := Verify(out, m); err != nil {
		t.Fatal(err)
	}
	raw, err := decompress(readPart(t, out)[:m.Base.Size])
	if err != nil {
		t.Fatal(err)
	}
	base, err := readTree(raw)
	if err != nil {
		t.Fatal(err)
	}
	parm, err := os.ReadFile(filepath.Join(out, ParmFile))
	if err != nil {
		t.Fatal(err)
	}
	images[id] = &image{m: m, base: base, parm: string(parm)}
	return images[id]
}

// reasons says for each file of the base, and each folder that has none, where
// the code stands that uses it: a package and words of its sources. Libraries
// and modules are accounted for by what needs them.
var reasons = map[string][2]string{
	"init":                        {"initramfs", "rdinit=/init"},
	"bin/disk-open":               {"agent/storage", `"/bin/disk-open"`},
	"bin/disk-check":              {"agent/storage", `"/bin/disk-check"`},
	"bin/disk-images":             {"agent/storage", `"/bin/disk-images"`},
	"bin/disk-close":              {"agent/pid1", `"/bin/disk-close"`},
	"bin/agent":                   {"agent/pid1", `"/bin/agent"`},
	"bin/contract":                {"agent/boot", `"/bin/contract"`},
	"bin/signer":                  {"agent/boot", `"/bin/signer"`},
	"bin/containerd":              {"agent/boot", `"/bin/containerd"`},
	"bin/containerd-shim-runc-v2": {"agent/ctrd", `"io.containerd.runc.v2"`}, // containerd makes the program's name of it
	"bin/runc":                    {"agent/workload", `"/bin/runc"`},
	"sbin/mke2fs":                 {"disk", `"mke2fs"`},
	"sbin/e2fsck":                 {"disk", `"e2fsck"`},
	"sbin/mkfs.xfs":               {"disk", `"mkfs.xfs"`},
	"sbin/mkfs.btrfs":             {"disk", `"mkfs.btrfs"`},
	"etc/mke2fs.conf":             {"disk", `"mke2fs"`}, // the features that Debian's users know
	"etc/mtab":                    {"disk", `"mke2fs"`}, // asks it whether the device is in use
	caFile:                        {"agent/boot", "/" + caFile},
	imageFile:                     {"agent/boot", "/" + imageFile},
	policyFile:                    {"agent/boot", "/" + policyFile},
	modulesFile:                   {"agent/boot", "/" + modulesFile},
	profileFile:                   {"agent/boot", "/" + profileFile},

	"dev":                {"agent/pid1", `"/dev"`},
	"proc":               {"agent/pid1", `"/proc"`},
	"sys":                {"agent/pid1", `"/sys"`},
	"run":                {"agent/pid1", `"/run"`},
	"tmp":                {"agent/pid1", `"/tmp"`},
	"newroot":            {"agent/pid1", `"/newroot"`},
	"data1":              {"contract/compose", `"/data1/compose"`},
	"mnt":                {"contract", `"/mnt/data"`},
	"var/hyperprotect":   {"agent/attest", `"/var/hyperprotect"`},
	"var/lib/containerd": {"agent/ctrd", `"/var/lib/containerd"`},
}

// Attack: what an image holds without need serves an intruder: a shell, an
// interpreter, a program with the setuid bit. Claim: each file has a reason, and
// none is of those kinds.
func TestImageHoldsNothingWithoutAReason(t *testing.T) {
	for _, arch := range archs() {
		t.Run(arch, func(t *testing.T) {
			img := imageOf(t, arch, false)
			for _, complaint := range unexplained(t, arch, img.base) {
				t.Error(complaint)
			}
			for name := range reasons {
				if !img.base.Has(name) {
					t.Errorf("%s has a reason, but is not in the image", name)
				}
			}
			// The test sees what it is there for.
			for name, add := range map[string]func(*Tree){
				"bin/tool":        func(x *Tree) { x.File("bin/tool", 0o755, []byte("\x7fELF")) },
				"etc/rc":          func(x *Tree) { x.File("etc/rc", 0o644, []byte("#!/bin/sh\n")) },
				"bin/runc":        func(x *Tree) { x.File("bin/runc", 0o4755, nil) },
				"lib/libspy.so":   func(x *Tree) { x.File("lib/libspy.so", 0o644, nil) },
				"opt":             func(x *Tree) { x.Dir("opt", 0o755) },
				"etc/mtab":        func(x *Tree) { x.put("etc/mtab", &node{mode: 0o020600}) }, // a character device
				"etc/open":        func(x *Tree) { x.File("etc/open", 0o666, nil) },
				"sbin/mke2fs":     func(x *Tree) { x.File("sbin/mke2fs", 0o755, []byte("#!/bin/sh\n")) },
				"etc/mke2fs.conf": func(x *Tree) { x.Symlink("etc/mke2fs.conf", "/proc/1/root") },
			} {
				worse := &Tree{nodes: map[string]*node{}}
				for n, node := range img.base.nodes {
					worse.nodes[n] = node
				}
				add(worse)
				found := unexplained(t, arch, worse)
				if !slices.ContainsFunc(found, func(s string) bool { return strings.HasPrefix(s, name+":") }) {
					t.Errorf("%s was not seen: %v", name, found)
				}
			}
		})
	}
}

// unexplained lists what should not be in the base.
func unexplained(t *testing.T, arch string, base *Tree) (complaints []string) {
	t.Helper()
	complain := func(name, format string, args ...any) {
		complaints = append(complaints, name+": "+fmt.Sprintf(format, args...))
	}
	libs := map[string]bool{}
	for queue := slices.Clone(programs); len(queue) > 0; queue = queue[1:] {
		data, err := base.file(queue[0])
		if err != nil {
			complain(queue[0], "%v", err)
			continue
		}
		needs, err := needed(data)
		if err != nil {
			complain(queue[0], "%v", err)
			continue
		}
		for _, lib := range needs {
			if !strings.Contains(lib, "/") {
				lib = path.Join("lib", triplet(arch), lib)
			}
			if lib = clean(lib); !libs[lib] {
				libs[lib] = true
				queue = append(queue, lib)
			}
		}
	}
	for lib := range libs {
		if !base.Has(lib) {
			complain(lib, "needed, but not in the image")
		}
	}
	names := base.Names()
	for i, name := range names {
		n := base.nodes[name]
		data := owner(n).data
		switch n.mode & typeMask {
		case typeFile:
			if n.mode&0o7022 != 0 {
				complain(name, "mode %o", n.mode)
			}
			if bytes.HasPrefix(data, []byte("#!")) {
				complain(name, "a script")
			}
		case typeDir:
			if n.mode&0o7022 != 0 && name != "tmp" {
				complain(name, "mode %o", n.mode)
			}
			if i+1 < len(names) && strings.HasPrefix(names[i+1], name+"/") {
				continue // its content is the reason
			}
		case typeLink:
			if name != "etc/mtab" {
				complain(name, "a link")
			}
		default:
			complain(name, "mode %o: a device or pipe", n.mode)
		}
		if libs[name] || partOf(name) == "modules" {
			continue // TestImageHoldsTheModulesOfTheList has the modules
		}
		reason, ok := reasons[name]
		if !ok {
			complain(name, "nothing is known to use it")
			continue
		}
		if !says(t, reason[0], reason[1]) {
			complain(name, "%s does not hold %s any more", reason[0], reason[1])
		}
	}
	return complaints
}

// says looks for words in a package's sources, tests apart.
func says(t *testing.T, pkg, words string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("..", pkg, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(files, func(f string) bool {
		if strings.HasSuffix(f, "_test.go") {
			return false
		}
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(text), words)
	})
}

// What is there works: programs are for the right machine and ours are static,
// each package that is fetched for its files gives one.
func TestImageIsWhole(t *testing.T) {
	for _, arch := range archs() {
		t.Run(arch, func(t *testing.T) {
			img := imageOf(t, arch, false)
			machine := map[string]elf.Machine{"amd64": elf.EM_X86_64, "s390x": elf.EM_S390}[arch]
			for _, name := range slices.Concat([]string{"bin/runc"}, programs, initLinks, applets, diskLinks) {
				data, err := img.base.file(name)
				if err != nil {
					t.Error(err)
					continue
				}
				f, err := elf.NewFile(bytes.NewReader(data))
				if err != nil {
					t.Errorf("%s: %v", name, err)
					continue
				}
				if f.Machine != machine {
					t.Errorf("%s is for %v", name, f.Machine)
				}
				libs, err := needed(data)
				if ours := !slices.Contains(programs, name); err != nil || ours && len(libs) > 0 {
					t.Errorf("%s is not static: %v %v", name, libs, err)
				}
			}
			if img.m.Parts[InitrdFile].Size > InitrdLimit {
				t.Errorf("initrd has %d bytes, the budget is %d", img.m.Parts[InitrdFile].Size, InitrdLimit)
			}
			deb, err := NewDebian(arch, os.Stderr)
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range img.m.Packages {
				if p.role() == "kernel" || slices.ContainsFunc(seccompPackages, func(w Want) bool { return w.Name == p.Name }) {
					continue
				}
				p.File = deb.debFile(p)
				root, err := deb.Unpack(context.Background(), p)
				if err != nil {
					t.Fatal(err)
				}
				if !gives(t, root, img.base) {
					t.Errorf("package %s gives the image nothing", p.Name)
				}
			}
		})
	}
}

// gives says whether a file of an unpacked package is in the image.
func gives(t *testing.T, root string, base *Tree) bool {
	t.Helper()
	sums := map[string]bool{}
	for _, n := range base.nodes {
		sums[hashBytes(owner(n).data)] = true
	}
	found := false
	err := filepath.WalkDir(root, func(name string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		sum, _, err := hashFile(name)
		found = found || sums[sum] || strings.Contains(name, "/ca-certificates/mozilla/")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// Attack: a driver that nobody asked for parses what the host sends. Claim: the
// image's modules are those that ModuleGroups names and what they need.
func TestImageHoldsTheModulesOfTheList(t *testing.T) {
	for _, arch := range archs() {
		t.Run(arch, func(t *testing.T) {
			ctx := context.Background()
			img := imageOf(t, arch, false)
			deb, err := NewDebian(arch, os.Stderr)
			if err != nil {
				t.Fatal(err)
			}
			i := slices.IndexFunc(img.m.Packages, func(p Package) bool { return p.role() == "kernel" })
			kernel := img.m.Packages[i]
			kernel.File = deb.debFile(kernel)
			krn, err := openKernel(ctx, deb, kernel)
			if err != nil {
				t.Fatal(err)
			}
			var named []string
			for _, group := range ModuleGroups(arch) {
				named = append(named, group...)
			}
			files, err := krn.modules.closure(named)
			if err != nil {
				t.Fatal(err)
			}
			var want []string
			for _, f := range files {
				want = append(want, "lib/modules/"+krn.release+"/"+strings.TrimSuffix(f, ".xz"))
			}
			slices.Sort(want)
			have := func(base *Tree) []string {
				return slices.DeleteFunc(base.Names(), func(n string) bool {
					return partOf(n) != "modules" || base.nodes[n].mode&typeMask == typeDir
				})
			}
			if diff := cmp.Diff(want, have(img.base)); diff != "" {
				t.Errorf("named or needed (-), in the image (+): %s", diff)
			}
			// What the guest is told to load is what is there.
			var told struct {
				Groups map[string][]string `json:"groups"`
			}
			text, err := img.base.file(modulesFile)
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(text, &told); err != nil {
				t.Fatal(err)
			}
			loads := map[string]bool{}
			for group := range ModuleGroups(arch) {
				for _, f := range told.Groups[group] {
					loads[clean(f)] = true
				}
			}
			for _, f := range want {
				if !loads[f] {
					t.Errorf("no group of %s loads %s", modulesFile, f)
				}
			}
			if len(loads) != len(want) {
				t.Errorf("%d modules to load, %d in the image", len(loads), len(want))
			}
		})
	}
}

// Packages and strings that have no business in a guest. (expvar does come with
// prometheus' library; nobody serves the multiplexer that it registers with.)
var (
	foreignPackages = []string{"testing.", "testing/", "net/http/pprof.", "golang.org/x/net/trace.", "net/http/httptest.", "plugin."}
	foreignStrings  = []string{"/sys/class/virtio-ports/*/name", "org.hpcr.events", "hpcr.test", "debug_console"}
)

// Attack: what helps a developer helps the host: a test channel, a profiler.
// Claim: none of it is in a release image, which runs the same kernel command
// line as the dev image that was tested.
func TestImageOfReleaseHasNothingOfDev(t *testing.T) {
	functions := devFunctions(t)
	for _, arch := range archs() {
		t.Run(arch, func(t *testing.T) {
			release, dev := imageOf(t, arch, false), imageOf(t, arch, true)
			inDev := 0
			for _, name := range []string{"init", "bin/agent", "bin/runc"} {
				data, err := release.base.file(name)
				if err != nil {
					t.Fatal(err)
				}
				info, err := buildinfo.Read(bytes.NewReader(data))
				if err != nil {
					t.Fatal(err)
				}
				for _, s := range info.Settings {
					if s.Key == "-tags" && slices.Contains(strings.Split(s.Value, ","), "dev") {
						t.Errorf("%s was built with -tags %s", name, s.Value)
					}
				}
				for _, s := range foreignStrings {
					if bytes.Contains(data, []byte(s)) {
						t.Errorf("%s holds %q", name, s)
					}
				}
				names := goFunctions(t, data)
				if len(names) < 500 {
					t.Fatalf("%s: only %d functions were read", name, len(names))
				}
				for fn := range names {
					if slices.Contains(functions, fn) {
						t.Errorf("%s holds dev's %s", name, fn)
					}
					if slices.ContainsFunc(foreignPackages, func(p string) bool { return strings.HasPrefix(fn, p) }) {
						t.Errorf("%s holds %s", name, fn)
					}
				}
				devData, err := dev.base.file(name)
				if err != nil {
					t.Fatal(err)
				}
				for fn := range goFunctions(t, devData) {
					if slices.Contains(functions, fn) {
						inDev++
					}
				}
				if name == "bin/agent" && (inDev < 5 || !bytes.Contains(devData, []byte(foreignStrings[0]))) {
					t.Errorf("dev's own functions are not seen in dev either (%d): this test proves nothing", inDev)
				}
			}
			if release.parm != dev.parm || release.m.CommandLine != release.parm {
				t.Errorf("command lines differ:\n%s\n%s", release.parm, dev.parm)
			}
			if err := checkCommandLine(release.parm); err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff(release.base.Names(), dev.base.Names()); diff != "" {
				t.Errorf("release and dev hold other files: %s", diff)
			}
			for _, name := range release.base.Names() {
				a, b := owner(release.base.nodes[name]), owner(dev.base.nodes[name])
				if !bytes.Equal(a.data, b.data) && !slices.Contains(slices.Concat(initLinks, applets, diskLinks, []string{imageFile, policyFile}), name) {
					t.Errorf("%s differs between release and dev", name)
				}
			}
		})
	}
}

// goFunctions reads a stripped program's functions from the table by which Go
// prints stack traces.
func goFunctions(t *testing.T, program []byte) map[string]bool {
	t.Helper()
	f, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		t.Fatal(err)
	}
	var lines *elf.Section
	for _, s := range f.Sections {
		if strings.HasSuffix(s.Name, ".gopclntab") {
			lines = s
		}
	}
	if lines == nil {
		t.Fatal("no table of functions")
	}
	data, err := lines.Data()
	if err != nil {
		t.Fatal(err)
	}
	table, err := gosym.NewTable(nil, gosym.NewLineTable(data, f.Section(".text").Addr))
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, fn := range table.Funcs {
		names[fn.Name] = true
	}
	return names
}

// The budget table of the document holds, and its figures are today's.
func TestImageFitsItsBudget(t *testing.T) {
	text, err := os.ReadFile("../docs/budgets.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string][]float64{}
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) != 7 {
			continue
		}
		var figures []float64
		for _, c := range cells[1:] {
			if v, err := strconv.ParseFloat(strings.TrimSpace(c), 64); err == nil {
				figures = append(figures, v)
			}
		}
		if len(figures) == 6 {
			rows[strings.TrimSpace(cells[0])] = figures
		}
	}
	for i, arch := range []string{"amd64", "s390x"} {
		if !slices.Contains(archs(), arch) {
			continue
		}
		t.Run(arch, func(t *testing.T) {
			sizes := imageOf(t, arch, false).m.Sizes
			for _, s := range sizes {
				raw, packed := float64(s.Raw)/1e6, float64(s.Packed)/1e6
				row := rows[s.Part]
				if row == nil {
					t.Errorf("docs/budgets.md has no row for %s (%.2f | %.2f)", s.Part, raw, packed)
					continue
				}
				row = row[3*i : 3*i+3]
				if packed > row[2] {
					t.Errorf("%s has %.2f MB packed, its limit is %.2f", s.Part, packed, row[2])
				}
				// New kernels and features move figures a little; the limits are the guard.
				off := func(a, b float64) bool { return math.Abs(a-b) > max(0.25*b, 0.05) }
				if off(raw, row[0]) || off(packed, row[1]) {
					t.Errorf("%s has %.2f MB, %.2f packed; docs/budgets.md says %.2f and %.2f", s.Part, raw, packed, row[0], row[1])
				}
			}
			if len(rows) != len(sizes) {
				t.Errorf("%d rows in the table, %d parts in the image", len(rows), len(sizes))
			}
		})
	}
}
