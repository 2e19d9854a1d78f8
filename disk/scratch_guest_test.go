//go:build guest

package disk

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// scratchCanary is on the scratch disk, if anybody can read it.
const scratchCanary = "what no host may read of a scratch disk. "

func openScratchDisk(t *testing.T) *Volume {
	t.Helper()
	start := time.Now()
	v, err := OpenScratch(t.Context(), ScratchOptions{Mount: "/mnt/scratch", Log: slog.New(slog.NewTextHandler(os.Stdout, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("made in %s", time.Since(start))
	return v
}

func closeScratchDisk(t *testing.T) {
	t.Helper()
	if err := CloseAll(context.Background(), undoPatience); err != nil {
		t.Error(err)
	}
	none(t)
}

// TestScratch: the disk is made anew at each boot, holds what is written to
// it, and only that: a sector that was never written is never asked for, one
// that a host changed is never given.
func TestScratch(t *testing.T) {
	log := kernelLog(t)
	v := openScratchDisk(t)
	if v.Kind != Scratch || !v.Created || !v.Integrity || len(v.Lower) != 2 || !strings.HasPrefix(v.Table.Params, integrityCipher+" :96:logon:hpcr:") {
		t.Errorf("%+v", v)
	}
	if err := v.Check(); err != nil {
		t.Error(err)
	}
	random := make([]byte, 16<<20)
	rand.Read(random)
	text := bytes.Repeat([]byte(scratchCanary), 1000)
	files := map[string][]byte{"large": random}
	for i := range 300 { // in as many groups as ext4 likes
		files[fmt.Sprintf("dir-%d/sub/file-%d", i%60, i)] = text[:100*i]
	}
	for name, content := range files {
		path := filepath.Join(v.Mount, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	dropCaches(t)
	for name, content := range files {
		if got, err := os.ReadFile(filepath.Join(v.Mount, name)); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	if lines := log(); strings.Contains(lines, "INTEGRITY") || strings.Contains(lines, "I/O error") || strings.Contains(lines, "EXT4-fs error") {
		t.Errorf("the kernel read what nobody had written:\n%s", lines)
	}

	t.Run("one user leaves when the volumes are closed", func(t *testing.T) {
		if err := CloseVolumes(t.Context(), undoPatience); err != nil {
			t.Error(err)
		}
		if err := v.Check(); err != nil {
			t.Error(err)
		}
	})
	closeScratchDisk(t)

	v = openScratchDisk(t)
	defer closeScratchDisk(t)
	if left, err := filepath.Glob(v.Mount + "/dir*"); err != nil || len(left) > 0 {
		t.Errorf("an earlier boot's: %v, %v", left, err)
	}
	if err := os.WriteFile(v.Mount+"/victim", random, 0o644); err != nil {
		t.Fatal(err)
	}
	unix.Sync()
	raw, err := os.OpenFile("/dev/"+v.Header.Disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	// All of the disk but what dm-integrity itself lives by, its superblock.
	b := make([]byte, mib)
	size, err := raw.Seek(0, 2)
	if err != nil {
		t.Fatal(err)
	}
	for at := int64(scratchStart + mib); at+mib <= size-mib; at += mib {
		if _, err := raw.ReadAt(b, at); err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(b); i += 4096 {
			b[i+7] ^= 1
		}
		if _, err := raw.WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := raw.Sync(); err != nil {
		t.Fatal(err)
	}
	dropCaches(t)
	if got, err := os.ReadFile(v.Mount + "/victim"); err == nil || !bytes.HasPrefix(random, got) {
		t.Errorf("a host's change was read: %d bytes, %v", len(got), err)
	}
}

func dropCaches(t *testing.T) {
	t.Helper()
	unix.Sync()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		t.Fatal(err)
	}
}

// kernelLog returns what the kernel says from now on.
func kernelLog(t *testing.T) func() string {
	t.Helper()
	f, err := os.OpenFile("/dev/kmsg", os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Seek(0, 2); err != nil {
		t.Fatal(err)
	}
	return func() string {
		defer f.Close()
		var all strings.Builder
		line := make([]byte, 8<<10)
		for {
			n, err := unix.Read(int(f.Fd()), line)
			if err != nil { // EAGAIN: no more
				return all.String()
			}
			all.Write(line[:n])
		}
	}
}
