package logship

import (
	"strconv"
	"strings"
	"time"
)

// Facilities and severities of RFC 5424 §6.2.1 that the guest uses.
const (
	FacilityKernel = 0
	FacilityUser   = 1 // containers
	FacilityDaemon = 3 // the agent and its children
	FacilitySyslog = 5 // this package's own

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
	maxText    = 256 << 10 // octets of one Entry's text, before splitting
	maxParam   = 300       // octets of one parameter of structured data
	maxParams  = 8
	maxSeqID   = 1<<31 - 1 // RFC 5424 §7.3.1

	// sdID names our structured data. 32473 is RFC 5612's number for examples:
	// we have none.
	sdID = "hpcr@32473"
)

// Origin is what all messages of a source have in common. Empty fields become "-".
type Origin struct {
	Name     string // for records of loss, and unique
	Facility int    // 0–23
	App      string
	ProcID   string
	Data     []Param // at most 8, each cut at 300 octets
	Foreign  bool    // the text is not the agent's own; with FacilityUser App is not either
}

// Param is one parameter of structured data. Name is a constant of ours.
type Param struct{ Name, Value string }

// Entry is one line of the log, or a piece of one.
type Entry struct {
	Time     time.Time // zero = now
	Severity int       // 0–7
	MsgID    string
	Text     []byte // not kept
	More     bool   // the line goes on in the source's next entry
}

// ownApps begins the APP-NAMEs of the agent and its children.
const ownApps = "hpcr-"

// appName keeps a container's name apart from the agent's and the kernel's.
func (o Origin) appName() string {
	if o.Foreign && o.Facility == FacilityUser && (strings.HasPrefix(o.App, ownApps) || o.App == "kernel") {
		return "service/" + o.App
	}
	return o.App
}

// form is an origin rendered once: the header's end and the structured data.
type form struct {
	facility int
	ids      []byte // HOSTNAME APP-NAME PROCID, each with a blank after it
	data     []byte // parameters, each with a blank before it
	foreign  bool
}

func newForm(o Origin, host string) form {
	if o.Facility < 0 || o.Facility > 23 {
		o.Facility = FacilityUser
	}
	f := form{facility: o.Facility, foreign: o.Foreign}
	f.ids = append(appendField(f.ids, host, 255), ' ')
	f.ids = append(appendField(f.ids, o.appName(), 48), ' ')
	f.ids = append(appendField(f.ids, o.ProcID, 128), ' ')
	for _, p := range o.Data[:min(len(o.Data), maxParams)] {
		f.data = appendParam(f.data, p.Name, p.Value)
	}
	return f
}

const seqStart = `[meta sequenceId="`

// render writes e as one or more messages that lack only their number, each at
// most maxMessage octets with it. part is the number of parts that the line
// had in entries before; the count after this one is returned, 0 at a line's end.
func (f form) render(e Entry, part int) (out []*item, parts int) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	severity := e.Severity
	if severity < 0 || severity > 7 {
		severity = SeverityNotice
	}
	text, cut := e.Text, 0
	if len(text) > maxText {
		end := cutRune(text, maxText)
		text, cut = text[:end], len(text)-end
	}
	head := make([]byte, 0, 64+len(f.ids))
	head = append(strconv.AppendInt(append(head, '<'), int64(f.facility*8+severity), 10), ">1 "...)
	head = append(e.Time.UTC().AppendFormat(head, "2006-01-02T15:04:05.000000Z"), ' ')
	head = append(head, f.ids...)
	head = append(appendField(head, e.MsgID, 32), ' ')
	head = append(head, seqStart...)

	const extra = len(`2147483647"]`) + len(`[`+sdID+` part="9223372036854775807" more="false" cut="9999999999"] `)
	room := maxMessage - len(head) - len(f.data) - extra
	clean := text
	if !plain(text, f.foreign) {
		clean = appendText(make([]byte, 0, len(text)+32), text, f.foreign)
	}
	for first := true; first || len(clean) > 0; first = false { // no text is one message, too
		n := cutRune(clean, room)
		more := e.More || n < len(clean)
		it := &item{cut: len(head), at: time.Now()}
		b := make([]byte, 0, len(head)+len(f.data)+n+len(extraSD))
		b = append(append(b, head...), `"]`...)
		if len(f.data) > 0 || more || part > 0 || cut > 0 {
			b = append(append(b, `[`+sdID...), f.data...)
			if more || part > 0 {
				part++
				b = append(strconv.AppendInt(append(b, ` part="`...), int64(part), 10), `" more="`...)
				b = append(strconv.AppendBool(b, more), '"')
			}
			if cut > 0 && n == len(clean) {
				b = append(strconv.AppendInt(append(b, ` cut="`...), int64(cut), 10), '"')
			}
			b = append(b, ']')
		}
		if n > 0 {
			b = append(append(b, ' '), clean[:n]...)
		}
		it.msg, clean = b, clean[n:]
		out = append(out, it)
	}
	if !e.More {
		part = 0
	}
	return out, part
}

const extraSD = `"][` + sdID + ` part="99999" more="false"] `

// plain says that appendText would change nothing.
func plain(text []byte, foreign bool) bool {
	for i, c := range text {
		if (c < ' ' && c != '\t') || c >= 0x7f || foreign && c == 'H' && looksLikeCode(text[i:]) {
			return false
		}
	}
	return true
}

// appendFrame writes an item with its number and RFC 5425's length before it.
func (it *item) appendFrame(b []byte) []byte { return it.appendMarked(b, nil) }

// appendMarked is appendFrame with an element before the other structured data.
func (it *item) appendMarked(b, mark []byte) []byte {
	var digits [10]byte
	seq := strconv.AppendUint(digits[:0], uint64(it.seq), 10)
	b = strconv.AppendInt(b, int64(len(it.msg)+len(seq)+len(mark)), 10)
	data := max(0, it.cut-len(seqStart))
	b = append(append(b, ' '), it.msg[:data]...)
	b = append(append(b, mark...), it.msg[data:it.cut]...)
	return append(append(b, seq...), it.msg[it.cut:]...)
}

func nextSeq(seq uint32) uint32 {
	if seq >= maxSeqID {
		return 1
	}
	return seq + 1
}
