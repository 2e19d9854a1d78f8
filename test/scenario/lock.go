package scenario

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// Claim takes a build folder for this process alone: two runs at once would
// boot each other's contracts. The returned function gives it back.
func Claim(dir string) (release func() error, err error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, fmt.Errorf("claim %s: %w", dir, err)
	}
	f, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("claim %s: %w", dir, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("another run uses %s, wait for its end: %w", dir, err), f.Close())
	}
	return f.Close, nil // the lock ends with the file
}
