package disk

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"hpcr/agent/secret"
	"hpcr/disk/luks2"
)

const probeSize = minDiskSize + 64*mib

// TestProbeBlank: one byte anywhere that something known would use, and the
// disk is not blank.
func TestProbeBlank(t *testing.T) {
	r := ram{make([]byte, probeSize)}
	if c, err := Probe(r, probeSize, 512); err != nil || c.Kind != Blank || !c.Creatable() || c.Openable() {
		t.Fatalf("%+v, %v", c, err)
	}
	for name, at := range map[string]int64{
		"first byte":              0,
		"GPT header":              512,
		"ext superblock":          1080,
		"LUKS2 secondary":         16384,
		"ISO descriptor":          32769,
		"btrfs":                   65600,
		"LUKS2 secondary, 4 MiB":  4 << 20,
		"ext backup, 1 KiB":       8193*1024 + 56,
		"ext backup, 2 KiB":       16384*2048 + 56,
		"ext backup, 4 KiB":       32768*4096 + 56,
		"btrfs mirror":            64<<20 + 64,
		"last block":              probeSize - 1,
		"RAID superblock":         probeSize - 8192,
		"ZFS label at the end":    probeSize - 256<<10,
		"backup partition tables": probeSize - 33*512,
		"Promise RAID":            probeSize - 3087*512,
	} {
		t.Run(name, func(t *testing.T) {
			r.b[at] = 'x'
			defer func() { r.b[at] = 0 }()
			if c, err := Probe(r, probeSize, 512); err != nil || c.Kind != Foreign || c.Creatable() || c.Openable() {
				t.Errorf("%+v, %v", c, err)
			}
		})
	}
}

// TestProbeOthers asks the tools of other makes for disks that must never be
// formatted.
func TestProbeOthers(t *testing.T) {
	for name, make := range map[string][]string{
		"ext4":  {"mke2fs", "-q", "-F", "-t", "ext4"},
		"ext2":  {"mke2fs", "-q", "-F", "-t", "ext2", "-b", "1024"},
		"FAT":   {"mkfs.vfat"},
		"swap":  {"mkswap", "-q"},
		"MBR":   {"sfdisk", "-q", "--label", "dos"},
		"empty": nil,
	} {
		t.Run(name, func(t *testing.T) {
			img := filepath.Join(t.TempDir(), "disk")
			f, err := os.Create(img)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := f.Truncate(probeSize); err != nil {
				t.Fatal(err)
			}
			want := Blank
			if make != nil {
				want = Foreign
				if name == "MBR" {
					run(t, "sh", "-c", "printf '2048,20480\n' | sfdisk -q --label dos "+img)
				} else {
					run(t, make[0], append(make[1:], img)...)
				}
			}
			c, err := Probe(f, probeSize, 512)
			if err != nil || c.Kind != want {
				t.Errorf("%+v, %v", c, err)
			}
			if name == "MBR" && (c.Partitions != 1 || c.Layout != Partitioned) {
				t.Errorf("%+v", c)
			}
		})
	}
}

// TestProbeOurs: from the mark to the volume, in partitions and without.
func TestProbeOurs(t *testing.T) {
	parts, err := layout(probeSize)
	if err != nil {
		t.Fatal(err)
	}
	r := ram{make([]byte, probeSize)}
	expect := func(when string, kind Kind, creatable, openable bool) {
		t.Helper()
		c, err := Probe(r, probeSize, 512)
		if err != nil || c.Kind != kind || c.Creatable() != creatable || c.Openable() != openable || c.Layout != Partitioned ||
			c.Start != parts[1].start || c.Size != parts[1].size {
			t.Errorf("%s: %+v, %v", when, c, err)
		}
	}
	dev := window{r, parts[1].start}
	if err := luks2.Mark(dev); err != nil {
		t.Fatal(err)
	}
	expect("marked", Interrupted, true, false)
	if err := writeGPT(r, probeSize, 512, parts); err != nil {
		t.Fatal(err)
	}
	expect("marked, with tables", Interrupted, true, false)
	r.b[600] ^= 1
	expect("marked, table torn", Interrupted, true, false)
	r.b[600] ^= 1
	o, err := luks2.Format(dev, parts[1].size, luks2.FormatOptions{Passphrase: secret.FromString("p"), Name: "data", KDF: luks2.KDF{MemoryKiB: 32 << 10, Time: 4, Parallel: 1}})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Key.Wipe()
	expect("formatted", Ours, false, true)
	primary := bytes.Clone(r.b[dataStart : dataStart+16384])
	clear(r.b[dataStart : dataStart+16384])
	expect("secondary alone", Interrupted, false, true)
	copy(r.b[dataStart:], primary)

	whole := ram{r.b[dataStart:]}
	if c, err := Probe(whole, parts[1].size, 512); err != nil || c.Kind != Ours || c.Layout != WholeDisk || c.Start != 0 {
		t.Errorf("whole disk: %+v, %v", c, err)
	}
	clear(r.b[dataStart : dataStart+2<<20])
	if c, err := Probe(r, probeSize, 512); err != nil || c.Kind != Foreign || c.Creatable() {
		t.Errorf("a volume that the host blanked inside its tables: %+v, %v", c, err)
	}
}

type window struct {
	ram
	start int64
}

func (w window) ReadAt(p []byte, at int64) (int, error)  { return w.ram.ReadAt(p, w.start+at) }
func (w window) WriteAt(p []byte, at int64) (int, error) { return w.ram.WriteAt(p, w.start+at) }

// failing is a disk that cannot be read from one place on.
type failing struct {
	ram
	from int64
}

var errIO = errors.New("input/output error")

func (f failing) ReadAt(p []byte, at int64) (int, error) {
	if at+int64(len(p)) > f.from {
		return 0, errIO
	}
	return f.ram.ReadAt(p, at)
}

// TestProbeErrors: what cannot be read is never blank.
func TestProbeErrors(t *testing.T) {
	r := ram{make([]byte, probeSize)}
	for _, from := range []int64{0, 512, 16384, dataStart, 8 * mib, probeSize - 10} {
		if c, err := Probe(failing{r, from}, probeSize, 512); !errors.Is(err, errIO) || c.Kind != "" {
			t.Errorf("from %d: %+v, %v", from, c, err)
		}
	}
	for _, bad := range []struct{ size, block int64 }{{0, 512}, {mib, 512}, {probeSize, 520}, {probeSize, 0}, {probeSize + 1, 512}} {
		if c, err := Probe(r, bad.size, bad.block); err != nil || c.Kind != Foreign {
			t.Errorf("%+v: %+v, %v", bad, c, err)
		}
	}
}

func FuzzProbe(f *testing.F) {
	f.Add([]byte{}, int64(0))
	f.Add(partitioned(f, probeSize, 512).b[:2048], int64(0))
	f.Add([]byte("LUKS\xba\xbe\x00\x01"), int64(dataStart))
	signatures(f, 4096, func(_ string, head []byte) { f.Add(head, int64(0)) })
	r := ram{make([]byte, probeSize)}
	// Property: no panic; only a disk whose changed bytes are zero is blank; a
	// volume lies inside its disk.
	f.Fuzz(func(t *testing.T, b []byte, at int64) {
		if at < 0 || at > probeSize-int64(len(b)) || len(b) > mib {
			return
		}
		copy(r.b[at:], b)
		defer clear(r.b[at : at+int64(len(b))])
		c, err := Probe(r, probeSize, 512)
		if err != nil {
			t.Fatal(err)
		}
		if at < blankHead && c.Kind == Blank && nonzero(b) && at+int64(len(b)) <= blankHead {
			t.Fatal("written to, and blank")
		}
		if c.Start < 0 || c.Size < 0 || c.Start+c.Size > probeSize {
			t.Fatalf("%+v", c)
		}
	})
}

var _ io.ReaderAt = failing{}
