package contract

import (
	"encoding/binary"
	"strings"
	"unicode/utf16"
)

// ISO 9660 (ECMA-119), Joliet, and SUSP/Rock Ridge (IEEE P1281, P1282) as far
// as a root directory needs them.
const (
	sector       = 2048
	firstVD      = 16
	maxVDs       = 32
	maxRootBytes = 1 << 20
	maxSUSP      = 64 // continuation areas of one entry
)

func (m image) isISO() bool {
	vd, ok := m.cut(firstVD*sector, sector)
	return ok && string(vd[1:6]) == "CD001"
}

func readISO(m image) (Files, string, error) {
	var primary, joliet image
	for i := range int64(maxVDs) {
		vd, ok := m.cut((firstVD+i)*sector, sector)
		if !ok || string(vd[1:6]) != "CD001" {
			return Files{}, "", errISO
		}
		if vd[0] == 255 {
			break
		}
		switch esc := string(vd[88:91]); {
		case vd[0] == 1 && primary == nil:
			primary = vd
		case vd[0] == 2 && joliet == nil && (esc == "%/@" || esc == "%/C" || esc == "%/E"):
			joliet = vd
		}
	}
	if primary == nil || primary.le16(128) != sector {
		return Files{}, "", errISO
	}
	label := trimLabel(primary[40:72])
	entries, err := isoRoot(m, primary)
	if err != nil {
		return Files{}, "", err
	}
	name := func(e isoEntry) string { return plainName(string(e.id)) }
	if hasRockRidge(entries) {
		name = func(e isoEntry) string { return e.rock }
	} else if joliet != nil {
		if entries, err = isoRoot(m, joliet); err != nil {
			return Files{}, "", err
		}
		name = func(e isoEntry) string { return jolietName(e.id) }
		if strings.EqualFold(ucs2(joliet[40:72]), cidataLabel) {
			label = cidataLabel
		}
	}
	var files Files
	for _, e := range entries {
		err := files.take(name(e), e.size, e.regular, func() ([]byte, error) {
			data, ok := m.cut(e.extent*sector, e.size)
			if !ok {
				return nil, errISO
			}
			return data, nil
		})
		if err != nil {
			return Files{}, "", err
		}
	}
	return files, label, nil
}

type isoEntry struct {
	id           []byte
	rock         string // Rock Ridge name, "" = none
	extent, size int64
	regular      bool
}

func hasRockRidge(entries []isoEntry) bool {
	for _, e := range entries {
		if e.rock != "" {
			return true
		}
	}
	return false
}

// isoRoot lists the root directory of one volume descriptor.
func isoRoot(m, vd image) ([]isoEntry, error) {
	size := vd.le32(156 + 10)
	if size > maxRootBytes {
		return nil, badCidata("the cidata device's root directory is too large: put only the four files on it")
	}
	dir, ok := m.cut(vd.le32(156+2)*sector, size)
	if !ok {
		return nil, errISO
	}
	var (
		out   []isoEntry
		skip  int // bytes before the system use entries, from SP
		susp  bool
		index int
	)
	for len(dir) > 0 {
		n := int(dir[0])
		if n == 0 { // rest of this sector is padding
			rest := len(dir) % sector
			if rest == 0 {
				rest = sector
			}
			dir = dir[rest:]
			continue
		}
		if n < 34 || n > len(dir) || 33+int(dir[32]) > n {
			return nil, errISO
		}
		rec := dir[:n]
		dir = dir[n:]
		id := rec[33 : 33+int(rec[32])]
		use := rec[min(n, 33+len(id)+(len(id)+1)%2):]
		if index++; index == 1 {
			skip, susp = suspStart(use)
		}
		if len(id) == 1 && id[0] <= 1 { // "." and ".."
			continue
		}
		e := isoEntry{id: id, extent: rec.le32(2), size: rec.le32(10), regular: rec[25]&0x82 == 0 && rec[26] == 0 && rec[27] == 0}
		e.extent += int64(rec[1])
		if susp && len(use) >= skip {
			if !e.rockRidge(m, use[skip:]) {
				return nil, errISO
			}
		}
		out = append(out, e)
	}
	return out, nil
}

// suspStart looks for the SP entry in the root's first record.
func suspStart(use image) (skip int, ok bool) {
	if len(use) >= 7 && string(use[:2]) == "SP" && use[2] == 7 && use[4] == 0xbe && use[5] == 0xef {
		return int(use[6]), true
	}
	return 0, false
}

// rockRidge reads name and file type from the system use entries.
func (e *isoEntry) rockRidge(m, use image) bool {
	var name strings.Builder
	for range maxSUSP {
		var next image
		for len(use) >= 4 {
			n := int(use[2])
			if n < 4 || n > len(use) {
				break // padding
			}
			body := use[:n]
			use = use[n:]
			switch string(body[:2]) {
			case "NM":
				if n >= 5 && body[4]&6 == 0 {
					name.Write(body[5:])
				}
			case "PX":
				if n >= 12 {
					e.regular = e.regular && body.le32(4)&0o170000 == 0o100000
				}
			case "CE":
				if n < 28 {
					return false
				}
				var ok bool
				if next, ok = m.cut(body.le32(4)*sector+body.le32(12), body.le32(20)); !ok || len(next) > sector*8 {
					return false
				}
			case "ST":
				use = nil
			}
		}
		if next == nil {
			e.rock = name.String()
			return true
		}
		use = next
	}
	return false
}

func jolietName(id []byte) string {
	name, _, _ := strings.Cut(ucs2(id), ";")
	return strings.TrimRight(name, ".")
}

func ucs2(b []byte) string {
	u := make([]uint16, len(b)/2)
	for i := range u {
		u[i] = binary.BigEndian.Uint16(b[2*i:])
	}
	return strings.TrimRight(string(utf16.Decode(u)), " \x00")
}
