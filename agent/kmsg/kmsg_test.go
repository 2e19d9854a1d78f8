package kmsg

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"syscall"
	"testing"
)

func TestParse(t *testing.T) {
	for name, tt := range map[string]struct {
		in   string
		want string // severity, number, text; "" = refused
	}{
		"a message of the kernel's":   {"6,339,5140900,-;NET: Registered\n", "6 339 NET: Registered"},
		"one with a dictionary":       {"30,340,5690716,-;udevd[80]: starting\n SUBSYSTEM=acpi\n DEVICE=+acpi:PNP0A03:00\n", "6 340 udevd[80]: starting"},
		"fields of a later kernel":    {"4,341,1,c,caller=T1;text; with a semicolon\n", "4 341 text; with a semicolon"},
		"no text":                     {"3,1,2,-;", "3 1 "},
		"no semicolon":                {"6,339,5140900,-", ""},
		"no number":                   {"6,x,1,-;text\n", ""},
		"a priority beyond all":       {"999999,1,1,-;text\n", ""},
		"too few fields":              {"6,1;text\n", ""},
		"nothing":                     {"", ""},
		"a number beyond 64 bits":     {"6,18446744073709551616,1,-;text\n", ""},
		"the largest number there is": {"6,18446744073709551615,1,-;text\n", "6 18446744073709551615 text"},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := Parse([]byte(tt.in))
			got := fmt.Sprintf("%d %d %s", r.Severity, r.Seq, r.Text)
			if err != nil {
				got = ""
			}
			if got != tt.want {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

const tooLong = "a record that the buffer does not hold"

// reads gives one element a read; nil is the ring's overrun.
type reads [][]byte

func (r *reads) Read(p []byte) (int, error) {
	if len(*r) == 0 {
		return 0, os.ErrClosed
	}
	b := (*r)[0]
	*r = (*r)[1:]
	if string(b) == tooLong {
		return 0, &os.PathError{Op: "read", Path: "/dev/kmsg", Err: syscall.EINVAL}
	}
	if b == nil {
		return 0, &os.PathError{Op: "read", Path: "/dev/kmsg", Err: syscall.EPIPE}
	}
	return copy(p, b), nil
}

func TestFollowCountsWhatWasOverwritten(t *testing.T) {
	var got []string
	r := &reads{[]byte("6,7,1,-;a\n"), []byte("6,8,1,-;b\n"), nil, []byte("6,12,1,-;c\n")}
	if err := Follow(r, func(r Record, missed uint64) { got = append(got, fmt.Sprintf("%s%d", r.Text, missed)) }); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, []string{"a0", "b0", "c3"}) {
		t.Errorf("%q", got)
	}
	if err := Follow(&errs{io.ErrUnexpectedEOF}, nil); err == nil {
		t.Error("took an error for the end")
	}
}

// TestFollowSkipsOddRecords: one record that cannot be read is counted as missing
// and does not end the log; nothing but such records does.
func TestFollowSkipsOddRecords(t *testing.T) {
	for name, odd := range map[string][]byte{"another form": []byte("nonsense"), "too long": []byte(tooLong)} {
		t.Run(name, func(t *testing.T) {
			var got []string
			r := &reads{[]byte("6,7,1,-;a\n"), odd, []byte("6,9,1,-;c\n")}
			if err := Follow(r, func(r Record, missed uint64) { got = append(got, fmt.Sprintf("%s%d", r.Text, missed)) }); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got, []string{"a0", "c1"}) {
				t.Errorf("%q", got)
			}
			all := reads(slices.Repeat([][]byte{odd}, maxOdd))
			if err := Follow(&all, nil); err == nil {
				t.Error("goes on without end")
			}
		})
	}
}

type errs struct{ err error }

func (e *errs) Read([]byte) (int, error) { return 0, e.err }

// FuzzParse: no panic; what is taken is one line of the input, with a severity.
func FuzzParse(f *testing.F) {
	f.Add([]byte("6,339,5140900,-;NET: Registered\n SUBSYSTEM=x\n"))
	f.Add([]byte("6,1;x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := Parse(b)
		if err == nil && (r.Severity < 0 || r.Severity > 7 || bytes.ContainsRune(r.Text, '\n') || !bytes.Contains(b, r.Text)) {
			t.Errorf("%+v", r)
		}
	})
}
