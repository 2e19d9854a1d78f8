package logship

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Facilities and severities of RFC 5424 §6.2.1 that the guest uses.
const (
	FacilityUser   = 1
	FacilityDaemon = 3
	FacilitySyslog = 5

	SeverityError   = 3
	SeverityWarning = 4
	SeverityNotice  = 5
	SeverityInfo    = 6
	SeverityDebug   = 7
)

const (
	// Octets of one SYSLOG-MSG. Receivers should take 8192 (RFC 5425 §4.3.1),
	// but rsyslogd as shipped cuts at 8096.
	maxMessage = 8000
	maxText    = 256 << 10 // octets of one Message's text, before splitting
	maxSeqID   = 1<<31 - 1 // RFC 5424 §7.3.1
	nilValue   = "-"
)

// Message is one entry of the log. Empty fields become "-".
type Message struct {
	Time     time.Time // zero = now
	Facility int       // 1–23; 0, the kernel's, becomes the user facility
	Severity int       // 0–7; 0 is an emergency
	App      string
	ProcID   string
	MsgID    string
	Text     []byte // not kept
}

// frames renders m as one or more frames, each at most maxMessage octets
// without its length, and returns the sequence number after the last one used.
func frames(m Message, host string, seq uint32) ([][]byte, uint32) {
	if m.Time.IsZero() {
		m.Time = time.Now()
	}
	facility, severity := m.Facility, m.Severity
	if facility <= 0 || facility > 23 {
		facility = FacilityUser
	}
	if severity < 0 || severity > 7 {
		severity = SeverityNotice
	}
	head := fmt.Sprintf("<%d>1 %s %s %s %s %s ", facility*8+severity,
		m.Time.UTC().Format("2006-01-02T15:04:05.000000Z"),
		field(host, 255), field(m.App, 48), field(m.ProcID, 128), field(m.MsgID, 32))
	text, cut := sanitize(m.Text)

	// Room for the longest structured data, so that parts need no second look.
	const sdRoom = len(`[meta sequenceId="2147483647"][hpcr@32473 part="999/999" cut="9999999999"] `)
	parts := split(text, maxMessage-len(head)-sdRoom)
	out := make([][]byte, 0, len(parts))
	for i, part := range parts {
		sd := fmt.Sprintf(`[meta sequenceId="%d"]`, seq)
		seq = nextSeq(seq)
		var own []string
		if len(parts) > 1 {
			own = append(own, fmt.Sprintf(`part="%d/%d"`, i+1, len(parts)))
		}
		if cut > 0 && i == len(parts)-1 {
			own = append(own, fmt.Sprintf(`cut="%d"`, cut))
		}
		if own != nil {
			sd += "[hpcr@32473 " + strings.Join(own, " ") + "]" // 32473: RFC 5612's number for examples, we have none
		}
		msg := head + sd
		if len(part) > 0 {
			msg += " " + part
		}
		frame := strconv.AppendInt(make([]byte, 0, len(msg)+6), int64(len(msg)), 10)
		frame = append(frame, ' ')
		out = append(out, append(frame, msg...))
	}
	return out, seq
}

func nextSeq(seq uint32) uint32 {
	if seq >= maxSeqID {
		return 1
	}
	return seq + 1
}

// field keeps printable ASCII without blanks (RFC 5424 PRINTUSASCII).
func field(s string, limit int) string {
	b := make([]byte, 0, min(len(s), limit))
	for i := 0; i < len(s) && len(b) < limit; i++ {
		c := s[i]
		if c < 33 || c > 126 {
			c = '_'
		}
		b = append(b, c)
	}
	if len(b) == 0 {
		return nilValue
	}
	return string(b)
}

// sanitize makes valid UTF-8 without anything that a terminal or a line-based
// file would obey: control characters (tab excepted), line and paragraph
// separators and direction overrides are written out as \xNN or \uNNNN. It
// says how many octets beyond maxText were left out.
func sanitize(text []byte) (string, int) {
	cut := 0
	if len(text) > maxText {
		end := maxText
		for end > maxText-utf8.UTFMax && !utf8.RuneStart(text[end]) {
			end--
		}
		cut = len(text) - end
		text = text[:end]
	}
	var b strings.Builder
	b.Grow(len(text))
	for len(text) > 0 {
		r, size := utf8.DecodeRune(text)
		switch {
		case r == utf8.RuneError && size <= 1, r < ' ' && r != '\t', r == 0x7f:
			fmt.Fprintf(&b, `\x%02x`, text[0])
		case r >= 0x80 && r < 0xa0, r == 0x2028, r == 0x2029, r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069, r == 0xfeff:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.Write(text[:size])
		}
		text = text[size:]
	}
	return b.String(), cut
}

// split cuts at rune boundaries; an empty text is one empty part.
func split(s string, limit int) []string {
	var parts []string
	for len(s) > limit {
		end := limit
		for end > limit-utf8.UTFMax && !utf8.RuneStart(s[end]) {
			end--
		}
		parts = append(parts, s[:end])
		s = s[end:]
	}
	return append(parts, s)
}
