// Package kmsg reads the kernel's messages for the owner's log.
//
// The form is trusted, the text is not: it holds names that containers and the
// host chose. Not promised: messages that the kernel's ring overwrote before
// they were read; their number is given.
package kmsg

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strconv"
	"syscall"
)

// Record is one message (Documentation/ABI/testing/dev-kmsg).
type Record struct {
	Severity int // 0–7
	Seq      uint64
	Text     []byte // one line; what is not printable is written as \xNN by the kernel
}

// maxRecord is the kernel's PRINTK_MESSAGE_MAX.
const maxRecord = 8 << 10

var errForm = errors.New("not a record of /dev/kmsg")

// Parse takes what one read of /dev/kmsg returned:
// "priority,sequence,microseconds,flags[,…];text\n KEY=value\n…".
func Parse(b []byte) (Record, error) {
	head, rest, ok := bytes.Cut(b, []byte{';'})
	if !ok {
		return Record{}, errForm
	}
	fields := bytes.SplitN(head, []byte{','}, 3)
	if len(fields) < 3 {
		return Record{}, errForm
	}
	priority, err := strconv.ParseUint(string(fields[0]), 10, 16)
	if err != nil {
		return Record{}, errForm
	}
	seq, err := strconv.ParseUint(string(fields[1]), 10, 64)
	if err != nil {
		return Record{}, errForm
	}
	text, _, _ := bytes.Cut(rest, []byte{'\n'})
	return Record{Severity: int(priority & 7), Seq: seq, Text: text}, nil
}

// Open opens the kernel's ring at its oldest message.
func Open() (*os.File, error) {
	return os.OpenFile("/dev/kmsg", os.O_RDONLY|syscall.O_NONBLOCK, 0)
}

// maxOdd is how many reads may fail one after the other.
const maxOdd = 1000

// Follow reads records until r is closed, each with the number of those that
// are missing before it: overwritten, too long or of another form. Each read of r
// must return one record.
func Follow(r io.Reader, say func(rec Record, missed uint64)) error {
	buf := make([]byte, maxRecord)
	next, begun, odd := uint64(0), false, 0
	for {
		n, err := r.Read(buf)
		switch {
		case errors.Is(err, syscall.EPIPE): // the ring went over our place
			continue
		case errors.Is(err, os.ErrClosed), errors.Is(err, io.EOF):
			return nil
		case err != nil && !errors.Is(err, syscall.EINVAL): // a record longer than buf, which the kernel then skips
			return err
		}
		rec, perr := Parse(buf[:n])
		if err = errors.Join(err, perr); err != nil {
			if odd++; odd == maxOdd {
				return err
			}
			continue
		}
		odd = 0
		missed := uint64(0)
		if begun && rec.Seq > next {
			missed = rec.Seq - next
		}
		next, begun = rec.Seq+1, true
		say(rec, missed)
	}
}
