package initramfs

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// CacheDir is where downloads and built parts are kept between builds:
// $HPCR_CACHE, else "hpcr" in the user's cache folder.
func CacheDir() (string, error) {
	if dir := os.Getenv("HPCR_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	base, err := os.UserCacheDir()
	if err != nil {
		// A service or a bare container may have no HOME; root's folder is the usual place then.
		if os.Getuid() != 0 {
			return "", fmt.Errorf("no cache folder (set HPCR_CACHE): %w", err)
		}
		base = "/root/.cache"
	}
	return filepath.Join(base, "hpcr"), nil
}

// locked runs fn while it holds the exclusive lock of that name, so that two
// builds at once share one download instead of tearing each other's files.
func locked(dir, name string, fn func() error) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, "."+name+".lock"), os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return fn()
}

// once makes dir by fn, which fills a temporary neighbour that is renamed
// only when it is whole. A dir that exists is taken as made.
func once(dir string, fn func(tmp string) error) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	parent := filepath.Dir(dir)
	return locked(parent, filepath.Base(dir), func() error {
		if _, err := os.Stat(dir); err == nil {
			return nil
		}
		tmp, err := os.MkdirTemp(parent, ".new-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(tmp)
		if err := os.Chmod(tmp, 0o755); err != nil {
			return err
		}
		if err := fn(tmp); err != nil {
			return err
		}
		return os.Rename(tmp, dir)
	})
}

func hashBytes(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func hashFile(name string) (sum string, size int64, err error) {
	f, err := os.Open(name)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	size, err = io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), size, err
}

// hashStrings is the cache key of a list of inputs.
func hashStrings(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s\n", len(p), p)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return !errors.Is(err, fs.ErrNotExist)
}
