package scenario

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hpcr/initramfs"
)

// Overlay copies an image folder and changes it for a test: files of add come
// over the initrd's, and its command line is edited. PID 1's own binary stays
// as built.
func (l *Lab) Overlay(t *testing.T, image, name string, add *initramfs.Tree, edit func(line string) string) string {
	t.Helper()
	dir := filepath.Join(l.Dir, name)
	must(t, os.MkdirAll(dir, 0o700))
	var more bytes.Buffer
	must(t, add.Write(&more, time.Unix(0, 0)))
	for _, file := range []string{initramfs.KernelFile, initramfs.InitrdFile, initramfs.ParmFile, initramfs.ManifestFile} {
		data, err := os.ReadFile(filepath.Join(image, file))
		must(t, err)
		switch file {
		case initramfs.InitrdFile:
			data = append(data, more.Bytes()...)
		case initramfs.ParmFile:
			data = []byte(edit(string(data)))
		}
		must(t, os.WriteFile(filepath.Join(dir, file), data, 0o600))
	}
	return dir
}

// StandIn is the tree with the program that stands in for others (package
// standin), and links to it under the names given.
func (l *Lab) StandIn(t *testing.T, names ...string) *initramfs.Tree {
	t.Helper()
	bin := filepath.Join(l.Dir, "standin")
	l.Command(t, "env", "-C", l.Root, "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+l.Arch, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "./test/standin")
	data, err := os.ReadFile(bin)
	must(t, err)
	tree := initramfs.NewTree()
	tree.File("bin/standin", 0o755, data)
	for _, name := range names {
		// Symbolic, since what stands there may be a hard link to PID 1.
		tree.Symlink(name, "/bin/standin")
	}
	return tree
}

// Asking adds what the stand-in is to do to the command line.
func Asking(word string) func(string) string {
	return func(line string) string { return line + " hpcr.test=" + word }
}

// Outer makes the stand-in run before /init, too.
func Outer(word string) func(string) string {
	return func(line string) string {
		return Asking(word)(strings.Replace(line, "rdinit=/init", "rdinit=/outer", 1))
	}
}
