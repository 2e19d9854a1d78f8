package logship

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var lostLine = regexp.MustCompile(`\|log\.lost\|.* lost="(\d+)" source="web"`)

// arrived counts what the receiver has of a source that writes "n=1.", "n=2.", …
// It fails on what came in another order, or twice under other numbers.
func arrived(t *testing.T, r *rsyslog) (n map[int]bool, lost int) {
	t.Helper()
	n = map[int]bool{}
	ids := map[string]string{}
	last := 0
	for _, l := range r.lines(t) {
		if f := lostLine.FindStringSubmatch(l); f != nil {
			count, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			lost += count
		}
		_, text, ok := strings.Cut(l, "|n=")
		if !ok {
			if _, text, ok = strings.Cut(l, "| n="); !ok {
				continue
			}
		}
		word, _, _ := strings.Cut(text, ".")
		i, err := strconv.Atoi(word)
		if err != nil {
			t.Fatal(err)
		}
		id := seqID.FindString(l)
		if before, again := ids[word]; again {
			if before != id {
				t.Fatalf("%d came as %s and as %s", i, before, id)
			}
			continue
		}
		if ids[word] = id; i < last {
			t.Fatalf("%d came after %d", i, last)
		}
		last, n[i] = i, true
	}
	return n, lost
}

func waitStats(t *testing.T, s *Shipper, what string, ok func(Stats) bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(s.Stats()); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: %+v", what, s.Stats())
		}
	}
}

// writeLines writes lines of 1000 octets, no faster than the folder takes them.
func writeLines(t *testing.T, s *Shipper, from, to int) {
	t.Helper()
	web := s.Source(Origin{Name: "web", App: "web"})
	pad := strings.Repeat("x", 990)
	for i := from; i <= to; i++ {
		web.Send(Entry{Severity: SeverityInfo, Text: fmt.Appendf(nil, "n=%d.%s", i, pad)})
		if i%1000 == 0 {
			for end := time.Now().Add(5 * time.Second); s.Stats().SpooledSize > spillAt+2*segmentBytes && time.Now().Before(end); {
				time.Sleep(5 * time.Millisecond)
			}
		}
	}
}

func keep(t *testing.T, s *Shipper, f Folder) (n int) {
	t.Helper()
	n, err := s.Keep(f)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func segments(t *testing.T, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// TestBacklog: three times what memory may hold waits in a folder and arrives
// whole, in order; then the folder is empty.
func TestBacklog(t *testing.T) {
	a := newAuthority(t, "logs")
	r := newRsyslog(t, a, a.issue(t, nil))
	r.start(t)
	s := open(t, config(t, a, a.issue(t, nil), r.port))
	defer s.Close()
	dir := t.TempDir()
	keep(t, s, Folder{Dir: dir, Limit: 200 << 20})
	const n = 3 * spoolBytes / 1000
	writeLines(t, s, 1, 100)
	drain(t, s)
	r.stop(t)
	waitStats(t, s, "the break is noticed", func(st Stats) bool { return !st.Connected })
	writeLines(t, s, 101, n)
	st := s.Stats()
	if st.Lost != 0 || st.Kept == 0 || st.SpooledSize > spoolBytes || len(segments(t, dir)) < 20 {
		t.Errorf("while the server is away: %+v, %d files", st, len(segments(t, dir)))
	}
	r.start(t)
	r.waitLine(t, fmt.Sprintf("n=%d.", n))
	drain(t, s)
	if _, err := s.Park(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	r.stop(t)
	if got, lost := arrived(t, r); len(got) != n || lost != 0 {
		t.Errorf("%d of %d arrived, %d are counted as lost", len(got), n, lost)
	}
}

// TestBacklogFull: beyond the folder's limit, and beyond memory's, what is lost
// is counted; nothing waits for the disk.
func TestBacklogFull(t *testing.T) {
	for name, breaks := range map[string]func(t *testing.T, dir string) Folder{
		"limit reached": func(t *testing.T, dir string) Folder { return Folder{Dir: dir, Limit: 5 << 20} },
		"no room for any": func(t *testing.T, dir string) Folder {
			return Folder{Dir: dir, Limit: 10}
		},
		"files that cannot be written": func(t *testing.T, dir string) Folder {
			if err := os.Mkdir(filepath.Join(dir, "unfinished"), 0o700); err != nil {
				t.Fatal(err)
			}
			return Folder{Dir: dir, Limit: 1 << 30, Lasting: true}
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAuthority(t, "logs")
			r := newRsyslog(t, a, a.issue(t, nil))
			r.start(t)
			s := open(t, config(t, a, a.issue(t, nil), r.port))
			defer s.Close()
			dir := t.TempDir()
			f := breaks(t, dir)
			keep(t, s, Folder{Dir: t.TempDir()})
			s.mu.Lock() // Keep would remove what is in the way
			s.backlog.Folder = f
			s.mu.Unlock()
			r.stop(t)
			waitStats(t, s, "the break is noticed", func(st Stats) bool { return !st.Connected })
			const n = 3 * spoolBytes / 1000
			web := s.Source(Origin{Name: "web", App: "web"})
			pad := strings.Repeat("x", 990)
			for i := 1; i <= n; i++ {
				web.Send(Entry{Text: fmt.Appendf(nil, "n=%d.%s", i, pad)})
			}
			if st := s.Stats(); st.Lost == 0 || st.SpooledSize > spoolBytes {
				t.Errorf("%+v", st)
			}
			r.start(t)
			r.waitLine(t, fmt.Sprintf("n=%d.", n))
			drain(t, s)
			r.stop(t)
			got, lost := arrived(t, r)
			if len(got)+lost != n || lost == 0 {
				t.Errorf("%d of %d arrived, %d are counted as lost", len(got), n, lost)
			}
		})
	}
}

// TestPark: what the server did not take by the end is sent by the next boot,
// before its own, marked, and once.
func TestPark(t *testing.T) {
	a := newAuthority(t, "logs")
	r := newRsyslog(t, a, a.issue(t, nil))
	r.start(t)
	dir := t.TempDir()
	s := open(t, config(t, a, a.issue(t, nil), r.port))
	if n := keep(t, s, Folder{Dir: dir, Limit: 100 << 20, Lasting: true}); n != 0 {
		t.Errorf("an empty folder holds %d", n)
	}
	writeLines(t, s, 1, 50)
	drain(t, s)
	r.waitLine(t, "n=50.")
	r.stop(t)
	waitStats(t, s, "the break is noticed", func(st Stats) bool { return !st.Connected })
	writeLines(t, s, 51, 3000)
	waitStats(t, s, "what waits goes to a disk that lasts, though it is little", func(st Stats) bool { return st.Kept == 2950 })
	writeLines(t, s, 3001, 3100)
	kept, err := s.Park(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	writeLines(t, s, 4000, 4000) // too late
	if err := s.Close(); err == nil {
		t.Error("nothing is said of a message that was not sent")
	}

	r.start(t)
	s = open(t, config(t, a, a.issue(t, nil), r.port))
	defer s.Close()
	if n := keep(t, s, Folder{Dir: dir, Limit: 100 << 20, Lasting: true}); n != kept || n < 3050 {
		t.Errorf("the next boot finds %d messages of %d", n, kept)
	}
	s.Source(Origin{Name: "agent", App: "hpcr-agent"}).Send(Entry{Text: []byte("of the next boot")})
	drain(t, s)
	r.waitLine(t, "of the next boot")
	if kept, err := s.Park(t.Context()); kept != 0 || err != nil {
		t.Errorf("at the end of the next boot: %d messages kept, %v", kept, err)
	}
	if left := segments(t, dir); len(left) != 0 {
		t.Errorf("the folder holds %v", left)
	}
	r.stop(t)
	text := strings.Join(r.lines(t), "\n")
	seen := map[string]int{}
	for _, m := range regexp.MustCompile(`n=(\d+)\.`).FindAllStringSubmatch(text, -1) {
		seen[m[1]]++
	}
	for i := 51; i <= 3100; i++ {
		if seen[strconv.Itoa(i)] != 1 {
			t.Fatalf("line %d came %d times", i, seen[strconv.Itoa(i)])
		}
	}
	if !regexp.MustCompile(`\|\[meta sequenceId="\d+"\]\[kept@32473\]\| ?n=51\.`).MatchString(text) {
		t.Errorf("messages of an earlier boot are not marked: %.300q", text[strings.Index(text, "n=51.")-200:])
	}
	if strings.Index(text, "n=3100.") > strings.Index(text, "of the next boot") {
		t.Error("the next boot's came first")
	}
}

// TestDeadDisk: a disk that does not answer is given up; what was in its files
// is counted, what was on its way there is not lost.
func TestDeadDisk(t *testing.T) {
	a := newAuthority(t, "logs")
	r := newRsyslog(t, a, a.issue(t, nil))
	r.start(t)
	s := open(t, config(t, a, a.issue(t, nil), r.port))
	defer s.Close()
	dir := t.TempDir()
	keep(t, s, Folder{Dir: dir, Limit: 100 << 20})
	r.stop(t)
	waitStats(t, s, "the break is noticed", func(st Stats) bool { return !st.Connected })
	writeLines(t, s, 1, 6000)
	waitStats(t, s, "some are on the disk", func(st Stats) bool { return st.Kept > 0 && st.SpooledSize < spillAt })
	// A FIFO holds whoever opens it to write, as a dead disk does.
	fifo := filepath.Join(dir, unfinished)
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	writeLines(t, s, 6001, 9000)
	hangs := func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.backlog != nil && !s.backlog.since.IsZero() && len(s.backlog.writing) > 0
	}
	for end := time.Now().Add(time.Minute); !hangs(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nothing is written")
		}
	}
	s.giveUp(time.Now().Add(diskLimit / 2))
	if st := s.Stats(); st.Lost != 0 || st.Kept == 0 {
		t.Errorf("given up too early: %+v", st)
	}
	kept := s.Stats().Kept
	s.giveUp(time.Now().Add(2 * diskLimit))
	if st := s.Stats(); st.Kept != 0 || int(st.Lost) != kept {
		t.Errorf("of %d on the disk: %+v", kept, st)
	}
	r.start(t)
	r.waitLine(t, "n=9000.")
	if line := r.waitLine(t, "has not answered"); !strings.Contains(line, "|log.kept|") {
		t.Errorf("%q", line)
	}
	r.stop(t)
	if got, lost := arrived(t, r); len(got)+lost != 9000 || lost != kept {
		t.Errorf("%d arrived, %d are counted as lost of %d on the disk", len(got), lost, kept)
	}
	// The writer may end: nobody waits for it.
	f, err := os.OpenFile(fifo, os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}

// TestForeignFiles: what is in the folder and not a segment of ours is told, not
// sent, and does not stop the log; what has another name is left alone.
func TestForeignFiles(t *testing.T) {
	a := newAuthority(t, "logs")
	r := newRsyslog(t, a, a.issue(t, nil))
	r.start(t)
	dir := t.TempDir()
	const head = `<14>1 - h web - - [meta sequenceId="`
	good := encodeSegment([]*item{{msg: []byte(head + `"] an earlier boot's`), cut: len(head), seq: 7, at: noon}})
	flipped := bytes.Clone(good)
	flipped[30] ^= 1
	for name, b := range map[string][]byte{
		"00000000000000000001.log": flipped,
		"00000000000000000002.log": good[:len(good)-5],
		"00000000000000000003.log": good[:segmentHead],
		"00000000000000000006.log": {},
		"00000000000000000004.log": bytes.Repeat([]byte{0xff}, 3<<20),
		"00000000000000000005.log": good,
		"99999999999999999999.log": good,
		"notes.txt":                []byte("not ours"),
	} {
		file(t, dir, name, b)
	}
	s := open(t, config(t, a, a.issue(t, nil), r.port))
	defer s.Close()
	keep(t, s, Folder{Dir: dir, Limit: 100 << 20, Lasting: true})
	r.waitLine(t, `[kept@32473]|an earlier boot's`)
	drain(t, s)
	if _, err := s.Park(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.stop(t)
	if n := strings.Count(strings.Join(r.lines(t), "\n"), "cannot be read"); n != 5 {
		t.Errorf("%d of 5 bad files are told", n)
	}
	var names []string
	for _, p := range segments(t, dir) {
		names = append(names, filepath.Base(p))
	}
	if diff := cmp.Diff([]string{"99999999999999999999.log", "notes.txt"}, names); diff != "" {
		t.Error(diff)
	}
}

func TestKeepRefuses(t *testing.T) {
	a := newAuthority(t, "logs")
	r := newRsyslog(t, a, a.issue(t, nil))
	r.start(t)
	s := open(t, config(t, a, a.issue(t, nil), r.port))
	defer s.Close()
	linked := t.TempDir()
	if err := os.Symlink("/etc/passwd", filepath.Join(linked, "00000000000000000001.log")); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{filepath.Join(t.TempDir(), "missing"), linked} {
		if _, err := s.Keep(Folder{Dir: dir, Limit: 1 << 20}); err == nil {
			t.Errorf("%s is accepted", dir)
		}
	}
	// Without a folder there is nothing to park.
	if n, err := s.Park(context.Background()); n != 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}

// FuzzSegment: foreign octets never panic, and what is taken comes out as it
// went in.
func FuzzSegment(f *testing.F) {
	f.Add(encodeSegment(nil))
	f.Add(encodeSegment([]*item{{msg: []byte("abc"), cut: 1, seq: 2, at: noon}, {msg: nil, at: noon}}))
	f.Add([]byte(segmentMagic))
	f.Add([]byte(segmentMagic + "\x00\x00\x00\x00"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		items, err := decodeSegment(b)
		if err != nil {
			return
		}
		if !bytes.Equal(encodeSegment(items), b) {
			t.Error("another file")
		}
		for _, it := range items {
			markEarlier(it)
			it.appendFrame(nil)
		}
	})
}
