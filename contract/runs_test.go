package contract

import (
	"strings"
	"testing"
	"unicode/utf8"
)

// Whatever stands around a long run, the text that comes out is the one that
// the library alone reads.
func TestLongRuns(t *testing.T) {
	run := strings.Repeat("QUJD0+/x", 10<<10) // 80 KiB
	other := strings.Repeat("z9.=", 20<<10)
	for name, text := range map[string]string{
		"a plain scalar":             "a: " + run + "\nb: x\n",
		"a token":                    "a: hyper-protect-basic." + run + "." + other + "\n",
		"single quotes":              "a: '" + run + "''" + other + "'\n",
		"double quotes with escapes": `a: "\x41` + run + `\n\` + "\n  " + other + `\u0041"` + "\n",
		"a literal block":            "a: |\n  x: " + run + "\n  y: " + other + "\n",
		"a folded block":             "a: >-\n  " + run + "\n  " + other + "\n",
		"a plain scalar on lines":    "a: " + run + "\n  " + other + "\n",
		"a list in a line":           "a: [" + run + ", " + other + ", {x: " + run + "}]\n",
		"after a run, twice":         "ä: [" + run + ", x, " + other + ", y]\u2028z: {a: " + run + ", a: b}\n",
		"an error behind a run":      "a: [" + run + ", {]\n",
		"an error at the end":        "a: [" + run + ", {",
		"a second document":          "a: " + run + "\n--- {x: " + other + "}\n",
		"a comment":                  "a: x # " + run + "\nb: y\n#" + other + "\n",
		"dots at the line's start":   "a: |\n  x\n" + strings.Repeat(".", 70<<10) + ": y\n",
		"a name of an anchor":        "a: &" + run + " x\nb: y\n",
		"an alias of a run":          "a: &a " + run + "\nb: *a\nc: *a\n",
		"a key, which is too long":   run + ": x\n",
		"a key that is said to be":   "? " + run + "\n: x\n",
		"a tag":                      "a: !" + run + " x\n",
		"a run alone":                run,
		"equal signs":                "a: " + strings.Repeat("=", 70<<10) + "\n",
		"a run of letters to a mark": "a: " + run + "\nb: " + strings.Repeat("A", 70<<10) + "\n",
		"just short of long":         "a: " + run[:longRun-1] + "\nb: " + run[:longRun] + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			var cut runs
			small := cutRuns(&cut, text)
			if name != "just short of long" && (len(cut.whole) == 0 || len(small) > 20<<10) {
				t.Errorf("not cut: %d bytes", len(small))
			}
			n := compareRuns(t, text)
			if n == nil || n.kind != mapNode {
				return
			}
			// And out again, as the library alone writes it.
			wrote, err := dumpString(n)
			if err != nil {
				t.Fatal(err)
			}
			if again, yerr := parseYAML("x", []byte(wrote)); yerr != nil || !again.same(n) {
				t.Errorf("written out: %v", yerr)
			}
		})
	}
}

// Aliases of a long run are counted before they are put back.
func TestLongRunsHaveABudget(t *testing.T) {
	text := "a: &a " + strings.Repeat("A", 15<<20) + "\nb: [*a, *a, *a]\n"
	if _, err := parseYAML("x", []byte(text)); err == nil || err.syntax {
		t.Errorf("60 MiB of scalars: %v", err)
	}
}

// compareRuns parses a document with its runs cut out and as it is. It returns
// the tree, nil if both say that there is none.
func compareRuns(t *testing.T, text string) *node {
	t.Helper()
	got, gotErr := parseYAML("x", []byte(text))
	n, err := parseWith("x", []byte(text), nil)
	if (gotErr == nil) != (err == nil) || err != nil && (err.syntax != gotErr.syntax || err.msg != gotErr.msg) {
		t.Fatalf("the library alone: %v, with runs cut: %v", err, gotErr)
	}
	if !got.same(n) {
		t.Fatal("another text")
	}
	if gotErr != nil && (gotErr.line != err.line || gotErr.col != err.col) {
		t.Fatalf("the library alone: an error at %d:%d, with runs cut at %d:%d", err.line, err.col, gotErr.line, gotErr.col)
	}
	comparePlaces(t, got, n)
	return n
}

func comparePlaces(t *testing.T, a, b *node) {
	t.Helper()
	if a == nil {
		return
	}
	if a.line != b.line || a.col != b.col {
		t.Fatalf("%.20q: the library alone: %d:%d, with runs cut %d:%d", a.text, b.line, b.col, a.line, a.col)
	}
	for i := range a.vals {
		comparePlaces(t, a.vals[i], b.vals[i])
	}
	for i := range a.keys {
		comparePlaces(t, a.keys[i], b.keys[i])
	}
}

// Property: a long run of base64, wherever it is put into a document, changes
// neither the verdict nor the text nor a place.
func FuzzLongRuns(f *testing.F) {
	for _, text := range []string{"a: b\n", "a: \"x\\x41\\\n  y\"\n", "a: |\n  x\n  y\n", "? a\n: !t &b 'x''y'\n", "- [a, {b: c}] # d\n--- x\n", "%TAG ! a\n---\na: *b\n"} {
		f.Add(text, 3, "A")
	}
	f.Fuzz(func(t *testing.T, text string, at int, c string) {
		if at < 0 || at > len(text) || len(text) > 4096 || len(c) != 1 || !inRun[c[0]] {
			return
		}
		doc := text[:at] + strings.Repeat(c+"QUJD", longRun/5+10) + text[at:]
		if !utf8.ValidString(doc) || strings.ContainsRune(doc, 0) {
			return
		}
		compareRuns(t, doc)
	})
}
