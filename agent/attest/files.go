package attest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Dir is where containers find the record, exactly as in HPCR.
const Dir = "/var/hyperprotect"

// File is one file of Dir.
type File struct {
	Name string // may lie in a folder: "cidata/meta-data"
	Data []byte
	// OwnerWrites is mode 0600, which HPCR gives to workload-data.decrypted.
	OwnerWrites bool
}

// Write makes dir (mode 0500) with the files (mode 0400 or 0600). It runs once, into
// an empty place; a file that exists already is an error.
func Write(dir string, files []File) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	dirs := map[string]bool{dir: true}
	for _, f := range files {
		path := filepath.Join(dir, f.Name)
		if d := filepath.Dir(path); !dirs[d] {
			dirs[d] = true
			if err := os.MkdirAll(d, 0o700); err != nil {
				return err
			}
		}
		if err := writeNew(path, f); err != nil {
			return fmt.Errorf("record file %s: %w", f.Name, err)
		}
	}
	for d := range dirs {
		if err := os.Chmod(d, 0o500); err != nil {
			return err
		}
	}
	return nil
}

func writeNew(path string, file File) error {
	var mode os.FileMode = 0o400
	if file.OwnerWrites {
		mode = 0o600
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(file.Data)
	return errors.Join(err, f.Close())
}
