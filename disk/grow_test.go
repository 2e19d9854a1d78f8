package disk

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// layered is a disk with writes on top, to be replayed up to any of them.
type layered struct {
	base []byte // what it began with, zeros behind it
	log  []written
}

type written struct {
	at int64
	b  []byte
}

func (l *layered) Sync() error { return nil }
func (l *layered) WriteAt(p []byte, at int64) (int, error) {
	l.log = append(l.log, written{at, bytes.Clone(p)})
	return len(p), nil
}

func (l *layered) ReadAt(p []byte, at int64) (int, error) {
	clear(p)
	if at < int64(len(l.base)) {
		copy(p, l.base[at:])
	}
	for _, w := range l.log {
		from, to := max(at, w.at), min(at+int64(len(p)), w.at+int64(len(w.b)))
		if from < to {
			copy(p[from-at:to-at], w.b[from-w.at:to-w.at])
		}
	}
	return len(p), nil
}

// A disk that has grown gets its table extended. Power may be cut in every
// write, after each of its sectors: the table that is left, with the backup's
// help, has the volume where it was, and sgdisk can read it as well.
func TestGrowPowerCuts(t *testing.T) {
	const before, size = minDiskSize + 5*mib, minDiskSize + 40*mib
	for name, block := range map[string]int64{"blocks of 512": 512, "blocks of 4096": 4096} {
		t.Run(name, func(t *testing.T) {
			small := partitioned(t, before, block)
			old, err := partsOf(small, before, block)
			if err != nil {
				t.Fatal(err)
			}
			extend := func(l *layered) bool {
				g, err := readGPT(l, size, block)
				if err != nil || !g.writable(size, block) {
					t.Fatalf("%+v, %v", g, err)
				}
				if !g.grow(1, size, block) && !g.mended {
					return false
				}
				mbr := make([]byte, block)
				if _, err := l.ReadAt(mbr, 0); err != nil {
					t.Fatal(err)
				}
				if err := g.write(l, size, block, mbr); err != nil {
					t.Fatal(err)
				}
				return true
			}
			done := &layered{base: small.b}
			if !extend(done) {
				t.Fatal("nothing to grow")
			}
			want := (size-tailSize)/mib*mib - old[1].start
			judge := func(what string, l *layered, sgdisk bool) {
				t.Helper()
				if parts, err := partsOf(l, size, block); err != nil || parts[0] != old[0] || parts[1].start != old[1].start || parts[1].size != want {
					t.Errorf("%s: %+v, %v", what, parts, err)
				}
				if block != 512 || !sgdisk {
					return
				}
				img := filepath.Join(t.TempDir(), "disk")
				whole := make([]byte, size)
				if _, err := l.ReadAt(whole, 0); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(img, whole, 0o600); err != nil {
					t.Fatal(err)
				}
				if out := run(t, "sgdisk", "--verify", img); !strings.Contains(out, "No problems found") {
					t.Errorf("%s: sgdisk: %s", what, out)
				}
			}
			judge("after growing", done, true)
			if n := len(done.log); extend(done) || len(done.log) != n {
				t.Error("it grows a second time")
			}
			cuts := 0
			for i, w := range done.log {
				for keep := range len(w.b) / 512 {
					l := &layered{base: small.b, log: append(done.log[:i:i], written{w.at, w.b[:keep*512]})}
					parts, err := partsOf(l, size, block)
					if err != nil || parts[1].start != old[1].start || parts[1].size != old[1].size && parts[1].size != want {
						t.Fatalf("write %d, %d sectors: %+v, %v", i, keep, parts, err)
					}
					extend(l)
					judge("after a cut and the next boot", l, keep == 1)
					cuts++
				}
			}
			t.Logf("%d power cuts", cuts)
		})
	}
}

// Tables that are not laid out like ours, and disks that shrank, are left alone.
func TestGrowLeavesAlone(t *testing.T) {
	const size = minDiskSize + 5*mib
	img := func(args ...string) ram {
		f := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(f, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		run(t, "sgdisk", append(args, f)...)
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		return ram{append(b, make([]byte, 64*mib)...)}
	}
	for name, args := range map[string][]string{
		"the volume is not the last": {"-n", "1:64M:+10M", "-n", "2:1M:+50M"},
		"a table that begins later":  {"-j", "64", "-n", "1:1M:+10M", "-n", "2:0:+50M"},
		"another one behind it":      {"-n", "1:1M:+10M", "-n", "2:0:+50M", "-n", "3:0:+10M"},
	} {
		t.Run(name, func(t *testing.T) {
			r := img(args...)
			g, err := readGPT(r, int64(len(r.b)), 512)
			if err == nil && g.writable(int64(len(r.b)), 512) && g.grow(1, int64(len(r.b)), 512) {
				t.Error("it is grown")
			}
		})
	}
	r := img("-n", "1:1M:+10M", "-n", "2:0:+50M")
	for added, want := range map[int64]bool{0: false, 512: true, 64 * mib: true} { // what sgdisk left free counts once the disk grows
		g, err := readGPT(r, size+added, 512)
		if err != nil || g.grow(1, size+added, 512) != want {
			t.Errorf("%d bytes more behind free room: %+v, %v", added, g, err)
		}
	}
	// A table whose disk shrank is not one of ours to work on, wherever it was cut.
	for _, less := range []int64{512, mib, 20 * mib, 60 * mib} {
		if c, err := Probe(r, size-less, 512); err != nil || c.Kind != Foreign || c.Reason != errShrunk {
			t.Errorf("a disk that lost %d bytes: %+v, %v", less, c, err)
		}
	}
}
