//go:build guest

package disk

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"hpcr/agent/secret"
)

// grownRoom is what a file system that has grown with its disk has at least.
const grownRoom = 460 << 20

// keep writes a file, makes it durable and only then writes its name to the
// disk in the clear: the host, which logs the writes, finds there from when on
// the file must be there.
func keep(t *testing.T, v *Volume, name string) {
	t.Helper()
	f, err := os.Create(v.Mount + "/" + name)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write(keptContent(name))
	dir, derr := os.Open(v.Mount)
	if err = errors.Join(err, f.Sync(), f.Close(), derr); err != nil {
		t.Fatal(err)
	}
	disk, err := os.OpenFile("/dev/"+v.Header.Disk, os.O_RDWR, 0)
	if err = errors.Join(dir.Sync(), dir.Close(), err); err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 4096)
	copy(block, name)
	_, err = disk.WriteAt(block, keptMark)
	if err = errors.Join(err, disk.Sync(), disk.Close()); err != nil {
		t.Fatal(err)
	}
}

// recorded is the volume of a disk whose serial is its kind, its own seeds
// being the last. An ext4 volume is rolled.
func recorded(kind string) Spec {
	s := spec("rec-"+kind, guestPass)
	if s.Integrity = kind == "integrity"; !s.Integrity {
		s.Filesystem = kind
	}
	return s
}

func rolled(s Spec) Spec {
	s.Previous, s.Passphrases = s.Passphrases, []*secret.Secret{secret.FromString(rolledPass)}
	return s
}

// eachDisk runs do for each disk by itself: the others are not looked at.
func eachDisk(t *testing.T, do func(t *testing.T, serial string, o Options)) {
	t.Helper()
	all, err := scan(nil)
	if err != nil || len(all) == 0 {
		t.Fatal(all, err)
	}
	for _, d := range all {
		t.Run(d.serial, func(t *testing.T) {
			o := patient(t)
			o.Exclude = others(t, d.serial)
			do(t, d.serial, o)
		})
	}
}

// TestRecordMaking makes volumes while the host logs each write.
func TestRecordMaking(t *testing.T) {
	eachDisk(t, func(t *testing.T, kind string, o Options) {
		keep(t, open(t, o, recorded(kind))[0], "kept")
	})
}

// TestRecordGrowing: they grow with their disks, and one is rolled. One with
// integrity does not, and its owner is told.
func TestRecordGrowing(t *testing.T) {
	eachDisk(t, func(t *testing.T, kind string, o Options) {
		if kind == "integrity" {
			var said bytes.Buffer
			o.Log = slog.New(slog.NewTextHandler(io.MultiWriter(os.Stdout, &said), nil))
			v := open(t, o, recorded(kind))[0]
			if v.Grown || v.Created || !strings.Contains(said.String(), "keeps the size that it was made with") {
				t.Errorf("%+v\n%s", v, &said)
			}
			if b, err := os.ReadFile(v.Mount + "/kept"); err != nil || !bytes.Equal(b, keptContent("kept")) {
				t.Errorf("%d bytes, %v", len(b), err)
			}
			return
		}
		t.Run("grow", func(t *testing.T) {
			v := open(t, o, recorded(kind))[0]
			if !v.Grown {
				t.Errorf("%+v", v)
			}
			keep(t, v, "grown")
		})
		if kind == "ext4" {
			t.Run("roll", func(t *testing.T) {
				v := open(t, o, rolled(recorded(kind)))[0]
				if !v.Rolled {
					t.Errorf("%+v", v)
				}
				keep(t, v, "rolled")
			})
		}
	})
}

// TestCut: wherever the host cut power, the next boot has the volume and what
// was durable before. cuts_vm_test.go makes the disks; their serials say what
// must be: "NUMBER-KIND-WHAT".
func TestCut(t *testing.T) {
	eachDisk(t, func(t *testing.T, serial string, o Options) {
		parts := strings.Split(serial, "-")
		kind, what := parts[1], parts[2]
		s := recorded(kind)
		if kind == "ext4" { // each is rolled at its next boot, or was
			s = rolled(s)
		}
		var said bytes.Buffer
		o.Log = slog.New(slog.NewTextHandler(io.MultiWriter(os.Stdout, &said), nil))
		v := open(t, o, s)[0]
		made := strings.Contains(what, cutMade)
		if v.Created != made || strings.Contains(said.String(), "everything on this disk is lost") != made {
			t.Errorf("created: %v, want %v", v.Created, made)
		}
		for name, mark := range cutNames {
			if b, err := os.ReadFile(v.Mount + "/" + name); strings.Contains(what, mark) && !bytes.Equal(b, keptContent(name)) {
				t.Errorf("%s: %d bytes, %v", name, len(b), err)
			}
		}
		var st unix.Statfs_t
		if err := unix.Statfs(v.Mount, &st); err != nil {
			t.Fatal(err)
		}
		if size := int64(st.Blocks) * int64(st.Bsize); strings.Contains(what, cutGrows) && size < grownRoom {
			t.Errorf("%d MiB", size>>20)
		}
		keep(t, v, "after")
	})
}
