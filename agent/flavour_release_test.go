//go:build !dev

package agent

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hpcr/agent/hpl"
)

// Only a kernel that says 1, and nothing else, lets a release image go on.
func TestReleaseRefusesOutsideSecureExecution(t *testing.T) {
	if Flavour != "release" {
		t.Fatalf("a build without tags is %q", Flavour)
	}
	for name, tc := range map[string]struct {
		content string
		refused bool
	}{
		"the kernel's 1":         {"1\n", false},
		"a 1 without a line end": {"1", false},
		"0":                      {"0\n", true},
		"nothing":                {"", true},
		"a line end":             {"\n", true},
		"another number":         {"10\n", true},
		"a 1 after blanks":       {" 1\n", true},
		"a 1 on two lines":       {"1\n1\n", true},
		"a 1 and a line too much": {
			"1\n\n", true,
		},
		"a 1 and much more":   {"1\n" + strings.Repeat("\n", 100), true},
		"a 1 and a NUL":       {"1\x00", true},
		"text":                {"protected\n", true},
		"a 1 in wide letters": {"\uff11\n", true},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "prot_virt_guest")
			if err := os.WriteFile(file, []byte(tc.content), 0o444); err != nil {
				t.Fatal(err)
			}
			judge(t, protected(file), tc.refused)
		})
	}
	t.Run("no file", func(t *testing.T) { judge(t, protected(filepath.Join(t.TempDir(), "none")), true) })
	t.Run("a folder", func(t *testing.T) { judge(t, protected(t.TempDir()), true) })
}

func judge(t *testing.T, err error, refused bool) {
	t.Helper()
	var e *hpl.Error
	switch {
	case !refused && err != nil:
		t.Errorf("refused: %v", err)
	case refused && (!errors.As(err, &e) || e.Code != "HPL11000E" || !strings.HasPrefix(e.Detail, "not in Secure Execution: ")):
		t.Errorf("got %v, want HPL11000E", err)
	}
}
