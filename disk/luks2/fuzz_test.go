package luks2

import (
	"bytes"
	"testing"
)

const fuzzSize = 20 << 20

// FuzzJSON: no panic, bounded time and memory on any JSON area behind a right
// checksum; and what the gate accepts, it writes out in a form that it accepts
// again as the same.
func FuzzJSON(f *testing.F) {
	m, _ := formatted(f)
	for _, disk := range []*memory{m, foreignDisk(f)} {
		text, _, _ := bytes.Cut(disk.b[binarySize:headerSize], []byte{0})
		f.Add(text)
	}
	f.Add([]byte(`{"keyslots":{"0":[[[[[[[[]]]]]]]]},"keyslots":null}`))
	frame := bytes.Clone(m.b[:2*headerSize])
	disk := &memory{b: make([]byte, fuzzSize), size: fuzzSize}
	f.Fuzz(func(t *testing.T, text []byte) {
		copy(disk.b, frame)
		for _, at := range []int{0, headerSize} {
			clear(disk.b[at+binarySize : at+headerSize])
			copy(disk.b[at+binarySize:at+headerSize], text)
			reseat(disk.b[at : at+headerSize])
		}
		im, err := Read(disk, fuzzSize)
		if err != nil {
			t.Fatal(err) // the disk itself has none
		}
		held := 0
		for _, a := range im.areas {
			held += len(a)
		}
		if held > maxSlots*int(areaSize(false)) {
			t.Fatalf("%d bytes of key material held", held)
		}
		if im.Kind() != ForeignLUKS {
			return
		}
		foreign, err := im.Foreign()
		if err != nil {
			t.Fatal(err)
		}
		copy(disk.b, foreign.Sections[0].Data)
		clear(disk.b[headerSize : 2*headerSize])
		again, err := Read(disk, fuzzSize)
		if err != nil || again.Kind() != ForeignLUKS || !bytes.Equal(again.foreign.meta.encode(), im.foreign.meta.encode()) {
			t.Fatalf("rewritten header: %s %v %v", again.Kind(), again.Reason(), err)
		}
	})
}

// FuzzHeader: no panic on any first bytes of the two copies, LUKS1 included.
func FuzzHeader(f *testing.F) {
	m, _ := formatted(f)
	f.Add(m.b[:600], m.b[headerSize:headerSize+600])
	f.Add(marker, []byte{})
	f.Add(append(bytes.Clone(magicPrimary), 0, 1), []byte{})
	for _, b := range suite(f) {
		f.Add(b[:headerSize], b[headerSize:2*headerSize])
	}
	disk := &memory{b: make([]byte, fuzzSize), size: fuzzSize}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		clear(disk.b[:2*headerSize])
		copy(disk.b[:headerSize], first)
		copy(disk.b[headerSize:2*headerSize], second)
		im, err := Read(disk, fuzzSize)
		if err != nil {
			t.Fatal(err)
		}
		if im.Kind() == ForeignLUKS {
			if _, err := im.Foreign(); err != nil {
				t.Fatal(err)
			}
		}
	})
}
