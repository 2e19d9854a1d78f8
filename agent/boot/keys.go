package boot

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Key files of the image. Contract keys are /keys/0, /keys/1, …: the first is
// the image's own, the others keep old contracts opening.
const (
	contractKeys   = keysDir + "/[0-9]*/contract.key"
	attestationKey = keysDir + "/attestation.key"
)

// openKeys opens the contract keys for the child to read.
func openKeys() ([]*os.File, error) {
	paths, err := filepath.Glob(contractKeys)
	if err != nil {
		return nil, err
	}
	if len(paths) == 0 || len(paths) > maxKeys {
		return nil, fmt.Errorf("the image holds %d contract keys", len(paths))
	}
	var files []*os.File
	for _, p := range paths {
		f, err := os.Open(p)
		if err != nil {
			closeAll(files)
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// destroy overwrites and removes the files that match. They lie in memory: the
// overwriting reaches the very pages.
func destroy(pattern string) error {
	paths, err := filepath.Glob(pattern)
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range paths {
		errs = append(errs, overwrite(p), os.Remove(p))
	}
	return errors.Join(errs...)
}

func overwrite(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, fi.Size()))
	return err
}

func fileSHA256(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
