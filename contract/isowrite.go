package contract

import (
	"encoding/binary"
	"errors"
	"unicode/utf16"
)

// Fixed sectors of a volume that WriteCidata makes: descriptors at 16 to 18,
// then path tables, root directories, the SUSP extension record, the files.
const (
	secPathL = 19 + iota
	secPathM
	secJolietL
	secJolietM
	secRoot
	secJolietRoot
	secExtension
	secFiles
)

// WriteCidata makes a cidata volume: ISO 9660 with Rock Ridge and Joliet,
// label "cidata", as genisoimage -volid cidata -joliet -rock. The same files
// give the same bytes on every machine and day.
func WriteCidata(files Files) ([]byte, error) {
	type content struct {
		name   string
		data   []byte
		sector uint32
	}
	var list []content
	next := uint32(secFiles)
	for _, name := range []string{"meta-data", "network-config", "user-data", "vendor-data"} { // sorted, as ECMA-119 wants
		for _, w := range wanted {
			b := *w.get(&files)
			if w.name != name || b == nil {
				continue
			}
			if int64(len(b)) > w.max {
				return nil, errors.New(name + " is too large: user-data may have 16 MiB, meta-data and network-config 1 MiB")
			}
			list = append(list, content{name, b, next})
			next += uint32((len(b) + sector - 1) / sector)
		}
	}
	out := make([]byte, int(next)*sector)
	at := func(s uint32) []byte { return out[int(s)*sector : (int(s)+1)*sector] }

	volume(at(16), 1, []byte("cidata"), ' ', next, secPathL, secPathM, secRoot)
	volume(at(17), 2, ucs2be("cidata"), 0, next, secJolietL, secJolietM, secJolietRoot)
	copy(at(17)[88:], "%/E")
	copy(at(18), "\xffCD001\x01")
	pathTable(at(secPathL), binary.LittleEndian, secRoot)
	pathTable(at(secPathM), binary.BigEndian, secRoot)
	pathTable(at(secJolietL), binary.LittleEndian, secJolietRoot)
	pathTable(at(secJolietM), binary.BigEndian, secJolietRoot)
	extension := copy(at(secExtension), extensionRecord())

	// "." carries the mark of SUSP and points to the record that names Rock Ridge.
	dot := append([]byte("SP\x07\x01\xbe\xef\x00"), posix(0o040555, 2)...)
	ce := append([]byte("CE\x1c\x01"), both32(secExtension)...)
	ce = append(append(ce, both32(0)...), both32(uint32(extension))...)
	dir := record([]byte{0}, secRoot, sector, true, append(dot, ce...))
	dir = append(dir, record([]byte{1}, secRoot, sector, true, posix(0o040555, 2))...)
	joliet := record([]byte{0}, secJolietRoot, sector, true, nil)
	joliet = append(joliet, record([]byte{1}, secJolietRoot, sector, true, nil)...)
	for _, f := range list {
		rr := append(posix(0o100444, 1), append([]byte{'N', 'M', byte(5 + len(f.name)), 1, 0}, f.name...)...)
		dir = append(dir, record([]byte(isoName(f.name)), f.sector, uint32(len(f.data)), false, rr)...)
		joliet = append(joliet, record(ucs2be(f.name), f.sector, uint32(len(f.data)), false, nil)...)
		copy(out[int(f.sector)*sector:], f.data)
	}
	copy(at(secRoot), dir)
	copy(at(secJolietRoot), joliet)
	return out, nil
}

// volume fills a primary (1) or supplementary (2) volume descriptor.
func volume(vd []byte, kind byte, label []byte, blank byte, sectors, pathL, pathM, root uint32) {
	vd[0] = kind
	copy(vd[1:], "CD001\x01")
	for i := 8; i < 72; i++ { // system and volume identifier
		vd[i] = blank
	}
	for i := 190; i < 813; i++ { // further identifiers, all empty
		vd[i] = blank
	}
	copy(vd[40:], label)
	copy(vd[80:], both32(sectors))
	copy(vd[120:], both16(1))
	copy(vd[124:], both16(1))
	copy(vd[128:], both16(sector))
	copy(vd[132:], both32(10)) // path table
	binary.LittleEndian.PutUint32(vd[140:], pathL)
	binary.BigEndian.PutUint32(vd[148:], pathM)
	copy(vd[156:], record([]byte{0}, root, sector, true, nil))
	for i, d := range []string{"1980010100000000", "1980010100000000", "0000000000000000", "0000000000000000"} {
		copy(vd[813+17*i:], d)
	}
	vd[881] = 1
}

func pathTable(b []byte, order binary.ByteOrder, root uint32) {
	b[0] = 1 // length of the root's name, a zero byte
	order.PutUint32(b[2:], root)
	order.PutUint16(b[6:], 1) // its own parent
}

// record is one directory record.
func record(id []byte, extent, size uint32, dir bool, use []byte) []byte {
	r := make([]byte, 33, 255)
	copy(r[2:], both32(extent))
	copy(r[10:], both32(size))
	copy(r[18:], []byte{80, 1, 1, 0, 0, 0, 0}) // 1980-01-01, no clock
	if dir {
		r[25] = 2
	}
	copy(r[28:], both16(1))
	r[32] = byte(len(id))
	if r = append(r, id...); len(r)%2 == 1 {
		r = append(r, 0)
	}
	if r = append(r, use...); len(r)%2 == 1 {
		r = append(r, 0)
	}
	r[0] = byte(len(r))
	return r
}

// posix is Rock Ridge's PX: mode, links, owner root.
func posix(mode, links uint32) []byte {
	px := append([]byte("PX\x24\x01"), both32(mode)...)
	px = append(px, both32(links)...)
	return append(append(px, both32(0)...), both32(0)...)
}

// extensionRecord is the ER entry of RRIP 1991A.
func extensionRecord() []byte {
	id, des, src := "RRIP_1991A", "THE ROCK RIDGE INTERCHANGE PROTOCOL PROVIDES SUPPORT FOR POSIX FILE SYSTEM SEMANTICS",
		"PLEASE CONTACT DISC PUBLISHER FOR SPECIFICATION SOURCE.  SEE PUBLISHER IDENTIFIER IN PRIMARY VOLUME DESCRIPTOR FOR CONTACT INFORMATION."
	er := []byte{'E', 'R', byte(8 + len(id) + len(des) + len(src)), 1, byte(len(id)), byte(len(des)), byte(len(src)), 1}
	return append(er, id+des+src...)
}

func isoName(name string) string {
	b := []byte(name)
	for i, c := range b {
		if c == '-' {
			b[i] = '_'
		} else {
			b[i] = c - 'a' + 'A'
		}
	}
	return string(b) + ".;1"
}

func both16(v uint16) []byte {
	return binary.BigEndian.AppendUint16(binary.LittleEndian.AppendUint16(nil, v), v)
}

func both32(v uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, v), v)
}

func ucs2be(s string) []byte {
	var b []byte
	for _, u := range utf16.Encode([]rune(s)) {
		b = binary.BigEndian.AppendUint16(b, u)
	}
	return b
}
