package boot

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// modules is /etc/hpcr/modules.json: groups of kernel modules, each an ordered
// list of files whose dependencies come first. There is no modprobe and no
// autoloading in the guest.
type modules struct {
	Groups map[string][]string `json:"groups"`

	mu     sync.Mutex
	loaded map[string]bool
}

func loadModuleList() (*modules, error) {
	m := &modules{loaded: map[string]bool{}}
	if err := readJSON(modulesFile, m); err != nil {
		return nil, err
	}
	return m, nil
}

// load inserts the group's modules that are not loaded yet.
func (m *modules) load(group string) error {
	files, ok := m.Groups[group]
	if !ok {
		return fmt.Errorf("the image has no module group %q", group)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, path := range files {
		if m.loaded[path] {
			continue
		}
		if err := insert(path); err != nil {
			return fmt.Errorf("module %s: %w", path, err)
		}
		m.loaded[path] = true
	}
	return nil
}

func insert(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.FinitModule(int(f.Fd()), "", 0)
	// A driver for hardware that is not there says ENODEV: CPU-specific
	// cryptography is listed for machines that have it.
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// lock ends module loading for good.
func (m *modules) lock() error {
	return os.WriteFile("/proc/sys/kernel/modules_disabled", []byte("1"), 0)
}
