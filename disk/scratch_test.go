package disk

import (
	"bytes"
	"io"
	"testing"

	"hpcr/agent/hpl"
)

// cuttable is a disk of bytes that may lose its power after some writes.
type cuttable struct {
	b     []byte
	power int // writes until it fails; the one that fails writes half
}

func (r *cuttable) ReadAt(p []byte, at int64) (int, error) { return bytes.NewReader(r.b).ReadAt(p, at) }
func (r *cuttable) Sync() error                            { return nil }

func (r *cuttable) WriteAt(p []byte, at int64) (int, error) {
	r.power--
	if r.power < 0 {
		return 0, io.ErrClosedPipe
	}
	if r.power == 0 { // whole sectors arrive
		p = p[:len(p)/2/512*512]
	}
	return copy(r.b[at:], p), nil
}

// TestScratchUsable: what may be made anew is a blank disk, or one with our mark
// and nothing beside it.
func TestScratchUsable(t *testing.T) {
	const size = 64 * mib
	for name, tt := range map[string]struct {
		change func(t *testing.T, d *cuttable)
		size   int64
		want   hpl.Code
	}{
		"an empty disk":           {func(*testing.T, *cuttable) {}, size, ""},
		"a scratch disk of ours":  {markScratch, size, ""},
		"one with noise in it":    {func(t *testing.T, d *cuttable) { markScratch(t, d); copy(d.b[9*mib:], "what an earlier boot left") }, size, ""},
		"a small empty disk":      {func(*testing.T, *cuttable) {}, size - mib, "HPL07003E"},
		"noise":                   {func(_ *testing.T, d *cuttable) { copy(d.b[5*mib:], "somebody's") }, size, "HPL02003E"},
		"noise at the end":        {func(_ *testing.T, d *cuttable) { copy(d.b[size-100:], "somebody's") }, size, "HPL02003E"},
		"a volume's table":        {func(t *testing.T, d *cuttable) { parted(t, d, typeLinux) }, size, "HPL02003E"},
		"two partitions":          {func(t *testing.T, d *cuttable) { parted(t, d, typeScratch, typeLinux) }, size, "HPL02003E"},
		"two scratch partitions":  {func(t *testing.T, d *cuttable) { parted(t, d, typeScratch, typeScratch) }, size, "HPL02003E"},
		"scratch not first":       {func(t *testing.T, d *cuttable) { parted(t, d, typeLinux, typeScratch) }, size, "HPL02003E"},
		"a later boot sector":     {func(t *testing.T, d *cuttable) { markScratch(t, d); copy(d.b, "\xEB\x3C\x90MSDOS5.0") }, size, "HPL02003E"},
		"a later LUKS header":     {func(t *testing.T, d *cuttable) { markScratch(t, d); copy(d.b, "LUKS\xba\xbe\x00\x02") }, size, "HPL02003E"},
		"a later block 1":         {func(t *testing.T, d *cuttable) { markScratch(t, d); copy(d.b[512:], "LABELONE") }, size, "HPL02003E"},
		"a table elsewhere":       {func(t *testing.T, d *cuttable) { markScratch(t, d); d.b[512+72] = 40 }, size, "HPL02003E"},
		"an MBR with a partition": {func(t *testing.T, d *cuttable) { markScratch(t, d); d.b[450] = 0x83 }, size, "HPL02003E"},
		"the mark somewhere else": {func(_ *testing.T, d *cuttable) { copy(d.b[1536:], typeScratch[:]) }, size, "HPL02003E"},
	} {
		t.Run(name, func(t *testing.T) {
			d := &cuttable{make([]byte, tt.size), 100}
			tt.change(t, d)
			err := scratchUsable(d, tt.size, 512)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || hpl.From(err).Code != tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func markScratch(t *testing.T, d *cuttable) {
	t.Helper()
	if err := writeScratch(d, int64(len(d.b)), 512); err != nil {
		t.Fatal(err)
	}
}

func parted(t *testing.T, d *cuttable, kinds ...[16]byte) {
	t.Helper()
	var parts []partition
	for i, k := range kinds {
		parts = append(parts, partition{"p", k, int64(1+8*i) * mib, 8 * mib, i})
	}
	if err := writeGPT(d, int64(len(d.b)), 512, parts); err != nil {
		t.Fatal(err)
	}
}

// TestScratchCut: power may fail at each write of the table, on an empty disk
// and on one that was a scratch disk of another size; the next boot goes on.
func TestScratchCut(t *testing.T) {
	for _, block := range []int64{512, 4096} {
		for _, before := range []int64{0, 66 * mib} {
			const size = 64 * mib
			for cut := 1; ; cut++ {
				d := &cuttable{make([]byte, size), 1 << 20}
				if before > 0 { // its backup table lay elsewhere
					old := &cuttable{make([]byte, before), 1 << 20}
					if err := writeScratch(old, before, block); err != nil {
						t.Fatal(err)
					}
					copy(d.b, old.b)
				}
				d.power = cut
				err := writeScratch(d, size, block)
				d.power = 1 << 20
				if err := scratchUsable(d, size, block); err != nil {
					t.Errorf("block %d, before %d, cut at write %d: %v", block, before, cut, err)
				}
				if err == nil && cut > 6 { // the sixth write is the last
					break
				}
			}
		}
	}
}

// A scratch disk is one partition of our type to others' tools, and to Probe
// nobody's volume.
func TestScratchTable(t *testing.T) {
	const size = 80*mib + 512*3
	d := &cuttable{make([]byte, size), 100}
	markScratch(t, d)
	g, err := readGPT(d, size, 512)
	if err != nil || len(g.parts) != 1 || g.parts[0].kind != typeScratch || g.parts[0].start != scratchStart || g.parts[0].size != scratchSize(size) {
		t.Fatalf("%+v, %v", g, err)
	}
	if end := scratchStart + scratchSize(size); end > size-33*512 || scratchSize(size)%integrityBlock != 0 {
		t.Errorf("the partition ends at %d of %d", end, size)
	}
	if c, err := Probe(d, size, 512); err != nil || c.Kind != Foreign || c.Creatable() || c.Openable() {
		t.Errorf("%+v, %v", c, err)
	}
}

func FuzzScratchMark(f *testing.F) {
	d := &cuttable{make([]byte, 64*mib), 100}
	if err := writeScratch(d, 64*mib, 512); err != nil {
		f.Fatal(err)
	}
	f.Add(d.b[:34*512])
	f.Add(make([]byte, 34*512))
	// Property: no panic; whoever reads a whole table on a marked disk finds our
	// partition alone.
	f.Fuzz(func(t *testing.T, head []byte) {
		const size = 64 * mib
		b := make([]byte, 64<<10)
		copy(b, head)
		marked, err := scratchMarked(ram{b}, size, 512)
		if err != nil {
			t.Fatal(err)
		}
		if g, err := readGPT(ram{b}, size, 512); err == nil && marked && (len(g.parts) != 1 || g.parts[0].kind != typeScratch) {
			t.Fatalf("%+v", g.parts)
		}
	})
}
