package contract

import (
	"crypto/rand"
	"strings"
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
}

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
	n := len(r.whole)
	r.whole = append(r.whole, run)
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
	return before, r.whole[int(behind[0]-'A')*26+int(behind[1]-'A')], behind[2:], true
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
