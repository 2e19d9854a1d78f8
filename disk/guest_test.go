//go:build guest

package disk

// The tests of this file run as PID 1 of a guest: only there are a device
// mapper and disks to lose. vm_test.go builds the guest, makes its disks, and
// compares what is left on them.

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hpcr/agent/hpl"
	"hpcr/agent/secret"
)

const guestPass = "5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8"

var cheap = KDF{MemoryKiB: 32 << 10, Time: 4, Parallel: 1}

// port is the guest's line to its host: events out, commands in.
var port *os.File

func TestMain(m *testing.M) {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "tests with the tag guest run only as a guest's first process: see vm_test.go")
		os.Exit(2)
	}
	var err error
	if port, err = bringUp(); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		powerOff()
	}
	// Each line of the tests' output is one JSON event to the host.
	r, w, err := os.Pipe()
	if err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		powerOff()
	}
	done := make(chan struct{})
	enc := json.NewEncoder(port)
	go func() {
		defer close(done)
		for lines := bufio.NewScanner(r); lines.Scan(); {
			if err := enc.Encode(map[string]any{"t": "line", "line": lines.Text()}); err != nil {
				fmt.Fprintln(os.Stderr, "guest:", err)
			}
			fmt.Fprintln(os.Stderr, lines.Text())
		}
	}()
	os.Stdout = w
	code := m.Run()
	w.Close()
	<-done
	if err := enc.Encode(map[string]any{"t": "end", "code": code}); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
	}
	unix.Sync()
	time.Sleep(100 * time.Millisecond) // the port has no flush
	powerOff()
}

func powerOff() {
	for {
		if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
			fmt.Fprintln(os.Stderr, "guest:", err)
		}
		time.Sleep(time.Second)
	}
}

func bringUp() (*os.File, error) {
	for _, m := range [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/tmp"}} {
		if err := os.MkdirAll(m[1], 0o755); err != nil {
			return nil, err
		}
		if err := unix.Mount(m[0], m[1], m[0], 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("mount %s: %w", m[1], err)
		}
	}
	list, err := os.ReadFile("/etc/hpcr/modules.json")
	if err != nil {
		return nil, err
	}
	var modules struct{ Groups map[string][]string }
	if err := json.Unmarshal(list, &modules); err != nil {
		return nil, err
	}
	for _, path := range slices.Concat(modules.Groups["base"], modules.Groups["disk"], modules.Groups["xfs"], modules.Groups["btrfs"], modules.Groups["integrity"]) {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENODEV) {
			return nil, fmt.Errorf("module %s: %w", path, err)
		}
	}
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			if b, err := os.ReadFile(n); err == nil && strings.TrimSpace(string(b)) == "org.hpcr.events" {
				return os.OpenFile("/dev/"+filepath.Base(filepath.Dir(n)), os.O_RDWR, 0)
			}
		}
	}
	return nil, errors.New("no event port")
}

func spec(name string, pass ...string) Spec {
	s := Spec{Name: name, Path: "/workload/volumes/#1", Mount: "/mnt/" + name, MayCreate: true}
	for _, p := range pass {
		s.Passphrases = append(s.Passphrases, secret.FromString(p))
	}
	return s
}

func options(t *testing.T) Options {
	return Options{KDF: cheap, Wait: time.Second, Log: slog.New(slog.NewTextHandler(os.Stdout, nil))}
}

func open(t *testing.T, o Options, specs ...Spec) []*Volume {
	t.Helper()
	vols, err := OpenAll(t.Context(), specs, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := CloseAll(context.Background(), time.Second); err != nil {
			t.Error(err)
		}
		none(t)
	})
	return vols
}

// none: no mapping and no mount is left.
func none(t *testing.T) {
	t.Helper()
	var left []string
	var err error
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) { // the kernel removes a node after its mapping
		if left, err = filepath.Glob("/sys/block/dm-*"); len(left) == 0 {
			break
		}
	}
	if err != nil || len(left) > 0 {
		t.Errorf("mappings left: %v, %v", left, err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || bytes.Contains(mounts, []byte("/mnt/")) {
		t.Errorf("mounts left: %v\n%s", err, mounts)
	}
}

// refused opens what must not open, soon.
func refused(t *testing.T, o Options, code hpl.Code, specs ...Spec) *hpl.Error {
	t.Helper()
	start := time.Now()
	vols, err := OpenAll(t.Context(), specs, o)
	if err == nil {
		t.Fatalf("opened: %+v", vols[0])
	}
	e := hpl.From(err)
	if e.Code != code {
		t.Errorf("got %v, want %s", err, code)
	}
	if o.Wait > time.Minute && time.Since(start) > time.Minute {
		t.Errorf("took %v: waited for a disk that is there", time.Since(start))
	}
	none(t)
	t.Logf("%v", err)
	return e
}

// patient waits longer than any of these tests may take: a refusal must come
// at once.
func patient(t *testing.T) Options {
	o := options(t)
	o.Wait = time.Hour
	return o
}

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

// others are all disks but those with the given serials.
func others(t *testing.T, keep ...string) []string {
	t.Helper()
	all, err := scan(nil)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, d := range all {
		if !slices.Contains(keep, d.serial) {
			names = append(names, d.name)
		}
	}
	return names
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

// TestGrown: the host has made the disks larger, and so are the volumes.
func TestGrown(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(kind, func(t *testing.T) {
			for boot, grown := range []bool{true, false} {
				t.Run(fmt.Sprint("boot ", boot+1), func(t *testing.T) {
					v := open(t, patient(t), spec("fs-"+kind, guestPass))[0]
					if v.Created || v.Grown != grown {
						t.Errorf("%+v", v)
					}
					if b, err := os.ReadFile(v.Mount + "/file"); err != nil || string(b) != "kept" {
						t.Errorf("%q, %v", b, err)
					}
					var st unix.Statfs_t
					if err := unix.Statfs(v.Mount, &st); err != nil {
						t.Fatal(err)
					}
					if size := int64(st.Blocks) * int64(st.Bsize); size < grownRoom {
						t.Errorf("%d MiB", size>>20)
					}
				})
			}
		})
	}
}

// TestDamaged: what e2fsck mends by itself, it mends; everything else is for
// the owner, and vm_test.go finds the volumes' data as it was.
func TestDamaged(t *testing.T) {
	t.Run("ext4, a wrong link count", func(t *testing.T) {
		v := open(t, patient(t), spec("fs-ext4", guestPass))[0]
		if b, err := os.ReadFile(v.Mount + "/file"); err != nil || string(b) != "kept" {
			t.Errorf("%q, %v", b, err)
		}
		var st unix.Stat_t
		if err := unix.Stat(v.Mount+"/file", &st); err != nil || st.Nlink != 1 {
			t.Errorf("%d links, %v", st.Nlink, err)
		}
	})
	for name, serial := range map[string]string{
		"ext4, no root folder":       "no-root",
		"xfs, its superblock":        "fs-xfs",
		"btrfs, its superblock":      "fs-btrfs",
		"a whole disk that was cut":  "stock-whole",
		"no file system, only zeros": "no-fs",
	} {
		t.Run(name, func(t *testing.T) { refused(t, patient(t), "HPL02007E", spec(serial, guestPass)) })
	}
}

// TestIntegrity: a volume with a tag for each sector. Where the host changes a
// sector the guest gets an error, never another content.
func TestIntegrity(t *testing.T) {
	s := spec("whole", guestPass)
	s.Integrity = true
	content := bytes.Repeat([]byte("what the owner wrote "), 50_000)
	t.Run("made", func(t *testing.T) {
		v := open(t, options(t), s)[0]
		if !v.Created || !v.Integrity || len(v.Lower) != 2 || !strings.HasPrefix(v.Table.Params, "capi:authenc(hmac(sha256),xts(aes))-plain64 :96:logon:hpcr:") {
			t.Errorf("%+v", v)
		}
		// Whatever a tool may read of a fresh file system can be read.
		if err := runTool(t.Context(), time.Minute, "e2fsck", "-fn", v.Device); err != nil {
			t.Error(err)
		}
		if err := os.WriteFile(v.Mount+"/file", content, 0o644); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("opened", func(t *testing.T) {
		v := open(t, options(t), s)[0]
		if got, err := os.ReadFile(v.Mount + "/file"); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		if err := v.Check(); err != nil {
			t.Error(err)
		}
		without := spec("whole", guestPass)
		if _, err := OpenAll(t.Context(), []Spec{without}, patient(t)); hpl.From(err).Code != "HPL02003E" {
			t.Errorf("a volume with integrity that the contract does not speak of: %v", err)
		}
		plain := spec("data", guestPass)
		plain.Integrity = true
		if _, err := OpenAll(t.Context(), []Spec{plain}, patient(t)); hpl.From(err).Code != "HPL02003E" {
			t.Errorf("a volume without integrity where the contract wants it: %v", err)
		}
	})
	t.Run("changed by the host", func(t *testing.T) {
		v := open(t, options(t), s)[0]
		disk, err := os.OpenFile("/dev/"+v.Header.Disk, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer disk.Close()
		start := v.Header.Start + mib + 4096 // behind the integrity's superblock
		changed := 0
		forEach := func(do func(at int64, b []byte)) {
			if err := forget(disk, start, vmDisk-start); err != nil {
				t.Fatal(err)
			}
			for at := start; at+mib <= vmDisk; at += mib {
				b := make([]byte, mib)
				if _, err := disk.ReadAt(b, at); err != nil {
					t.Fatal(err)
				}
				do(at, b)
			}
		}
		before := map[int64][]byte{}
		forEach(func(at int64, b []byte) { before[at] = b })
		if err := os.WriteFile(v.Mount+"/victim", content, 0o644); err != nil {
			t.Fatal(err)
		}
		for range 3 { // through the file system, its journal and the integrity's journal
			unix.Sync()
			time.Sleep(time.Second)
		}
		forEach(func(at int64, b []byte) {
			for i := 0; i < len(b); i += 4096 {
				if !bytes.Equal(b[i:i+4096], before[at][i:i+4096]) {
					changed++
					b[i+100] ^= 1
					if _, err := disk.WriteAt(b[i:i+4096], at+int64(i)); err != nil {
						t.Fatal(err)
					}
				}
			}
		})
		if err := disk.Sync(); err != nil {
			t.Fatal(err)
		}
		if changed < len(content)/4096/2 { // the rest may lie before start
			t.Fatalf("only %d changed blocks were found", changed)
		}
		if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(v.Mount + "/victim")
		if err == nil {
			t.Errorf("%d bytes were read of changed sectors, the same as written: %v", len(got), bytes.Equal(got, content))
		} else if !bytes.HasPrefix(content, got) {
			t.Error("wrong data was read")
		}
	})
}

// vmDisk is the size of the disk of TestIntegrity, wholeSize of vm_test.go.
const vmDisk = 160 << 20

// TestHeaderChanged: the host writes to the header of an open volume. The check
// says so, whatever the kernel remembers of the disk.
func TestHeaderChanged(t *testing.T) {
	v := open(t, patient(t), spec("data", guestPass))[0]
	f, err := os.OpenFile("/dev/"+v.Header.Disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, v.Header.Start+600); err != nil { // in the binary header's padding
		t.Fatal(err)
	}
	for _, flip := range []byte{1, 0} {
		if _, err := f.WriteAt([]byte{b[0] ^ flip}, v.Header.Start+600); err != nil {
			t.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		if err := v.Check(); (err != nil) != (flip == 1) {
			t.Errorf("flipped by %d: %v", flip, err)
		}
	}
}

// TestForeign: volumes that cryptsetup made open, and keep their data.
func TestForeign(t *testing.T) {
	for _, name := range []string{"stock-argon", "stock-pbkdf", "stock-luks1", "stock-part"} {
		t.Run(name, func(t *testing.T) {
			v := open(t, patient(t), spec(name, strings.Repeat("0", 64), guestPass))[0]
			if v.Created || v.Kind != ForeignLUKS {
				t.Errorf("%+v", v)
			}
			if b, err := os.ReadFile(v.Mount + "/file"); err != nil || string(b) != "from the host" {
				t.Errorf("%q, %v", b, err)
			}
			_, _, params, err := liveTable(v.Table.Mapping)
			if err != nil || !strings.HasPrefix(string(params), "aes-xts-plain64 :64:logon:hpcr:") {
				t.Errorf("live table: %q %v", params, err)
			}
		})
	}
}

// TestRoll: previous seeds open and are replaced, in ours and in cryptsetup's
// volumes; the next boot needs them no more, and they open no more.
func TestRoll(t *testing.T) {
	to := rolledPass
	for _, name := range []string{"fs-ext4", "stock-argon", "stock-part"} {
		t.Run(name, func(t *testing.T) {
			s := spec(name, to)
			s.Previous = []*secret.Secret{secret.FromString(strings.Repeat("d", 64)), secret.FromString(guestPass)}
			for boot, rolled := range []bool{true, false} {
				t.Run(fmt.Sprint("boot ", boot+1), func(t *testing.T) {
					if v := open(t, patient(t), s)[0]; v.Rolled != rolled || v.Created {
						t.Errorf("%+v", v)
					} else if _, err := os.Stat(v.Mount + "/file"); err != nil {
						t.Error(err)
					}
				})
			}
			refused(t, patient(t), "HPL02003E", spec(name, guestPass))
			s.Passphrases[0] = secret.FromString(strings.Repeat("e", 64))
			s.Previous = s.Previous[:1]
			refused(t, patient(t), "HPL02125E", s)
		})
	}
}

// TestRefused: the host changed or swapped a disk. Each is refused with its
// code, at once, and vm_test.go finds every byte of it as it was.
func TestRefused(t *testing.T) {
	short := spec("short", guestPass)
	short.MayCreate = false
	there := func(name string) Spec { s := spec(name, guestPass); s.Existing = true; return s }
	floored := spec("short", guestPass)
	floored.MinGeneration = 1
	newer := spec("kept", guestPass)
	newer.MinGeneration = 3
	newerStock := spec("stock-argon", guestPass)
	newerStock.MinGeneration = 1
	tests := map[string]struct {
		code hpl.Code
		spec Spec
	}{
		"wrong seed":                               {"HPL02003E", spec("kept", strings.Repeat("0", 64))},
		"wrong seed on a stock volume":             {"HPL02003E", spec("stock-argon", strings.Repeat("0", 64))},
		"a new volume with seeds of the old style": {"HPL02002E", short},
		"an empty disk for a volume that exists":   {"HPL02003E", there("short")},
		"an empty disk where a floor is given":     {"HPL02003E", floored},
		"a header older than the contract's floor": {"HPL02003E", newer},
		"a foreign volume where a floor is given":  {"HPL02003E", newerStock},
		"the disk is smaller than it was":          {"HPL02003E", spec("shrunk", guestPass)},
		"two disks with one serial":                {"HPL02121E", spec("twin", guestPass)},
		"a disk too small":                         {"HPL07003E", spec("small", guestPass)},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) { refused(t, patient(t), tt.code, tt.spec) })
	}
	t.Run("no disk", func(t *testing.T) {
		o := options(t)
		o.Exclude = others(t)
		refused(t, o, "HPL02122E", spec("missing", guestPass))
	})
	t.Run("no disk, and the time for all of the volumes is over", func(t *testing.T) {
		o := patient(t)
		o.Exclude = others(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := OpenAll(ctx, []Spec{spec("missing", guestPass)}, o); hpl.From(err).Code != "HPL02122E" {
			t.Errorf("got %v", err)
		}
		none(t)
	})
	t.Run("one unclaimed LUKS disk that does not open is not a missing disk", func(t *testing.T) {
		o := patient(t)
		o.Exclude = others(t, "kept")
		refused(t, o, "HPL02003E", spec("missing", strings.Repeat("0", 64)))
	})
	t.Run("wrong seed beside an empty disk does not format it", func(t *testing.T) {
		o := patient(t)
		o.Exclude = others(t, "kept", "short")
		refused(t, o, "HPL02003E", spec("missing", strings.Repeat("0", 64)))
	})
	t.Run("LUKS1 is left to cryptsetup", func(t *testing.T) {
		s := spec("stock-luks1", rolledPass)
		s.Previous = []*secret.Secret{secret.FromString(guestPass)}
		refused(t, patient(t), "HPL02125E", s)
	})
	t.Run("new seeds of the old style do not become a key slot", func(t *testing.T) {
		s := spec("stock-pbkdf", rolledPass)
		s.Previous, s.MayCreate = []*secret.Secret{secret.FromString(guestPass)}, false
		refused(t, patient(t), "HPL02125E", s)
	})
	t.Run("a mount path of the guest's own", func(t *testing.T) {
		s := spec("short", guestPass)
		s.Mount = "/etc"
		refused(t, patient(t), "HPL02007E", s)
	})
	t.Run("a disk too small for its file system", func(t *testing.T) {
		s := spec("short", guestPass)
		s.Filesystem = "xfs"
		refused(t, patient(t), "HPL07003E", s)
	})
	t.Run("an empty disk without a name for a volume that exists", func(t *testing.T) {
		o := patient(t)
		o.Exclude = others(t, "short")
		refused(t, o, "HPL02003E", there("missing"))
	})
}

// TestSecondBoot: after the host opened the disk with cryptsetup.
func TestSecondBoot(t *testing.T) {
	v := open(t, patient(t), spec("data", guestPass))[0]
	if v.Created || v.Generation != 2 {
		t.Errorf("%+v", v)
	}
	if b, err := os.ReadFile("/mnt/data/file"); err != nil || string(b) != "kept" {
		t.Errorf("%q, %v", b, err)
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
