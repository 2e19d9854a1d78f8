package luks2

import "testing"

// FuzzRead: no panic, bounded time and memory on any header; and what the
// gate accepts, it writes out in a form that it accepts again as the same.
func FuzzRead(f *testing.F) {
	m, _ := formatted(f)
	f.Add(m.b[:2*headerSize], true)
	f.Add(foreignDisk(f).b[:2*headerSize], true)
	f.Add(marker, false)
	f.Add(append(append([]byte{}, magicPrimary...), 0, 1), false)
	const size = 20 << 20
	disk := &memory{b: make([]byte, size)}
	f.Fuzz(func(t *testing.T, head []byte, mend bool) {
		clear(disk.b[:2*headerSize])
		copy(disk.b[:2*headerSize], head)
		if mend {
			reseat(disk.b[:headerSize])
			reseat(disk.b[headerSize : 2*headerSize])
		}
		im, err := Read(disk, size)
		if err != nil {
			t.Fatal(err) // the disk itself has none
		}
		var held int
		for _, a := range im.areas {
			held += len(a)
		}
		if held > (maxSlots+1)*areaSize {
			t.Fatalf("%d bytes of key material held", held)
		}
		if im.Kind() != ForeignLUKS || im.luks1 != nil {
			return
		}
		foreign, err := im.Foreign()
		if err != nil {
			t.Fatal(err)
		}
		copy(disk.b, foreign.Sections[0].Data)
		clear(disk.b[headerSize : 2*headerSize])
		again, err := Read(disk, size)
		if err != nil || again.Kind() != ForeignLUKS || again.foreign.meta.dataOffset != im.foreign.meta.dataOffset {
			t.Fatalf("rewritten header: %s %v %v", again.Kind(), again.Reason(), err)
		}
	})
}
