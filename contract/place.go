package contract

import (
	"bytes"
	"strings"

	"go.yaml.in/yaml/v4"
)

// Position is a place in the contract's own file, for editors to jump to.
type Position struct{ Line, Column int }

// positions gives every finding its place in user-data: the line itself where
// the text stands there, else the value that holds it (a token, an archive).
func (r *run) positions(findings []Finding) {
	lines := bytes.Split(r.files.UserData, []byte("\n"))
	for i := range findings {
		f := &findings[i]
		f.File = r.position(lines, f.Document, Position{f.Line, f.Column})
	}
}

func (r *run) position(lines [][]byte, doc string, p Position) Position {
	switch doc {
	case r.workload.name, r.env.name:
		s := &r.workload
		if doc == r.env.name {
			s = &r.env
		}
		if s.encrypted || s.place.n == nil {
			return Position{s.place.line, s.place.col}
		}
		return inBlock(lines, s.place.n, p)
	case "compose", "play":
		a := r.workload.body.get(doc).get("archive")
		if doc == "play" && !a.present() {
			a = r.workload.body.get(doc)
		}
		return r.position(lines, a.doc, Position{a.line, a.col})
	}
	return p
}

// inBlock finds a place of a literal block's text in the file around it: the
// text begins on the line below the indicator, moved to the right. Other
// styles do not keep lines; there it is the value's own place.
func inBlock(lines [][]byte, n *node, p Position) Position {
	whole := Position{n.line, n.col}
	if n.quote&yaml.LiteralStyle == 0 || p.Line < 1 {
		return whole
	}
	text := n.text
	for line := n.line; line < len(lines); line++ {
		first, rest, _ := strings.Cut(text, "\n")
		if strings.TrimSpace(first) == "" && rest != "" {
			text = rest
			continue
		}
		raw := strings.TrimSuffix(string(lines[line]), "\r")
		indent, found := strings.CutSuffix(raw, first)
		if !found || strings.TrimLeft(indent, " ") != "" || n.line+p.Line > len(lines) {
			return whole
		}
		return Position{n.line + p.Line, p.Column + len(indent)}
	}
	return whole
}
