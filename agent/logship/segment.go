package logship

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"time"
)

// A segment is a file of messages that wait. All numbers are big-endian:
//
//	8 octets  segmentMagic
//	4         count of messages
//	each      4 length of the text, 4 sequenceId, 2 where it goes, 8 nanoseconds since 1970, the text
//	32        SHA-256 of all before
//
// The sum finds torn writes, and what a host did to blocks of an encrypted disk
// without integrity, whose plain text it does not know.
const (
	segmentMagic = "hpcrlog\x01"
	segmentHead  = len(segmentMagic) + 4
	recordHead   = 4 + 4 + 2 + 8
	segmentBytes = 1 << 20 // a segment takes messages until it has so many octets
	maxSegment   = segmentBytes + segmentHead + recordHead + maxMessage + sha256.Size
	maxSegments  = 1 << 16 // files that are looked at
)

var (
	segmentName = regexp.MustCompile(`^[0-9]{20}\.log$`)
	errSegment  = errors.New("not a whole file of log messages")
)

// keptElement marks messages of an earlier boot, whose numbers are not this boot's.
const keptElement = `[kept@32473]`

// segment is one file.
type segment struct {
	number uint64
	size   int64
	n      int // messages in it; of an earlier boot's, what its head says
	at     time.Time
	// lost is what is missing without it, by source. Nil of an earlier boot's.
	lost map[*Source]uint64
	left int // messages that have been read and not settled; the pump's
}

func (g *segment) earlier() bool { return g.lost == nil }

func (g *segment) path(dir string) string {
	return filepath.Join(dir, fmt.Sprintf("%020d.log", g.number))
}

func encodeSegment(items []*item) []byte {
	b := binary.BigEndian.AppendUint32([]byte(segmentMagic), uint32(len(items)))
	for _, it := range items {
		b = binary.BigEndian.AppendUint32(b, uint32(len(it.msg)))
		b = binary.BigEndian.AppendUint32(b, it.seq)
		b = binary.BigEndian.AppendUint16(b, uint16(it.cut))
		b = binary.BigEndian.AppendUint64(b, uint64(it.at.UnixNano()))
		b = append(b, it.msg...)
	}
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

func decodeSegment(b []byte) ([]*item, error) {
	n, err := segmentCount(b)
	if err == nil && len(b) < segmentHead+sha256.Size {
		err = errSegment // a head alone
	}
	if err != nil {
		return nil, err
	}
	body, want := b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	if sum := sha256.Sum256(body); !bytes.Equal(sum[:], want) {
		return nil, errSegment
	}
	body = body[segmentHead:]
	var items []*item
	for range n {
		if len(body) < recordHead {
			return nil, errSegment
		}
		size := binary.BigEndian.Uint32(body)
		it := &item{
			seq: binary.BigEndian.Uint32(body[4:]),
			cut: int(binary.BigEndian.Uint16(body[8:])),
			at:  time.Unix(0, int64(binary.BigEndian.Uint64(body[10:]))),
		}
		body = body[recordHead:]
		if size > maxMessage || int(size) > len(body) || it.cut > int(size) || it.seq > maxSeqID {
			return nil, errSegment
		}
		it.msg, body = bytes.Clone(body[:size]), body[size:]
		items = append(items, it)
	}
	if len(body) > 0 {
		return nil, errSegment
	}
	return items, nil
}

// segmentCount reads the head. No message takes less than a record's.
func segmentCount(b []byte) (int, error) {
	if len(b) < segmentHead || string(b[:len(segmentMagic)]) != segmentMagic {
		return 0, errSegment
	}
	n := binary.BigEndian.Uint32(b[len(segmentMagic):])
	if n > uint32(maxSegment/recordHead) {
		return 0, errSegment
	}
	if len(b) > segmentHead && len(b) < segmentHead+int(n)*recordHead+sha256.Size {
		return 0, errSegment
	}
	return int(n), nil
}

// markEarlier puts keptElement behind the number's element.
func markEarlier(it *item) {
	end := it.cut + len(`"]`)
	if end > len(it.msg) || len(it.msg)+len(keptElement) > maxMessage {
		return // not of our making, or full: it goes as it is
	}
	it.msg = slices.Concat(it.msg[:end], []byte(keptElement), it.msg[end:])
}

// findSegments lists the files of earlier boots in dir, oldest first, and
// removes what a write left that did not end.
func findSegments(dir string) ([]*segment, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	names, err := d.Readdirnames(maxSegments)
	if err = errors.Join(ignoreEOF(err), d.Close()); err != nil {
		return nil, err
	}
	var out []*segment
	for _, name := range names {
		if name == unfinished {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				return nil, err
			}
		}
		if !segmentName.MatchString(name) {
			continue
		}
		number, err := strconv.ParseUint(name[:20], 10, 64)
		if err != nil || number == 0 {
			continue // more than 64 bits: not ours
		}
		g := &segment{number: number}
		head, size, err := readFile(g.path(dir), segmentHead)
		if err != nil {
			return nil, err
		}
		g.size = size
		g.n, _ = segmentCount(head) // 0 if it is none: that shows when it is read whole
		out = append(out, g)
	}
	slices.SortFunc(out, func(a, b *segment) int { return cmp.Compare(a.number, b.number) })
	return out, nil
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// unfinished is the name of a segment until it is whole.
const unfinished = "unfinished"

// readFile reads at most n octets of a regular file, and says its size.
func readFile(path string, n int) (b []byte, size int64, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|noFollow|noWait, 0)
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	if !info.Mode().IsRegular() {
		return nil, 0, fmt.Errorf("%s: %w", filepath.Base(path), errSegment)
	}
	b, err = io.ReadAll(io.LimitReader(f, int64(n)))
	return b, info.Size(), err
}

// load reads a segment whole.
func (g *segment) load(dir string) ([]*item, error) {
	b, size, err := readFile(g.path(dir), maxSegment)
	if err != nil {
		return nil, err
	}
	if size > int64(maxSegment) {
		return nil, errSegment
	}
	return decodeSegment(b)
}

// store writes a segment, whole or not at all. sync = it is on the disk when
// store returns.
func (g *segment) store(dir string, b []byte, sync bool) (err error) {
	path := filepath.Join(dir, unfinished)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|noFollow, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil && sync {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, remove(path)) // its room is wanted
	}
	if err := os.Rename(path, g.path(dir)); err != nil {
		return err
	}
	if !sync {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
