package initramfs

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"time"
)

// Tree is the content of a cpio archive. Owners are root, times are one value
// given when it is written: two trees with the same content give the same bytes.
type Tree struct {
	nodes map[string]*node
}

type node struct {
	mode   uint32 // with the file type
	data   []byte
	target *node // hard link: the node that owns the data
}

const (
	typeMask = 0o170000
	typeDir  = 0o040000
	typeFile = 0o100000
	typeLink = 0o120000
)

// NewTree gives an empty tree.
func NewTree() *Tree { return &Tree{nodes: map[string]*node{}} }

func clean(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

func (t *Tree) put(name string, n *node) {
	name = clean(name)
	if dir := path.Dir(name); dir != "." {
		if _, ok := t.nodes[dir]; !ok {
			t.Dir(dir, 0o755)
		}
	}
	t.nodes[name] = n
}

// Dir adds a folder, and the folders above it with mode 0755.
func (t *Tree) Dir(name string, mode uint32) { t.put(name, &node{mode: typeDir | mode}) }

// File adds a regular file.
func (t *Tree) File(name string, mode uint32, data []byte) {
	t.put(name, &node{mode: typeFile | mode, data: data})
}

// Symlink adds a symbolic link.
func (t *Tree) Symlink(name, target string) {
	t.put(name, &node{mode: typeLink | 0o777, data: []byte(target)})
}

// Link adds a hard link to a file of the tree.
func (t *Tree) Link(name, existing string) error {
	n := t.nodes[clean(existing)]
	if n == nil || n.mode&typeMask != typeFile {
		return fmt.Errorf("hard link %s: no file %s in the tree", name, existing)
	}
	if n.target != nil {
		n = n.target
	}
	t.put(name, &node{mode: n.mode, target: n})
	return nil
}

// Has says whether the tree holds a name.
func (t *Tree) Has(name string) bool { return t.nodes[clean(name)] != nil }

// Names lists the tree's names, sorted.
func (t *Tree) Names() []string { return slices.Sorted(maps.Keys(t.nodes)) }

// Write emits the tree as a newc archive, sorted by name, with inode numbers
// counted from 1, padded to 512 bytes so that another archive can follow.
// Data of a hard-linked file stands with its last name, as cpio(1) expects.
func (t *Tree) Write(w io.Writer, mtime time.Time) error {
	out := &counter{w: bufio.NewWriterSize(w, 1<<20)}
	names := t.Names()
	inode := map[*node]int{}
	links := map[*node]int{}
	for _, name := range names {
		links[owner(t.nodes[name])]++
	}
	seen := map[*node]int{}
	for _, name := range names {
		n := t.nodes[name]
		o := owner(n)
		if inode[o] == 0 {
			inode[o] = len(inode) + 1
		}
		nlink := links[o]
		if n.mode&typeMask == typeDir {
			nlink = 2
		}
		data := o.data
		if seen[o]++; seen[o] < links[o] {
			data = nil
		}
		if err := entry(out, name, inode[o], n.mode, nlink, mtime.Unix(), data); err != nil {
			return err
		}
	}
	if err := entry(out, "TRAILER!!!", 0, 0, 1, 0, nil); err != nil {
		return err
	}
	if err := out.pad(512); err != nil {
		return err
	}
	return out.w.Flush()
}

func owner(n *node) *node {
	if n.target != nil {
		return n.target
	}
	return n
}

func entry(out *counter, name string, ino int, mode uint32, nlink int, mtime int64, data []byte) error {
	if int64(len(data)) > 0xffffffff || mtime < 0 || mtime > 0xffffffff {
		return fmt.Errorf("cpio entry %s: size or time does not fit the format", name)
	}
	// ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
	header := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		ino, mode, 0, 0, nlink, mtime, len(data), 0, 0, 0, 0, len(name)+1, 0)
	if err := out.write([]byte(header + name + "\x00")); err != nil {
		return err
	}
	if err := out.pad(4); err != nil {
		return err
	}
	if err := out.write(data); err != nil {
		return err
	}
	return out.pad(4)
}

type counter struct {
	w *bufio.Writer
	n int64
}

func (c *counter) write(b []byte) error {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return err
}

func (c *counter) pad(to int64) error {
	if rest := c.n % to; rest != 0 {
		return c.write(make([]byte, to-rest))
	}
	return nil
}
