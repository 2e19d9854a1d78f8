package contract

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"io"
	"slices"
	"strings"
	"unicode/utf8"
)

// Contracts carry megabytes of base64 in one scalar: a token, an archive. The
// YAML library grows each scalar by appending and holds its text several times
// over. So long runs are cut out before the library sees them and put back
// behind it. What it sees has the same structure: inside a run no character
// means anything to YAML.

const (
	longRun = 8 << 10
	// runEdge bytes stay at both ends: escapes and indicators that reach into a
	// run are whole, and what YAML bounds by 1024 characters stays beyond it.
	runEdge = 1 << 10
)

// runs are what was cut out. The zero value has none yet; a nil one never has.
type runs struct {
	mark  string // random: no document can name it
	whole []string
	known map[string]int // index in whole
	gaps  []gap          // of the parsed document, in its order
}

// gap is where a run stood: so many columns are missing behind it on its line,
// those of earlier gaps counted in.
type gap struct{ line, col, missing int }

// cutRuns returns the text with a short name in the place of the middle of each
// long run; without any it is the text itself.
func cutRuns[T string | []byte](r *runs, text T) T {
	if r == nil {
		return text
	}
	var out []byte
	done := 0 // copied so far
	for i := 0; i < len(text); {
		if !inRun[text[i]] {
			i++
			continue
		}
		start := i
		for i < len(text) && inRun[text[i]] {
			i++
		}
		if i-start < longRun || len(r.whole) == 26*26 {
			continue
		}
		if r.mark == "" {
			r.mark = rand.Text()
		}
		out = append(append(out, text[done:start]...), r.name(string(text[start:i]))...)
		done = i
	}
	if out == nil {
		return text
	}
	return T(append(out, text[done:]...))
}

// name remembers a run and gives it one that is as much of a run.
func (r *runs) name(run string) string {
	n, had := r.known[run]
	if !had {
		if r.known == nil {
			r.known = map[string]int{}
		}
		n = len(r.whole)
		r.known[run], r.whole = n, append(r.whole, run)
	}
	return run[:runEdge] + r.mark + string([]byte{byte('A' + n/26), byte('A' + n%26)}) + run[len(run)-runEdge:]
}

// inRun are the characters of base64 and of what stands in a token beside it.
var inRun = func() (in [256]bool) {
	for _, c := range []byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=.-") {
		in[c] = true
	}
	return in
}()

// next takes a text apart at its first name. The edges of a run belong to what
// is around it: an escape may have eaten into them.
func (r *runs) next(text string) (before, run, behind string, found bool) {
	if r == nil || r.mark == "" || len(text) < len(r.mark) {
		return text, "", "", false
	}
	before, behind, found = strings.Cut(text, r.mark)
	if !found {
		return text, "", "", false
	}
	return before, r.named(behind[0], behind[1]), behind[2:], true
}

// measure finds the gaps of a document whose runs were cut out.
func (r *runs) measure(text []byte) {
	if r == nil || r.mark == "" {
		return
	}
	line, start, done := 1, 0, 0
	for {
		at := bytes.Index(text[done:], []byte(r.mark))
		if at < 0 {
			return
		}
		if more, last := lastLine(text[done : done+at]); more > 1 {
			line, start = line+more-1, done+last
		}
		done += at
		name := text[done+len(r.mark):]
		g := gap{line, utf8.RuneCount(text[start:done]), len(middle(r.named(name[0], name[1]))) - len(r.mark) - 2}
		if n := len(r.gaps); n > 0 && r.gaps[n-1].line == line {
			g.missing += r.gaps[n-1].missing
		}
		r.gaps = append(r.gaps, g)
		done += len(r.mark) + 2
	}
}

// lastLine is the number of a text's last line and where it begins.
func lastLine(text []byte) (line, start int) {
	line = 1
	for i := 0; i < len(text); {
		n := lineBreak(text[i:])
		if i += max(n, 1); n > 0 {
			line, start = line+1, i
		}
	}
	return line, start
}

// lineBreak is the length of the line's end that a text begins with, as the
// YAML library counts lines.
func lineBreak(text []byte) int {
	switch c := text[0]; {
	case c == '\n':
		return 1
	case c == '\r' && len(text) > 1 && text[1] == '\n':
		return 2
	case c == '\r':
		return 1
	case c < 0xc2: // the rest, fast
		return 0
	}
	for _, b := range []string{"\u0085", "\u2028", "\u2029"} {
		if bytes.HasPrefix(text, []byte(b)) {
			return len(b)
		}
	}
	return 0
}

// column is where the parser's column of a line is in the whole document.
func (r *runs) column(line, col int) int {
	if r == nil {
		return col
	}
	behind, _ := slices.BinarySearchFunc(r.gaps, gap{line: line, col: col}, func(a, b gap) int {
		return cmp.Or(cmp.Compare(a.line, b.line), cmp.Compare(a.col, b.col))
	})
	if behind == 0 || r.gaps[behind-1].line != line {
		return col
	}
	return col + r.gaps[behind-1].missing
}

func middle(run string) string { return run[runEdge : len(run)-runEdge] }

// length is that of a text once its runs are back.
func (r *runs) length(text string) int {
	before, run, behind, found := r.next(text)
	if !found {
		return len(text)
	}
	return len(before) + len(middle(run)) + r.length(behind)
}

// restore puts the runs back. A text that is one run costs no copy.
func (r *runs) restore(text string) string {
	before, run, behind, found := r.next(text)
	switch {
	case !found:
		return text
	case before == run[:runEdge] && behind == run[len(run)-runEdge:]:
		return run
	}
	var b strings.Builder
	b.Grow(r.length(text))
	for ; found; before, run, behind, found = r.next(behind) {
		b.WriteString(before)
		b.WriteString(middle(run))
		text = behind
	}
	b.WriteString(text)
	return b.String()
}

// write is restore to a stream: it needs no memory for the whole.
func (r *runs) write(w io.Writer, text []byte) (int, error) {
	sum := 0
	for {
		before, behind, found := text, []byte(nil), false
		if r.mark != "" {
			before, behind, found = bytes.Cut(text, []byte(r.mark))
		}
		n, err := w.Write(before)
		sum += n
		if err != nil || !found {
			return sum, err
		}
		n, err = io.WriteString(w, middle(r.named(behind[0], behind[1])))
		sum += n
		if err != nil {
			return sum, err
		}
		text = behind[2:]
	}
}

func (r *runs) named(a, b byte) string { return r.whole[int(a-'A')*26+int(b-'A')] }
