//go:build guest

package disk

// The first boot of TestInGuests: volumes are made.

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestFirstBoot: a blank disk becomes a volume, and is one after it was closed.
func TestFirstBoot(t *testing.T) {
	t.Run("created", func(t *testing.T) {
		v := open(t, options(t), spec("data", guestPass))[0]
		if !v.Created || v.Kind != Ours || v.Generation != 2 {
			t.Errorf("%+v", v)
		}
		if err := os.WriteFile("/mnt/data/file", []byte("kept"), 0o644); err != nil {
			t.Fatal(err)
		}
		mounts, err := os.ReadFile("/proc/self/mounts")
		if err != nil || !strings.Contains(string(mounts), "/mnt/data ext4 rw,nosuid,nodev,") {
			t.Errorf("%v\n%s", err, mounts)
		}
		sectors, target, params, err := liveTable(v.Table.Mapping)
		if err != nil || target != "crypt" || sectors == 0 || !strings.HasPrefix(string(params), "aes-xts-plain64 :64:logon:hpcr:") ||
			!strings.HasSuffix(string(params), " 1 sector_size:4096") {
			t.Errorf("live table: %d %s %q %v", sectors, target, params, err)
		}
		keys, err := os.ReadFile("/proc/keys")
		if err != nil || bytes.Contains(keys, []byte("hpcr:")) {
			t.Errorf("a key is left in a keyring: %v\n%s", err, keys)
		}
	})
	t.Run("opened again", func(t *testing.T) {
		v := open(t, options(t), spec("data", "not this one", guestPass))[0]
		if v.Created || v.Generation != 2 {
			t.Errorf("%+v", v)
		}
		if b, err := os.ReadFile("/mnt/data/file"); err != nil || string(b) != "kept" {
			t.Errorf("%q, %v", b, err)
		}
		if err := v.Check(); err != nil {
			t.Errorf("a volume that nobody touched: %v", err)
		}
		for range 2 {
			if err := CloseAll(t.Context(), time.Second); err != nil {
				t.Error(err)
			}
		}
		if v.Check() == nil {
			t.Error("a closed volume passes its check")
		}
	})
	t.Run("two volumes, the second without a serial of its own", func(t *testing.T) {
		a, b := spec("data", guestPass), spec("other", strings.Repeat("b", 64))
		b.Mount = "/mnt/data/below"
		o := options(t)
		o.Exclude = others(t, "data", "spare")
		vols := open(t, o, b, a)
		if !vols[0].Created || vols[1].Created || vols[0].Name != "other" {
			t.Errorf("%+v %+v", vols[0], vols[1])
		}
		if err := os.WriteFile("/mnt/data/below/x", nil, 0o600); err != nil {
			t.Error(err)
		}
	})
	t.Run("a mount in use is detached in time, and its key goes with its last user", func(t *testing.T) {
		if _, err := OpenAll(t.Context(), []Spec{spec("data", guestPass)}, options(t)); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open("/mnt/data/file")
		if err != nil {
			t.Fatal(err)
		}
		if err := CloseAll(t.Context(), 300*time.Millisecond); err == nil {
			t.Error("closed under its user")
		}
		f.Close()
		for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if left, _ := filepath.Glob("/sys/block/dm-*"); len(left) == 0 {
				break
			}
		}
		none(t)
	})
	t.Run("creation cut off before there was a volume goes on", func(t *testing.T) {
		if v := open(t, options(t), spec("cut", guestPass))[0]; !v.Created {
			t.Errorf("%+v", v)
		}
	})
}

// TestUevents: the kernel's word wakes whoever waits for a disk, also in the
// network namespace of a child. Another process's does not.
func TestUevents(t *testing.T) {
	done := make(chan struct{})
	go func() { // its thread ends with it
		defer close(done)
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error(err)
			return
		}
		news, err := newUevents()
		if err != nil {
			t.Error(err)
			return
		}
		defer news.close()
		heard := func(who string, want bool, limit time.Duration) {
			if got, err := news.wait(time.Now().Add(limit)); err != nil || got != want {
				t.Errorf("%s was heard: %v, %v", who, got, err)
			}
		}
		heard("silence", false, 100*time.Millisecond)

		liar, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
		if err != nil {
			t.Error(err)
			return
		}
		defer unix.Close(liar)
		if err := unix.Sendto(liar, []byte("add@/devices/x\x00ACTION=add\x00"), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
			t.Errorf("the liar cannot speak: %v", err)
		}
		heard("a process", false, time.Second)

		disk, err := filepath.Glob(sysBlock + "/vd*/uevent")
		if err != nil || len(disk) == 0 {
			t.Errorf("no disk: %v", err)
			return
		}
		if err := os.WriteFile(disk[0], []byte("change"), 0); err != nil { // the kernel says it again
			t.Error(err)
		}
		heard("the kernel", true, lookAgain/2)
	}()
	<-done
}

// TestFilesystems: each kind is made, mounted without setuid and devices, and
// keeps a file.
func TestFilesystems(t *testing.T) {
	for name, kind := range map[string]string{"fs-ext4": "ext4", "fs-xfs": "xfs", "fs-btrfs": "btrfs", "no-root": "ext4"} {
		t.Run(name, func(t *testing.T) {
			s := spec(name, guestPass)
			s.Filesystem = kind
			v := open(t, options(t), s)[0]
			if !v.Created || v.Filesystem != kind || v.Grown {
				t.Errorf("%+v", v)
			}
			if err := os.WriteFile(v.Mount+"/file", []byte("kept"), 0o644); err != nil {
				t.Fatal(err)
			}
			mounts, err := os.ReadFile("/proc/self/mounts")
			if err != nil || !strings.Contains(string(mounts), v.Mount+" "+kind+" rw,nosuid,nodev,") {
				t.Errorf("%v\n%s", err, mounts)
			}
		})
	}
}

// TestMakeKept makes the volume that later boots must not lose, and reports
// nothing of its key.
func TestMakeKept(t *testing.T) {
	v := open(t, patient(t), spec("kept", guestPass))[0]
	if !v.Created {
		t.Errorf("%+v", v)
	}
}

// TestCidata: the label decides, not the serial or the place.
func TestCidata(t *testing.T) {
	name, err := FindLabel("CIDATA")
	if err != nil {
		t.Fatal(err)
	}
	b, err := ReadDevice(name, 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("cidata sha256 %x", sha256.Sum256(b))
	if _, err := ReadDevice(name, int64(len(b))-1); !errors.Is(err, ErrTooLarge) {
		t.Errorf("got %v", err)
	}
	if _, err := FindLabel("nothing"); !errors.Is(err, ErrNoLabel) {
		t.Errorf("got %v", err)
	}
	if _, err := FindLabel("double"); err == nil || errors.Is(err, ErrNoLabel) {
		t.Errorf("two disks with one label: %v", err)
	}
}
