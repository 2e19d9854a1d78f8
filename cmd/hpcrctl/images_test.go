package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestImagesPack: the file is replaced as a whole or not at all, and its exit
// codes are the tool's.
func TestImagesPack(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	layout := filepath.Join(dir, "archive")
	for name, text := range map[string]string{
		"archive/manifest.json": `[{"Config":"c.json","RepoTags":["web:1"],"Layers":["l.tar"]}]`,
		"archive/c.json":        `{"os":"linux","architecture":"s390x"}`,
		"archive/l.tar":         "a layer",
		"broken/index.json":     `{"manifests":[{"digest":"sha256:` + strings.Repeat("1", 64) + `","size":1}]}`,
		"before":                "as it was",
	} {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("before", "link"); err != nil {
		t.Fatal(err)
	}
	for sentence, tt := range map[string]struct {
		args []string
		exit int
	}{
		"no output file":         {[]string{layout}, 2},
		"nothing to pack":        {[]string{"--out", "before"}, 2},
		"no such file":           {[]string{"--out", "before", "./nothing"}, 2},
		"no name":                {[]string{"--out", "before", "UPPER"}, 2},
		"no such authority":      {[]string{"--out", "before", "--tls-ca", "nothing", layout}, 2},
		"an authority of no PEM": {[]string{"--out", "before", "--tls-ca", "before", layout}, 2},
		"another platform":       {[]string{"--out", "before", "--platform", "linux/arm64", layout}, 2},
		"a link":                 {[]string{"--out", "link", layout}, 2},
		"no folder":              {[]string{"--out", "nowhere/x", layout}, 2},
		"a broken layout":        {[]string{"--out", "before", "./broken"}, 1},
		"none for the platform":  {[]string{"--out", "before", "--platform", "linux/amd64", layout}, 1},
	} {
		t.Run(sentence, func(t *testing.T) {
			if exit := run(t.Context(), append([]string{"images", "pack"}, tt.args...)); exit != tt.exit {
				t.Errorf("exit %d, want %d", exit, tt.exit)
			}
			if b, err := os.ReadFile("before"); err != nil || string(b) != "as it was" {
				t.Errorf("the file is %q, %v", b, err)
			}
		})
	}
	var disks [2][]byte
	for i := range disks {
		if exit := run(t.Context(), []string{"images", "pack", "--out", "before", layout}); exit != 0 {
			t.Fatalf("exit %d", exit)
		}
		var err error
		if disks[i], err = os.ReadFile("before"); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(disks[0], disks[1]) {
		t.Error("the same images make other bytes")
	}
	if left, err := filepath.Glob(".*"); err != nil || len(left) > 0 {
		t.Errorf("%q is left", left)
	}
}
