package logship

import (
	"fmt"
	"unicode/utf8"
)

// appendText makes valid UTF-8 without anything that a terminal or a line-based
// file would obey: control characters (tab excepted), line and paragraph
// separators and direction overrides are written out as \xNN or \uNNNN. In
// foreign text, the first letter of what looks like one of the agent's codes
// is written out too, so that nobody who searches for codes finds one that the
// agent did not send.
func appendText(b, text []byte, foreign bool) []byte {
	for len(text) > 0 {
		run := 0
		for run < len(text) && (text[run] >= ' ' && text[run] < 0x7f || text[run] == '\t') && !(foreign && looksLikeCode(text[run:])) {
			run++
		}
		b, text = append(b, text[:run]...), text[run:]
		if len(text) == 0 {
			break
		}
		r, size := utf8.DecodeRune(text)
		switch {
		case r == 'H':
			b = append(b, `\u0048`...) // in a JSON text it still means H
		case r == utf8.RuneError && size <= 1, r < ' ', r == 0x7f:
			b = fmt.Appendf(b, `\x%02x`, text[0])
		case r >= 0x80 && r < 0xa0, r == 0x2028, r == 0x2029, r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069, r == 0xfeff:
			b = fmt.Appendf(b, `\u%04x`, r)
		default:
			b = append(b, text[:size]...)
		}
		text = text[size:]
	}
	return b
}

func looksLikeCode(text []byte) bool {
	return len(text) > 3 && text[0] == 'H' && text[1] == 'P' && text[2] == 'L' && text[3] >= '0' && text[3] <= '9'
}

// cutRune returns the longest prefix of at most limit octets that ends between runes.
func cutRune(s []byte, limit int) int {
	if len(s) <= limit {
		return len(s)
	}
	end := limit
	for end > limit-utf8.UTFMax && !utf8.RuneStart(s[end]) {
		end--
	}
	return end
}

// appendField keeps printable ASCII without blanks (RFC 5424 PRINTUSASCII).
func appendField(b []byte, s string, limit int) []byte {
	if s == "" {
		return append(b, '-')
	}
	for i := 0; i < min(len(s), limit); i++ {
		c := s[i]
		if c < 33 || c > 126 {
			c = '_'
		}
		b = append(b, c)
	}
	return b
}

// appendParam writes one parameter of structured data, name="value", with a
// blank before it. The name is ours; the value is cut and escaped (§6.3.3).
func appendParam(b []byte, name, value string) []byte {
	b = append(append(append(b, ' '), name...), '=', '"')
	clean := appendText(nil, []byte(value), true)
	for _, c := range clean[:cutRune(clean, maxParam)] {
		if c == '"' || c == '\\' || c == ']' {
			b = append(b, '\\')
		}
		b = append(b, c)
	}
	return append(b, '"')
}
