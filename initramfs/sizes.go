package initramfs

import (
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
)

// InitrdLimit is how large an initrd may be, in bytes: the budget of
// docs/budgets.md, which has one for each part besides.
const InitrdLimit = 25_000_000

// Size is that of one part of an image, in bytes. Packed is the part
// compressed alone; together they compress a little better.
type Size struct {
	Part   string `json:"part"`
	Raw    int64  `json:"raw"`
	Packed int64  `json:"packed"`
}

// baseParts are the parts of the base, in the order of the table.
var baseParts = []string{"init", "agent", "disk", "runc", "programs", "modules", "CA bundle", "configuration"}

// partOf names the part that a file of the base belongs to.
func partOf(name string) string {
	switch {
	case slices.Contains(initLinks, name):
		return "init"
	case slices.Contains(applets, name):
		return "agent"
	case slices.Contains(diskLinks, name):
		return "disk"
	case name == "bin/runc":
		return "runc"
	case strings.HasPrefix(name, "lib/modules/"):
		return "modules"
	case name == caFile:
		return "CA bundle"
	case slices.Contains([]string{"sbin", "lib", "lib64"}, strings.Split(path.Dir(name), "/")[0]):
		return "programs" // with their libraries
	}
	return "configuration"
}

func (t *Tree) sizes() ([]Size, error) {
	content := map[string][]byte{}
	for _, name := range t.Names() {
		if n := t.nodes[name]; n.mode&typeMask == typeFile && n.target == nil {
			content[partOf(name)] = append(content[partOf(name)], n.data...)
		}
	}
	var sizes []Size
	for _, part := range baseParts {
		packed, err := compress(content[part])
		if err != nil {
			return nil, err
		}
		sizes = append(sizes, Size{part, int64(len(content[part])), int64(len(packed))})
	}
	return sizes, nil
}

// PrintSizes writes the sizes by part as a table.
func (m *Manifest) PrintSizes(w io.Writer) {
	for _, s := range m.Sizes {
		fmt.Fprintf(w, "  %-14s %8.2f MB  packed %6.2f MB\n", s.Part, float64(s.Raw)/1e6, float64(s.Packed)/1e6)
	}
}
