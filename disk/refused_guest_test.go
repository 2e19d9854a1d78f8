//go:build guest

package disk

// The boots of TestInGuests with disks that are damaged or a hostile host's.

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hpcr/agent/hpl"
	"hpcr/agent/secret"
)

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
