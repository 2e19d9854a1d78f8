package qemu

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// RAM opens the guest's memory as its host sees it: the guest's physical
// addresses are offsets in the file. What the guest never touched is a hole.
// Needs Options.Bare, and a guest small enough to have no memory above the
// hole for devices: 2 GiB on amd64.
func (v *VM) RAM() (*os.File, error) {
	dir := fmt.Sprintf("/proc/%d/fd", v.PID())
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("the guest's memory: %w", err)
	}
	for _, n := range names {
		path := filepath.Join(dir, n.Name())
		// A descriptor may be closed meanwhile.
		if to, err := os.Readlink(path); err == nil && strings.HasPrefix(to, "/memfd:"+memoryBackend) {
			return os.Open(path)
		}
	}
	return nil, errors.New("the guest's memory is not a file")
}
