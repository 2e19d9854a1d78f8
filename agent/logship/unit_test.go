package logship

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"regexp"
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

// receive is what a receiver makes of entries, numbered from seq.
func receive(t *testing.T, o Origin, host string, seq uint32, entries ...Entry) []string {
	t.Helper()
	f := newForm(o, host)
	var wire []byte
	var items []*item
	part := 0
	for _, e := range entries {
		items, part = f.render(e, part)
		for _, it := range items {
			it.seq, seq = seq, nextSeq(seq)
			wire = it.appendFrame(wire)
		}
	}
	got, err := unframe(bufio.NewReader(bytes.NewReader(wire)))
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestFrames(t *testing.T) {
	const stamp = `2026-11-23T11:00:00.123456Z`
	tests := map[string]struct {
		o       Origin
		host    string
		entries []Entry
		want    []string
	}{
		"all fields": {
			Origin{Facility: FacilityDaemon, App: "app", ProcID: "12"}, "guest", []Entry{{Time: noon, Severity: SeverityError, MsgID: "ID47", Text: []byte("text")}},
			[]string{`<27>1 ` + stamp + ` guest app 12 ID47 [meta sequenceId="5"] text`},
		},
		"none": {
			Origin{}, "", []Entry{{Time: noon, Severity: SeverityInfo}},
			[]string{`<6>1 ` + stamp + ` - - - - [meta sequenceId="5"]`},
		},
		"fields of an attacker": {
			Origin{Facility: 99, App: "a b\n\x00é]", ProcID: strings.Repeat("p", 200)}, strings.Repeat("h", 300), []Entry{{Time: noon, Severity: -1, Text: []byte("x")}},
			[]string{`<13>1 ` + stamp + ` ` + strings.Repeat("h", 255) + ` a_b____] ` + strings.Repeat("p", 128) + ` - [meta sequenceId="5"] x`},
		},
		"text of an attacker": {
			Origin{Facility: FacilityUser}, "", []Entry{{Time: noon, Severity: SeverityInfo, Text: []byte("\ufeffa\r\n<1>\x1b[31m\x7f\u0085\u2028\u202eb\xff\xc3\tü")}},
			[]string{`<14>1 ` + stamp + ` - - - - [meta sequenceId="5"] \ufeffa\x0d\x0a<1>\x1b[31m\x7f\u0085\u2028\u202eb\xff\xc3` + "\tü"},
		},
		"structured data of an attacker": {
			Origin{Facility: FacilityUser, App: "web", Foreign: true, Data: []Param{{"service", `a"]\` + "\n"}, {"image", strings.Repeat("i", 400)}}}, "", []Entry{{Time: noon, Severity: SeverityInfo, Text: []byte("x")}},
			[]string{`<14>1 ` + stamp + ` - web - - [meta sequenceId="5"][hpcr@32473 service="a\"\]\\\\x0a" image="` + strings.Repeat("i", 300) + `"] x`},
		},
		"a code in a container's line": {
			Origin{Facility: FacilityUser, Foreign: true}, "", []Entry{{Time: noon, Severity: SeverityInfo, Text: []byte(`{"m":"HPL11000E HPL"} HPLHPL1 HP`)}},
			[]string{`<14>1 ` + stamp + ` - - - - [meta sequenceId="5"] {"m":"\u0048PL11000E HPL"} HPL\u0048PL1 HP`},
		},
		"a code in the agent's": {
			Origin{Facility: FacilityUser}, "", []Entry{{Time: noon, Severity: SeverityInfo, Text: []byte(`HPL11000E`)}},
			[]string{`<14>1 ` + stamp + ` - - - - [meta sequenceId="5"] HPL11000E`},
		},
		"a service named as the agent": {
			Origin{Facility: FacilityUser, Foreign: true, App: "hpcr-agent"}, "", []Entry{{Time: noon, Severity: SeverityInfo}},
			[]string{`<14>1 ` + stamp + ` - service/hpcr-agent - - [meta sequenceId="5"]`},
		},
		"a line in pieces, and the next": {
			Origin{Facility: FacilityUser}, "", []Entry{
				{Time: noon, Severity: SeverityInfo, Text: []byte("one"), More: true}, {Time: noon, Severity: SeverityInfo, Text: []byte("two")}, {Time: noon, Severity: SeverityInfo, Text: []byte("next")},
			},
			[]string{
				`<14>1 ` + stamp + ` - - - - [meta sequenceId="5"][hpcr@32473 part="1" more="true"] one`,
				`<14>1 ` + stamp + ` - - - - [meta sequenceId="6"][hpcr@32473 part="2" more="false"] two`,
				`<14>1 ` + stamp + ` - - - - [meta sequenceId="7"] next`,
			},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, receive(t, tt.o, tt.host, 5, tt.entries...)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestSequenceWraps(t *testing.T) {
	if next := nextSeq(maxSeqID); next != 1 {
		t.Errorf("after the highest number comes %d", next)
	}
}

func TestHugeText(t *testing.T) {
	out := receive(t, Origin{}, "h", maxSeqID, Entry{Text: bytes.Repeat([]byte("ü"), maxText)})
	last := out[len(out)-1]
	if want := fmt.Sprintf(`part="%d" more="false" cut="%d"]`, len(out), maxText); !strings.Contains(last, want) {
		t.Errorf("no %s in %.160q", want, last)
	}
}

var code = regexp.MustCompile(`HPL\d`)

// FuzzFrame: any entries make frames that a receiver can take apart again,
// each within the size, of valid UTF-8, without a control character or, from a
// container, a code; and the parts make up the text.
func FuzzFrame(f *testing.F) {
	f.Add([]byte("plain"), []byte("next"), "app", "value", "host", 3, 4)
	f.Add([]byte("\x00\n\xff"), []byte("HPL11000E"), "a b", `"]\`, "h\n", -1, 9)
	f.Add(bytes.Repeat([]byte("é"), 9000), []byte{}, "hpcr-agent", "HPL1", "d", 1, 6)
	f.Fuzz(func(t *testing.T, one, two []byte, app, value, host string, facility, severity int) {
		o := Origin{Facility: facility, App: app, ProcID: value, Data: []Param{{"service", value}, {"image", app}}, Foreign: true}
		msgs := receive(t, o, host, 1, Entry{Time: noon, Severity: severity, MsgID: value, Text: one, More: true}, Entry{Time: noon, Severity: severity, Text: two})
		var joined strings.Builder
		for i, m := range msgs {
			if len(m) > maxMessage || !utf8.ValidString(m) || !strings.HasPrefix(m, "<") {
				t.Errorf("message of %d octets: %.80q", len(m), m)
			}
			if strings.ContainsFunc(m, func(r rune) bool { return r < ' ' && r != '\t' || r >= 0x7f && r < 0xa0 }) {
				t.Errorf("control character in %.80q", m)
			}
			words := strings.SplitN(m, " ", 7)
			if len(words) != 7 || strings.HasPrefix(words[3], ownApps) {
				t.Fatalf("%.200q", m)
			}
			sd, ok := strings.CutPrefix(words[6], fmt.Sprintf(`[meta sequenceId="%d"][hpcr@32473 service="`, i+1))
			if !ok {
				t.Fatalf("%.200q", m)
			}
			end := 0
			for quoted := true; quoted || sd[end] != ']'; end++ { // as RFC 5424 §6.3.3 reads it
				switch sd[end] {
				case '\\':
					end++
				case '"':
					quoted = !quoted
				}
			}
			if want := fmt.Sprintf(` part="%d" more="%v"`, i+1, i < len(msgs)-1); !strings.HasSuffix(sd[:end], want) {
				t.Fatalf("no %s in %q", want, sd[:end])
			}
			if code.MatchString(sd) {
				t.Errorf("a code in %.200q", sd)
			}
			joined.WriteString(strings.TrimPrefix(sd[end+1:], " "))
		}
		want := string(appendText(appendText(nil, one, true), two, true))
		if joined.String() != want && len(one) < maxText && len(two) < maxText {
			t.Errorf("%q became %q", want, joined.String())
		}
	})
}

func newSpool(names ...string) *spool {
	s := &spool{}
	for _, n := range names {
		s.sources = append(s.sources, &Source{name: n})
	}
	return s
}

// TestSpoolShares: a source that floods loses its own; one that holds less
// than an equal share loses nothing; what remains is in order.
func TestSpoolShares(t *testing.T) {
	s := newSpool("chatty", "quiet", "idle")
	chatty, quiet := s.sources[0], s.sources[1]
	const payload = 1000
	fits := spoolBytes / (payload + itemCost)
	seq := uint32(0)
	put := func(src *Source) {
		seq++
		s.push(&item{src: src, seq: seq, msg: make([]byte, payload)})
	}
	quietPut := 0
	for i := range 3 * fits {
		put(chatty)
		if i%10 == 0 && quietPut < fits/3-1 {
			put(quiet)
			quietPut++
		}
	}
	if quiet.lost != 0 || quiet.n != quietPut {
		t.Errorf("the quiet source lost %d of %d", quiet.lost, quietPut)
	}
	if want := 3*fits - chatty.n; int(chatty.lost) != want || chatty.gap != chatty.lost || s.lost != chatty.lost || chatty.n != fits-quietPut {
		t.Errorf("chatty lost %d, want %d; it holds %d of %d", chatty.lost, want, chatty.n, fits)
	}
	if s.bytes > spoolBytes || s.n != fits {
		t.Errorf("%d octets in %d items", s.bytes, s.n)
	}
	last, got := uint32(0), map[*Source]int{}
	for s.n > 0 {
		it := s.pop()
		if it.seq <= last {
			t.Fatalf("%d after %d", it.seq, last)
		}
		last = it.seq
		got[it.src]++
	}
	if got[chatty] != fits-quietPut || got[quiet] != quietPut || s.bytes != 0 || s.first != nil || s.last != nil || chatty.first != nil || chatty.last != nil {
		t.Errorf("left %+v, %d octets", got, s.bytes)
	}
}

func TestFlight(t *testing.T) {
	begin := time.Now()
	at := func(s float64) time.Time { return begin.Add(time.Duration(s * float64(time.Second))) }
	var f flight
	small := func(n int, end uint64) (out []*item) {
		for range n {
			out = append(out, &item{msg: make([]byte, 100), end: end})
		}
		return out
	}
	want := func(when string, n int) {
		t.Helper()
		if len(f.items) != n || f.bytes != size(f.items) {
			t.Errorf("%s %d items of %d octets, want %d items", when, len(f.items), f.bytes, n)
		}
	}
	f.add(small(3, 100))
	f.settle(at(0), 0)
	f.add(small(2, 200))
	f.settle(at(1), 100)
	want("after a second", 5)
	f.settle(at(30.5), 150)
	want("before thirty seconds since the first acknowledgement", 5)
	f.settle(at(31.1), 150)
	want("after them", 2)
	for s := 32.0; s < 1000; s++ {
		f.settle(at(s), 150)
	}
	want("what is never acknowledged stays: after 1000 s", 2)
	if len(f.marks) > int(recentFor/markEvery)+2 {
		t.Errorf("%d marks", len(f.marks))
	}
	f.settle(at(1000), 200)
	f.settle(at(1031), 200)
	want("acknowledged at last", 0)

	f = flight{}
	f.add(small(recentBytes/(100+itemCost)+50, 10))
	f.settle(at(0), 9)
	if len(f.items) != recentBytes/(100+itemCost)+50 {
		t.Error("what is not acknowledged was given up")
	}
	f.settle(at(0.1), 10)
	if f.bytes > recentBytes || f.bytes < recentBytes-2*(100+itemCost) {
		t.Errorf("%d octets stay", f.bytes)
	}
}

func TestBackoff(t *testing.T) {
	for attempt, want := range map[int]time.Duration{0: time.Second, 1: 2 * time.Second, 5: 32 * time.Second, 6: time.Minute, 1000: time.Minute} {
		if low, high := backoff(attempt, 0), backoff(attempt, 0.999999); low != want/2 || high > want || high < want*9/10 {
			t.Errorf("attempt %d: %v to %v, want %v to %v", attempt, low, high, want/2, want)
		}
	}
}
