package initramfs

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func sampleTree(t *testing.T, order []string) *Tree {
	t.Helper()
	tree := NewTree()
	for _, step := range order {
		switch step {
		case "file":
			tree.File("init", 0o755, []byte("program"))
		case "dir":
			tree.Dir("tmp", 0o1777)
		case "deep":
			tree.File("etc/hpcr/a.json", 0o644, []byte("{}"))
		case "symlink":
			tree.Symlink("etc/mtab", "/proc/self/mounts")
		case "empty":
			tree.File("etc/empty", 0o600, nil)
		}
	}
	for _, name := range []string{"bin/agent", "bin/contract"} {
		if err := tree.Link(name, "init"); err != nil {
			t.Fatal(err)
		}
	}
	return tree
}

func archive(t *testing.T, tree *Tree) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := tree.Write(&b, time.Unix(1700000000, 0)); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestArchiveIsTheSameHoweverTheTreeWasFilled(t *testing.T) {
	a := archive(t, sampleTree(t, []string{"file", "dir", "deep", "symlink", "empty"}))
	b := archive(t, sampleTree(t, []string{"empty", "symlink", "file", "deep", "dir"}))
	if !bytes.Equal(a, b) {
		t.Error("the order of filling shows in the bytes")
	}
	if len(a)%512 != 0 {
		t.Errorf("%d bytes: another archive could not follow", len(a))
	}
}

// The judge is cpio(1): what it unpacks is what the kernel would.
func TestArchiveUnpacksWithCpio(t *testing.T) {
	cpio, err := exec.LookPath("cpio")
	if err != nil {
		t.Fatal("cpio is missing: run make deps")
	}
	dir := t.TempDir()
	cmd := exec.Command(cpio, "-idm", "--quiet", "--no-absolute-filenames")
	cmd.Dir = dir
	cmd.Stdin = bytes.NewReader(archive(t, sampleTree(t, []string{"file", "dir", "deep", "symlink", "empty"})))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for name, want := range map[string]string{"init": "program", "bin/agent": "program", "bin/contract": "program", "etc/hpcr/a.json": "{}", "etc/empty": ""} {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
		} else if diff := cmp.Diff(want, string(got)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	info, err := os.Stat(filepath.Join(dir, "init"))
	if err != nil {
		t.Fatal(err)
	}
	if st := info.Sys().(*syscall.Stat_t); st.Nlink != 3 {
		t.Errorf("init has %d names, want 3 hard links", st.Nlink)
	}
	if !info.ModTime().Equal(time.Unix(1700000000, 0)) || info.Mode() != 0o755 {
		t.Errorf("init: %v, %v", info.ModTime(), info.Mode())
	}
	if info, err = os.Stat(filepath.Join(dir, "tmp")); err != nil || info.Mode()&os.ModeSticky == 0 {
		t.Errorf("tmp: %v, %v", info, err)
	}
	if to, err := os.Readlink(filepath.Join(dir, "etc/mtab")); err != nil || to != "/proc/self/mounts" {
		t.Errorf("etc/mtab: %q, %v", to, err)
	}
}

func TestLinkNeedsAFile(t *testing.T) {
	tree := NewTree()
	tree.Dir("dir", 0o755)
	for _, target := range []string{"missing", "dir"} {
		if err := tree.Link("link", target); err == nil {
			t.Errorf("a hard link to %q was taken", target)
		}
	}
}

func TestTimeBeyondTheFormatIsRefused(t *testing.T) {
	tree := NewTree()
	tree.File("a", 0o644, nil)
	for _, when := range []time.Time{time.Unix(-1, 0), time.Unix(1<<32, 0)} {
		if err := tree.Write(&bytes.Buffer{}, when); err == nil || !strings.Contains(err.Error(), "does not fit") {
			t.Errorf("%v: %v", when, err)
		}
	}
}
