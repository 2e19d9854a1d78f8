package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// ram is a sparse disk in memory.
type ram struct{ b []byte }

func (r ram) ReadAt(p []byte, at int64) (int, error)  { return bytes.NewReader(r.b).ReadAt(p, at) }
func (r ram) WriteAt(p []byte, at int64) (int, error) { return copy(r.b[at:], p), nil }

func partitioned(t testing.TB, size, block int64) ram {
	t.Helper()
	parts, err := layout(size)
	if err != nil {
		t.Fatal(err)
	}
	r := ram{make([]byte, size)}
	if err := writeGPT(r, size, block, parts); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestLayout(t *testing.T) {
	for _, size := range []int64{minDiskSize, minDiskSize + 512, 1 << 30, 1<<40 + 4096} {
		parts, err := layout(size)
		if err != nil {
			t.Fatal(err)
		}
		data := parts[1]
		if parts[0].start != mib || parts[0].size != 100*mib || data.start != 101*mib || data.start%mib != 0 || data.size%mib != 0 ||
			data.start+data.size > size-34*512 || size-data.start-data.size >= 3*mib {
			t.Errorf("%d: %+v", size, parts)
		}
	}
	if _, err := layout(minDiskSize - 1); err == nil {
		t.Error("too small, accepted")
	}
}

// TestGPT lets sgdisk and sfdisk judge the table.
func TestGPT(t *testing.T) {
	const size = minDiskSize + 5*mib
	r := partitioned(t, size, 512)
	parts, err := partsOf(r, size, 512)
	if err != nil || len(parts) != 2 || parts[1].start != 101*mib || parts[0].kind != typeLinux || parts[1].kind != typeLUKS {
		t.Fatalf("%+v, %v", parts, err)
	}
	img := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(img, r.b, 0o600); err != nil {
		t.Fatal(err)
	}
	if out := run(t, "sgdisk", "--verify", img); !strings.Contains(out, "No problems found") {
		t.Errorf("sgdisk: %s", out)
	}
	if out := run(t, "sfdisk", "--verify", img); !strings.Contains(out, "No errors detected") {
		t.Errorf("sfdisk: %s", out)
	}
	out := run(t, "sfdisk", "--dump", img)
	for _, want := range []string{
		"label: gpt", "start=        2048, size=      204800, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4", `name="metadata"`,
		"start=      206848, size=", "type=CA7D7CCB-63ED-4C53-861C-1742536059CC", `name="data"`,
	} {
		if !strings.Contains(out, want) {
			t.Errorf("sfdisk does not show %q:\n%s", want, out)
		}
	}
}

func TestGPT4K(t *testing.T) {
	const size = minDiskSize + 5*mib
	r := partitioned(t, size, 4096)
	parts, err := partsOf(r, size, 4096)
	if err != nil || len(parts) != 2 || parts[1].start != 101*mib {
		t.Fatalf("%+v, %v", parts, err)
	}
	if _, err := readGPT(r, size, 512); !errors.Is(err, errNoGPT) {
		t.Errorf("read with the wrong block size: %v", err)
	}
}

// TestGPTOfSgdisk reads tables that another tool made.
func TestGPTOfSgdisk(t *testing.T) {
	const size = 64 * mib
	for name, tt := range map[string]struct {
		args []string
		want int
	}{
		"none":  {[]string{"-o"}, 0},
		"one":   {[]string{"-n", "1:2048:0"}, 1},
		"two":   {[]string{"-n", "1:2048:+10M", "-n", "2:0:0"}, 2},
		"three": {[]string{"-n", "1:2048:+10M", "-n", "2:0:+10M", "-n", "3:0:0"}, 3},

		"one, in a short table":    {[]string{"-S", "4", "-n", "1:2048:0"}, 1},
		"three, in a longer table": {[]string{"-S", "1024", "-n", "1:2048:+10M", "-n", "200:0:+10M", "-n", "1000:0:0"}, 3},
		"two, beside an MBR":       {[]string{"-n", "1:2048:+10M", "-n", "2:0:0", "-h", "1:2"}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			img := filepath.Join(t.TempDir(), "disk")
			if err := os.WriteFile(img, make([]byte, size), 0o600); err != nil {
				t.Fatal(err)
			}
			run(t, "sgdisk", append(tt.args, img)...)
			b, err := os.ReadFile(img)
			if err != nil {
				t.Fatal(err)
			}
			if parts, err := partsOf(ram{b}, size, 512); err != nil || len(parts) != tt.want {
				t.Errorf("%+v, %v", parts, err)
			}
			c, err := Probe(ram{b}, size, 512)
			if err != nil || c.Kind != Foreign || c.Partitions != tt.want || c.Reason == nil {
				t.Errorf("%+v, %v", c, err)
			}
		})
	}
}

func FuzzGPT(f *testing.F) {
	r := partitioned(f, minDiskSize, 512)
	f.Add(r.b[:34*512])
	f.Add(make([]byte, 34*512))
	small := partitioned(f, minDiskSize, 512)
	for _, blocks := range [][3]uint64{ // of the second partition, and of the backup: at the end of a disk that was smaller, or of this one
		{2048, 4096, 120_000}, {2048, 4096, 131_071}, {2048, 131_038, 120_000}, {42, 100_000, 120_000},
	} {
		b := bytes.Clone(small.b[:34*512])
		le := binary.LittleEndian
		le.PutUint64(b[512+32:], blocks[2])
		le.PutUint64(b[1024+32:], 40)
		le.PutUint64(b[1024+40:], 41)
		le.PutUint64(b[1024+128+32:], blocks[0])
		le.PutUint64(b[1024+128+40:], blocks[1])
		f.Add(b)
	}
	short := bytes.Clone(r.b[:34*512])
	binary.LittleEndian.PutUint32(short[512+80:], 4)
	f.Add(short)
	// Property: no panic; partitions lie inside the disk and do not overlap.
	f.Fuzz(func(t *testing.T, head []byte) {
		const size = 64 * mib
		b := make([]byte, 256<<10)
		copy(b, head)
		if place := binary.LittleEndian.Uint64(b[512+72:]); place < 90 { // checksums keep no host out
			table := min(uint64(binary.LittleEndian.Uint32(b[512+80:])), gptMostEntries) * gptEntrySize
			binary.LittleEndian.PutUint32(b[512+88:], crc32.ChecksumIEEE(b[place*512:place*512+table]))
			clear(b[512+16 : 512+20])
			binary.LittleEndian.PutUint32(b[512+16:], crc32.ChecksumIEEE(b[512:512+gptHeader]))
		}
		g, err := readGPT(ram{b}, size, 512)
		if err != nil {
			if g != nil {
				t.Fatal("a table with an error")
			}
			return
		}
		parts := g.parts
		defer func() { // growing never writes outside of the two places, and shrinks nothing
			if len(parts) == 0 || !g.writable(size, 512) {
				return
			}
			before := slices.Clone(parts)
			backup := binary.LittleEndian.Uint64(g.header[32:])
			if g.grow(len(parts)-1, size, 512) && backup >= size/512-1 {
				t.Fatalf("grown on a disk that did not: its backup stands in block %d", backup)
			}
			for i, p := range g.parts {
				if p.start != before[i].start || p.size < before[i].size {
					t.Fatalf("%+v became %+v", before[i], p)
				}
			}
			w := &recorder{}
			if err := g.write(w, size, 512, b[:512]); err != nil {
				t.Fatal(err)
			}
			for _, span := range w.spans {
				if span[1] > 34*512 && span[0] < size-33*512 || span[1] > size {
					t.Fatalf("written: %v", span)
				}
				for _, p := range g.parts {
					if span[0] < p.start+p.size && p.start < span[1] {
						t.Fatalf("written: %v, over %+v", span, p)
					}
				}
			}
		}()
		for i, p := range parts {
			if p.start < 512 || p.size < 512 || p.start+p.size > size {
				t.Fatalf("outside: %+v", p)
			}
			for _, q := range parts[:i] {
				if p.start < q.start+q.size && q.start < p.start+p.size {
					t.Fatalf("overlap: %+v %+v", p, q)
				}
			}
		}
	})
}

// recorder takes writes and keeps where they went.
type recorder struct{ spans [][2]int64 }

func (r *recorder) Sync() error { return nil }
func (r *recorder) WriteAt(b []byte, at int64) (int, error) {
	r.spans = append(r.spans, [2]int64{at, at + int64(len(b))})
	return len(b), nil
}

func partsOf(r io.ReaderAt, size, block int64) ([]partition, error) {
	g, err := readGPT(r, size, block)
	if err != nil {
		return nil, err
	}
	return g.parts, nil
}

// run calls a program of the host that judges or makes what we read.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Fatalf("%s is missing: make deps", name)
	}
	out, err := exec.Command("timeout", append([]string{"-s", "KILL", "60", name}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return string(out)
}
