package disk

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// headerOf takes the header as it is now, from the disk itself: size bytes, all
// that lies before the data (the gate allows 64 MiB).
func headerOf(disk string, start, size int64) (Header, error) {
	h := Header{Disk: disk, Start: start, Size: size}
	f, err := os.Open(filepath.Join("/dev", disk))
	if err != nil {
		return h, err
	}
	defer f.Close()
	if err := forget(f, start, h.Size); err != nil {
		return h, err
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(f, start, h.Size)); err != nil {
		return h, fmt.Errorf("read header: %w", err)
	}
	h.SHA256 = hex.EncodeToString(sum.Sum(nil))
	return h, nil
}

// Check says whether an open volume is still what it was when it opened: its
// live table, its mount, its header on the disk.
func (v *Volume) Check() error {
	for _, t := range append([]Table{v.Table}, v.Lower...) {
		sectors, target, params, err := liveTable(t.Mapping)
		switch {
		case err != nil:
			return fmt.Errorf("the mapping: %w", err)
		case target != t.Target || sectors != t.Sectors || string(params) != t.Params:
			clear(params)
			return errors.New("the live table is not the one that was loaded")
		}
	}
	mounts, err := mountsOf(map[string]string{v.Device: v.Table.Mapping})
	if err != nil {
		return err
	}
	if at := mounts[v.Device]; len(at) == 0 || at[0] != v.Mount {
		return errors.New("the volume is not mounted where it was")
	}
	now, err := headerOf(v.Header.Disk, v.Header.Start, v.Header.Size)
	if err != nil {
		return fmt.Errorf("the header: %w", err)
	}
	if now.SHA256 != v.Header.SHA256 {
		return errors.New("the header on the disk has changed since the volume was opened")
	}
	return nil
}
