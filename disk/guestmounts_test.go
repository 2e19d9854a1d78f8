//go:build guest

package disk

import (
	"bytes"
	"context"
	"crypto/aes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/xts"
	"golang.org/x/sys/unix"
)

// The volumes of TestFirstBoot, apart from all other disks.
func twoVolumes(t *testing.T) (Spec, Spec, Options) {
	o := options(t)
	o.Exclude = others(t, "data", "spare")
	return spec("data", guestPass), spec("other", strings.Repeat("b", 64)), o
}

// TestPlantedLink: a container leaves a link in its volume where another volume
// will be mounted at the next boot. That is refused; the folder that the link
// leads to is neither covered nor made.
func TestPlantedLink(t *testing.T) {
	outer, inner, o := twoVolumes(t)
	open(t, o, outer)
	for link, to := range map[string]string{"root": "/", "new": "/tmp/new"} {
		if err := os.Symlink(to, "/mnt/data/"+link); err != nil {
			t.Fatal(err)
		}
	}
	if err := CloseAll(t.Context(), time.Second); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadDir("/etc")
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{"root/etc", "new"} {
		inner.Mount = "/mnt/data/" + at
		if e := refused(t, o, "HPL07002E", inner, outer); !strings.HasSuffix(e.Path, "/mount") {
			t.Errorf("%s: %v", at, e)
		}
	}
	if after, err := os.ReadDir("/etc"); err != nil || len(after) != len(before) {
		t.Errorf("/etc has %d files, it had %d: %v", len(after), len(before), err)
	}
	if _, err := os.Lstat("/tmp/new"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a folder was made outside of the volume: %v", err)
	}
}

// TestCloseBesideHung: the disk of one volume answers no more. The other one is
// closed in order all the same, and CloseAll comes back.
func TestCloseBesideHung(t *testing.T) {
	a, b, o := twoVolumes(t)
	vols := open(t, o, a, b)
	for _, v := range vols {
		if err := os.WriteFile(v.Mount+"/late", []byte("written at the end"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	hung, good := vols[0], vols[1]
	cleanGood, cleanHung := cleanly(t, good, b), cleanly(t, hung, a)
	if cleanGood() {
		t.Error("a mounted file system is clean: the test is blind")
	}
	if _, _, err := dmCall(unix.DM_DEV_SUSPEND, hung.Table.Mapping, unix.DM_SUSPEND_FLAG|unix.DM_SKIP_LOCKFS_FLAG|unix.DM_NOFLUSH_FLAG, nil, 0); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	err := CloseAll(ctx, time.Second)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with a disk that hangs: %v", err)
	}
	if _, _, _, err := liveTable(good.Table.Mapping); !errors.Is(err, unix.ENXIO) {
		t.Errorf("the other volume is still mapped: %v", err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || bytes.Contains(mounts, []byte(good.Mount+" ")) {
		t.Errorf("the other volume is still mounted: %v\n%s", err, mounts)
	}
	if !cleanGood() {
		t.Error("the other volume was not closed in order")
	}

	if _, _, err := dmCall(unix.DM_DEV_SUSPEND, hung.Table.Mapping, 0, nil, 0); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if left, err := filepath.Glob("/sys/block/dm-*"); err == nil && len(left) == 0 { // the last that goes
			break
		}
	}
	if !cleanHung() {
		t.Error("the disk answers again, but its volume was not closed")
	}
}

// cleanly returns what reads from the disk itself whether the volume's ext4 was
// closed in order: its state says so, and its journal holds nothing to be
// replayed (s_state, s_feature_incompat; Documentation/filesystems/ext4/super.rst).
func cleanly(t *testing.T, v *Volume, s Spec) func() bool {
	t.Helper()
	f, err := os.Open("/dev/" + v.Header.Disk)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		t.Fatal(err)
	}
	c, err := Probe(f, size, 512)
	if err != nil {
		t.Fatal(err)
	}
	o, err := c.Image.Unlock(t.Context(), s.Passphrases[0], s.Name)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Key.Wipe()
	key, err := xts.NewCipher(aes.NewCipher, o.Key.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	return func() bool {
		t.Helper()
		b := make([]byte, 4096)
		if err := forget(f, c.Start+o.DataOffset, int64(len(b))); err != nil {
			t.Fatal(err)
		}
		if _, err := f.ReadAt(b, c.Start+o.DataOffset); err != nil {
			t.Fatal(err)
		}
		key.Decrypt(b, b, 0)
		super := b[1024:]
		if binary.LittleEndian.Uint16(super[0x38:]) != 0xEF53 {
			t.Fatal("no ext4")
		}
		const valid, recover = 1, 4
		return binary.LittleEndian.Uint16(super[0x3A:])&valid != 0 && binary.LittleEndian.Uint32(super[0x60:])&recover == 0
	}
}
