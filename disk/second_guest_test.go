//go:build guest

package disk

// The second boot of TestInGuests: volumes of ours and of others are opened, grow
// and roll.

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hpcr/agent/hpl"
	"hpcr/agent/secret"
)

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
