package initramfs

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// devFiles are the files that the build tag dev adds: the interlock, the test
// channel and what it answers with. A file that joins them is in no guest that
// anyone trusts, and what is tested moves away from what is shipped: so it
// needs a reason that a reviewer sees here.
var devFiles = []string{"agent/channel_dev.go", "agent/flavour_dev.go", "agent/pages_dev.go", "agent/processes_dev.go"}

// releaseFiles take their place.
var releaseFiles = []string{"agent/channel_release.go", "agent/flavour_release.go"}

func TestDevAddsTheseFilesAndNoOthers(t *testing.T) {
	for _, arch := range Architectures {
		release, dev := goFiles(t, arch, false), goFiles(t, arch, true)
		gone := func(in []string) func(string) bool {
			return func(f string) bool { return slices.Contains(in, f) }
		}
		if diff := cmp.Diff(devFiles, slices.DeleteFunc(slices.Clone(dev), gone(release))); diff != "" {
			t.Errorf("%s: files of dev alone: %s", arch, diff)
		}
		if diff := cmp.Diff(releaseFiles, slices.DeleteFunc(slices.Clone(release), gone(dev))); diff != "" {
			t.Errorf("%s: files of release alone: %s", arch, diff)
		}
	}
}

// goFiles lists the sources of all packages, tests apart.
func goFiles(t *testing.T, arch string, dev bool) []string {
	t.Helper()
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "list", "-tags", flavourTags(dev), "-json=Dir,GoFiles,CgoFiles,SFiles,EmbedFiles", "./...")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), goEnv(arch, "0")...)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	for dec := json.NewDecoder(strings.NewReader(string(out))); dec.More(); {
		var p struct {
			Dir                                   string
			GoFiles, CgoFiles, SFiles, EmbedFiles []string
		}
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		rel, err := filepath.Rel(root, p.Dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range slices.Concat(p.GoFiles, p.CgoFiles, p.SFiles, p.EmbedFiles) {
			files = append(files, filepath.Join(rel, f))
		}
	}
	slices.Sort(files)
	return files
}

// devFunctions are the functions that only dev's files have, as the linker
// names them.
func devFunctions(t *testing.T) []string {
	t.Helper()
	declared := func(files []string) (names []string) {
		for _, f := range files {
			tree, err := parser.ParseFile(token.NewFileSet(), filepath.Join("..", f), nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			prefix := "hpcr/" + filepath.Dir(f) + "."
			for _, d := range tree.Decls {
				fn, ok := d.(*ast.FuncDecl)
				if !ok {
					continue
				}
				name := fn.Name.Name
				if fn.Recv != nil {
					switch r := fn.Recv.List[0].Type.(type) {
					case *ast.StarExpr:
						name = "(*" + r.X.(*ast.Ident).Name + ")." + name
					case *ast.Ident:
						name = r.Name + "." + name
					}
				}
				names = append(names, prefix+name)
			}
		}
		return names
	}
	release := declared(releaseFiles)
	return slices.DeleteFunc(declared(devFiles), func(n string) bool { return slices.Contains(release, n) })
}

// Attack: the builder's clock gets into the image, and no two builds agree.
// Claim: nothing of this package reads a clock, of the machine or of a file.
// (TestReproducible builds in another year besides.)
func TestNoClockReachesTheImage(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		tree, err := parser.ParseFile(token.NewFileSet(), f, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(tree, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if x, ok := sel.X.(*ast.Ident); ok && (x.Name == "time" && slices.Contains([]string{"Now", "Since", "Until"}, sel.Sel.Name) || sel.Sel.Name == "ModTime") {
				t.Errorf("%s reads the clock: %s.%s", f, x.Name, sel.Sel.Name)
			}
			return true
		})
	}
}
