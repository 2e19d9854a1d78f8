package contract

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"testing"
)

// survivors are the calls that no bad contract needs, each with its reason.
var survivors = map[string]string{
	`pods.go: r.failYAML(playCode, here, yerr)`: "TestPodsOfAnArchive",
	`pods.go: r.fail(playCode, here.onto(d), "the file is not a Kubernetes resource", "keep files at the top of the archive that are not descriptors in a folder")`:                                              "TestPodsOfAnArchive",
	`imagekeys.go: r.failCause(k.err, badImageKey, k.place, "this is not a GPG public key", "give base64 of the armored GPG key: gpg -a --export KEY | base64 -w0")`:                                             "TestImageKeys",
	`netown.go: r.fail(schema, a, "the cidata disk has a network-config too, and it would be the host's word against the contract's", "remove network-config from the cidata disk, or x-hpcr.network from env")`: "TestTwoNetworks",
	`process.go: r.capable`:                    "lint accepts what one version of the guest cannot do: TestWhatTheGuestCannotDo",
	`runtime.go: r.unsupported(code, a, what)`: "the same",
	`tls.go: r.fail(schema, m.get("listen"), "an endpoint of workload.x-hpcr.tls.ingress listens on this port", "take another port")`: "TestEndpointsOfBothSections",
	`tls.go: r.fail(schema, e.at.get("to"), "this service is on no network of the project", "remove its network_mode")`:               "TestEndpointsOfBothSections",
	`forms.go: r.failCause(err, "HPL05003E", r.top, "the contract cannot be written out", "remove unusual characters from it")`:       "no text is known that the library reads and cannot write",
}

// harmless are methods of run and report that refuse nothing.
var harmless = []string{
	"add", "say", "warn", "loose", "hasError", "firstError", "pemWarnings", "nested", "digests", "forms", "writeForms",
	"failedAt", "userData", "planVolumes", "mergedEnv", "archived", "translate", "assemble", "lintReport", "verdict", "all", "trusted",
	"imagePolicy", "verifiedImage", "verifiedBy", "word", "address",
}

// Removing any one rule changes the verdict on a bad contract. Each call by
// which a rule reports is made silent in turn, by an overlay over the package's
// source, and the corpus must notice.
func TestEveryRuleIsNeeded(t *testing.T) {
	goTool, err := exec.LookPath("go")
	if err != nil || testing.Short() {
		t.Skip("needs the go tool, and half a minute")
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	overlay := map[string]string{}
	put := func(name string, text []byte) {
		t.Helper()
		to := filepath.Join(dir, name)
		if err := os.WriteFile(to, text, 0o644); err != nil {
			t.Fatal(err)
		}
		overlay[filepath.Join(here, name)] = to
	}
	places := mutate(t, put)
	put("zz_hook.go", fmt.Appendf(readFile(t, "testdata", "mutants", "hook.go.txt"), "\nvar mutants = %#v\n", places))
	put("zz_hook_test.go", readFile(t, "testdata", "mutants", "hook_test.go.txt"))
	list, err := json.Marshal(map[string]any{"Replace": overlay})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(file, list, 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(goTool, "test", "-overlay", file, "-vet=off", "-count=1", "-v", "-run", "^TestMutants$", ".")
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, fmt.Appendf(nil, "mutants: %d\n", len(places))) {
		t.Fatalf("%v\n%s", err, out)
	}
	unused := map[string]bool{}
	for s := range survivors {
		unused[s] = true
	}
	for line := range strings.Lines(string(out)) {
		place, ok := strings.CutPrefix(strings.TrimSpace(line), "survivor: ")
		if !ok {
			continue
		}
		if _, known := survivors[place]; !known {
			t.Errorf("no bad contract needs %s", place)
		}
		delete(unused, place)
	}
	for s := range unused {
		t.Errorf("a bad contract needs what is listed as a survivor: %s", s)
	}
	t.Logf("%d calls silenced, %d survivors", len(places), len(survivors))
}

// mutate writes each source file with a switch at every call that may refuse,
// and names the calls.
func mutate(t *testing.T, put func(string, []byte)) []string {
	t.Helper()
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	fset := token.NewFileSet()
	files := map[string]*ast.File{}
	receiver := map[string]string{} // method → type
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = f
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Recv == nil || slices.Contains(harmless, fn.Name.Name) {
				continue
			}
			typ := fn.Recv.List[0].Type
			if star, ok := typ.(*ast.StarExpr); ok {
				typ = star.X
			}
			if id, ok := typ.(*ast.Ident); ok && (id.Name == "run" || id.Name == "report" || id.Name == "netReader") {
				receiver[fn.Name.Name] = id.Name
			}
		}
	}
	var places []string
	for _, name := range slices.Sorted(maps.Keys(files)) {
		src := readFile(t, name)
		if name == "finding.go" { // what the rules are made of
			head := []byte("func (r *report) add(f Finding) {\n")
			if !bytes.Contains(src, head) {
				t.Fatal("finding.go has no add")
			}
			put(name, bytes.Replace(src, head, append(head, "\tif f.Severity == SeverityError {\n\t\tsaid[lastRule], said[lastCall] = true, true\n\t}\n"...), 1))
			continue
		}
		if name == "open.go" || name == "lint.go" || name == "place.go" || strings.HasPrefix(name, "explain") {
			continue // no rules of their own
		}
		type edit struct {
			at   int
			text string
		}
		var edits []edit
		offset := func(p token.Pos) int { return fset.Position(p).Offset }
		place := func(n ast.Node) int {
			text := strings.Join(strings.Fields(string(src[offset(n.Pos()):offset(n.End())])), " ")
			places = append(places, name+": "+text)
			return len(places) - 1
		}
		statement := map[ast.Node]bool{}
		ast.Inspect(files[name], func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.ExprStmt:
				statement[n.X] = true
			case *ast.CompositeLit: // the steps
				if a, ok := n.Type.(*ast.ArrayType); ok {
					if _, ok := a.Elt.(*ast.FuncType); ok {
						for _, e := range n.Elts {
							if sel, ok := e.(*ast.SelectorExpr); ok && receiver[sel.Sel.Name] != "" {
								edits = append(edits, edit{offset(e.Pos()), fmt.Sprintf("r.step(%d, ", place(e))}, edit{offset(e.End()), ")"})
							}
						}
					}
				}
			case *ast.CallExpr:
				if id, ok := n.Fun.(*ast.Ident); ok && (id.Name == "one" || id.Name == "each") {
					edits = append(edits, edit{offset(n.Args[0].End()), fmt.Sprintf(".muteNet(%d)", place(n))})
					return true
				}
				sel, ok := n.Fun.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				id, ok := sel.X.(*ast.Ident)
				if !ok || id.Name != "r" && id.Name != "nr" {
					return true
				}
				switch typ := receiver[sel.Sel.Name]; {
				case typ == "report":
					edits = append(edits, edit{offset(id.End()), fmt.Sprintf(".rule(%d)", place(n))})
				case typ == "netReader":
					edits = append(edits, edit{offset(id.End()), fmt.Sprintf(".muteNet(%d)", place(n))})
				case typ == "run" && statement[n]:
					edits = append(edits, edit{offset(n.Pos()), fmt.Sprintf("if r.live(%d) { ", place(n))}, edit{offset(n.End()), " }"})
				case typ == "run":
					edits = append(edits, edit{offset(id.End()), fmt.Sprintf(".mute(%d)", place(n))})
				}
			}
			return true
		})
		sort.SliceStable(edits, func(a, b int) bool { return edits[a].at > edits[b].at })
		for _, e := range edits {
			src = slices.Insert(src, e.at, []byte(e.text)...)
		}
		if len(edits) > 0 {
			put(name, src)
		}
	}
	return places
}
