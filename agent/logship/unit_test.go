package logship

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 123456789, time.FixedZone("x", 3600))

// unframe reads RFC 5425 frames as a receiver does.
func unframe(r *bufio.Reader) ([]string, error) {
	var out []string
	for {
		word, err := r.ReadString(' ')
		if err == io.EOF && word == "" {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		n, err := strconv.Atoi(strings.TrimSuffix(word, " "))
		if err != nil || n < 1 || word[0] == '0' {
			return out, fmt.Errorf("bad length %q", word)
		}
		msg := make([]byte, n)
		if _, err := io.ReadFull(r, msg); err != nil {
			return out, err
		}
		out = append(out, string(msg))
	}
}

func TestFrames(t *testing.T) {
	tests := map[string]struct {
		m    Message
		host string
		want []string
	}{
		"all fields": {
			Message{noon, FacilityDaemon, SeverityError, "app", "12", "ID47", []byte("text")}, "guest",
			[]string{`<27>1 2026-11-23T11:00:00.123456Z guest app 12 ID47 [meta sequenceId="5"] text`},
		},
		"none": {
			Message{Time: noon, Severity: SeverityInfo}, "",
			[]string{`<14>1 2026-11-23T11:00:00.123456Z - - - - [meta sequenceId="5"]`},
		},
		"fields of an attacker": {
			Message{noon, 99, -1, "a b\n\x00é]", strings.Repeat("p", 200), "", []byte("x")}, strings.Repeat("h", 300),
			[]string{`<13>1 2026-11-23T11:00:00.123456Z ` + strings.Repeat("h", 255) + ` a_b____] ` + strings.Repeat("p", 128) + ` - [meta sequenceId="5"] x`},
		},
		"text of an attacker": {
			Message{Time: noon, Severity: SeverityInfo, Text: []byte("\ufeffa\r\n<1>\x1b[31m\x7f\u0085\u2028\u202eb\xff\xc3\tü")}, "",
			[]string{`<14>1 2026-11-23T11:00:00.123456Z - - - - [meta sequenceId="5"] \ufeffa\x0d\x0a<1>\x1b[31m\x7f\u0085\u2028\u202eb\xff\xc3` + "\tü"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			out, next := frames(tt.m, tt.host, 5)
			got, err := unframe(bufio.NewReader(bytes.NewReader(bytes.Join(out, nil))))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
			if next != uint32(5+len(tt.want)) {
				t.Errorf("next number %d", next)
			}
		})
	}
}

func TestSequenceWraps(t *testing.T) {
	if _, next := frames(Message{}, "", maxSeqID); next != 1 {
		t.Errorf("after the highest number comes %d", next)
	}
}

func TestHugeText(t *testing.T) {
	out, _ := frames(Message{Text: bytes.Repeat([]byte("ü"), maxText)}, "h", 1)
	last := string(out[len(out)-1])
	if want := fmt.Sprintf(`part="%d/%d" cut="%d"]`, len(out), len(out), maxText); !strings.Contains(last, want) {
		t.Errorf("no %s in %.120q", want, last)
	}
}

// FuzzFrame: any message makes frames that a receiver can take apart again,
// each within the size, of valid UTF-8 and without a control character, and
// the parts make up the text.
func FuzzFrame(f *testing.F) {
	f.Add([]byte("plain"), "app", "1", "ID", "host", 3, 4)
	f.Add([]byte("\x00\n\xff"), "a b", "", "", "h\n", -1, 9)
	f.Add(bytes.Repeat([]byte("é"), 9000), "a", "b", "c", "d", 1, 6)
	f.Fuzz(func(t *testing.T, text []byte, app, proc, id, host string, facility, severity int) {
		out, _ := frames(Message{noon, facility, severity, app, proc, id, text}, host, 1)
		msgs, err := unframe(bufio.NewReader(bytes.NewReader(bytes.Join(out, nil))))
		if err != nil || len(msgs) != len(out) {
			t.Fatalf("%d of %d frames, %v", len(msgs), len(out), err)
		}
		var joined strings.Builder
		for i, m := range msgs {
			if len(m) > maxMessage || !utf8.ValidString(m) || !strings.HasPrefix(m, "<") {
				t.Errorf("message of %d octets: %.80q", len(m), m)
			}
			if strings.ContainsFunc(m, func(r rune) bool { return r < ' ' && r != '\t' || r >= 0x7f && r < 0xa0 }) {
				t.Errorf("control character in %.80q", m)
			}
			words := strings.SplitN(m, " ", 7)
			if len(words) != 7 || !strings.HasPrefix(words[6], fmt.Sprintf(`[meta sequenceId="%d"]`, i+1)) {
				t.Fatalf("%.200q", m)
			}
			sd := words[6]
			end := strings.IndexByte(sd, ']')
			if strings.HasPrefix(sd[end+1:], "[hpcr@32473 ") {
				end += 1 + strings.IndexByte(sd[end+1:], ']')
			}
			joined.WriteString(strings.TrimPrefix(sd[end+1:], " "))
		}
		want, _ := sanitize(text)
		if len(msgs) > 1 && joined.Len() != len(want) || len(msgs) == 1 && joined.String() != strings.TrimPrefix(want, "") && joined.String() != want {
			t.Errorf("%d octets of text became %d", len(want), joined.Len())
		}
	})
}

func TestRing(t *testing.T) {
	var r ring
	for i := range ringMessages + 10 {
		r.push([]byte{byte(i)})
	}
	if r.n != ringMessages || r.dropped != 10 || r.buf[r.head][0] != 10 {
		t.Errorf("n %d, dropped %d", r.n, r.dropped)
	}
	r.unshift([][]byte{{1}, {2}})
	if r.n != ringMessages || r.dropped != 12 {
		t.Errorf("a full ring took old frames: n %d, dropped %d", r.n, r.dropped)
	}
	for i := range 5 {
		if f := r.pop(); f[0] != byte(10+i) {
			t.Fatalf("order: %d", f[0])
		}
	}
	r.unshift([][]byte{{1}, {2}, {3}})
	for i := range 3 {
		if f := r.pop(); f[0] != byte(1+i) {
			t.Fatalf("order after unshift: %d", f[0])
		}
	}

	r = ring{}
	for range 100 {
		r.push(make([]byte, ringBytes/10))
	}
	if r.bytes > ringBytes || r.dropped != uint64(100-r.n) || r.n < 8 {
		t.Errorf("bytes %d, n %d, dropped %d", r.bytes, r.n, r.dropped)
	}
}

func TestBackoff(t *testing.T) {
	for attempt, want := range map[int]time.Duration{0: time.Second, 1: 2 * time.Second, 5: 32 * time.Second, 6: time.Minute, 1000: time.Minute} {
		if low, high := backoff(attempt, 0), backoff(attempt, 0.999999); low != want/2 || high > want || high < want*9/10 {
			t.Errorf("attempt %d: %v to %v, want %v to %v", attempt, low, high, want/2, want)
		}
	}
}

func TestLineWriter(t *testing.T) {
	var got []string
	w := &lineWriter{send: func(l []byte) { got = append(got, string(l)) }}
	for _, s := range []string{"a\nb", "c\r\n", "\n", strings.Repeat("x", maxLineLength+5), "y\n", "end"} {
		if n, err := io.WriteString(w, s); n != len(s) || err != nil {
			t.Fatal(n, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a", "bc", "", strings.Repeat("x", maxLineLength), "xxxxxy", "end"}, got); diff != "" {
		t.Error(diff)
	}
	if _, err := w.Write([]byte("late")); err == nil {
		t.Error("wrote after Close")
	}
}
