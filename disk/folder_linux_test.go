package disk

import (
	"os"
	"path/filepath"
	"testing"
)

// TestMakeFolder: where a mount may lie, and what is made for it. No link is
// followed, wherever it stands in the path.
func TestMakeFolder(t *testing.T) {
	base := t.TempDir()
	for _, dir := range []string{"volume/there", "outside"} {
		if err := os.MkdirAll(filepath.Join(base, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(base, "volume/file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{
		"absolute": base + "/outside", "relative": "../outside", "inside": "there", "dangling": base + "/outside/new", "loop": "loop",
		"magic": "/proc/self/root" + base + "/outside",
	} {
		if err := os.Symlink(to, filepath.Join(base, "volume", link)); err != nil {
			t.Fatal(err)
		}
	}
	tests := map[string]struct {
		path string
		ok   bool
	}{
		"there already":              {"volume/there", true},
		"one folder is missing":      {"volume/new", true},
		"several are missing":        {"volume/there/a/b/c", true},
		"a link out, absolute":       {"volume/absolute", false},
		"a link out, relative":       {"volume/relative", false},
		"a link that stays inside":   {"volume/inside", false},
		"a link to nothing":          {"volume/dangling", false},
		"a link to itself":           {"volume/loop", false},
		"by way of the kernel's own": {"volume/magic", false},
		"below a link":               {"volume/absolute/new", false},
		"below a link that dangles":  {"volume/dangling/new", false},
		"a file":                     {"volume/file", false},
		"below a file":               {"volume/file/new", false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(base, tt.path)
			f, err := makeFolder(path)
			if (err == nil) != tt.ok {
				t.Fatalf("got %v", err)
			}
			if err != nil {
				return
			}
			defer f.Close()
			got, err := f.Stat()
			if err != nil {
				t.Fatal(err)
			}
			want, err := os.Lstat(path)
			if err != nil || !want.IsDir() || !os.SameFile(got, want) {
				t.Errorf("another folder was opened: %v", err)
			}
		})
	}
	if left, err := os.ReadDir(base + "/outside"); err != nil || len(left) > 0 {
		t.Errorf("made outside: %v, %v", left, err)
	}
}
