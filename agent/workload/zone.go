package workload

import "encoding/binary"

// The guest has no time zones and runs on UTC, but compose files like to mount
// a server's own. These stand in when the guest has none.
var standIns = map[string][]byte{
	"/etc/localtime": utcZone(),
	"/etc/timezone":  []byte("Etc/UTC\n"),
}

// utcZone is UTC as a TZif file (RFC 8536 §3): the same empty block for old
// and new readers, and a footer.
func utcZone() []byte {
	var b []byte
	for range 2 {
		b = append(b, "TZif2"...)
		b = append(b, make([]byte, 15)...)
		for _, count := range []uint32{0, 0, 0, 0, 1, 4} { // isut, isstd, leap, time, type, char
			b = binary.BigEndian.AppendUint32(b, count)
		}
		b = append(b, 0, 0, 0, 0, 0, 0) // offset, no daylight saving, first name
		b = append(b, "UTC\x00"...)
	}
	return append(b, "\nUTC0\n"...)
}
