package contract

import (
	"io"
	"slices"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v4"
)

// forms are user-data.decrypted and workload-data.decrypted, without their
// long runs: those stay shared with the values that they are made of.
type forms struct {
	cut                          runs
	userData, workloadData       []byte
	userDataLen, workloadDataLen int // with the runs
}

func (f *forms) wipe() {
	if f != nil {
		clear(f.userData)
		clear(f.workloadData)
	}
}

// forms writes user-data.decrypted as HPCR does (a sorted map of strings,
// literal blocks, 4 blanks) and workload-data.decrypted (both sections as real
// mappings). Seeds are masked from the start: nothing that reads them needs
// those.
//
// Nothing but a container reads them: where none mounts them, they are not made.
func (r *run) forms() {
	if !r.plan.Compose.Binds(recordDir) {
		return
	}
	if err := r.writeForms(); err != nil {
		r.failCause(err, "HPL05003E", r.top, "the contract cannot be written out", "remove unusual characters from it")
	}
}

func (r *run) writeForms() error {
	f := &forms{}
	masked := map[string]string{}
	for _, s := range []*section{&r.env, &r.workload} {
		text, err := dumpCut(mask(s.body.n), &f.cut)
		if err != nil {
			return err
		}
		f.workloadData = append(f.workloadData, s.name+":\n"...)
		f.workloadData = appendIndented(f.workloadData, text)
		// What was opened inside a section stands opened in both files.
		if !hasSeeds(s.body.n) && s.opened == 0 {
			if text, err = s.plainText(&f.cut); err != nil {
				return err
			}
		}
		masked[s.name] = text
	}
	var err error
	f.userData, err = r.userData(&f.cut, func(s *section, _ *runs) (string, error) { return masked[s.name], nil })
	if err != nil {
		return err
	}
	if f.userDataLen, err = f.cut.write(io.Discard, f.userData); err != nil {
		return err
	}
	f.workloadDataLen, err = f.cut.write(io.Discard, f.workloadData)
	r.written = f
	return err
}

func (s *section) plainText(cut *runs) (string, error) {
	if s.text != nil {
		return string(cutRuns(cut, s.text.Bytes())), nil
	}
	return dumpCut(s.body.n, cut)
}

// userData keeps the long runs in cut.
func (r *run) userData(cut *runs, text func(*section, *runs) (string, error)) ([]byte, error) {
	var out []byte
	keys := make([]string, 0, len(r.top.n.keys))
	for _, k := range r.top.n.keys {
		keys = append(keys, k.text)
	}
	slices.Sort(keys)
	for _, key := range keys {
		var (
			v   string
			err error
		)
		switch n := r.top.n.get(key); {
		case key == "workload":
			v, err = text(&r.workload, cut)
		case key == "env":
			v, err = text(&r.env, cut)
		case key == "attestationPublicKey":
			v = r.decryptedKey
		case n.kind == scalarNode:
			v = cutRuns(cut, n.text)
		default:
			v, err = dumpCut(n, cut)
		}
		if err == nil {
			out, err = appendEntry(out, key, v)
		}
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// appendEntry writes one top-level key. Ordinary text of several lines, which
// may have many MiB, goes out directly; the library writes all else.
func appendEntry(out []byte, key, v string) ([]byte, error) {
	if !literal(v) || !recordName(key) || key[0] < 'A' {
		b, err := dump(&node{kind: mapNode, tag: "!!map", keys: []*node{stringNode(key)}, vals: []*node{stringNode(v)}})
		return append(out, b...), err
	}
	body := strings.TrimRight(v, "\n")
	chomp := ""
	switch len(v) - len(body) {
	case 0:
		chomp = "-"
	case 1:
	default:
		chomp = "+"
	}
	out = append(out, key+": |"+chomp+"\n"...)
	out = appendIndented(out, body)
	for range len(v) - len(body) - 1 {
		out = append(out, '\n')
	}
	return out, nil
}

// literal says whether text can stand in a literal block just as it is: lines
// of printable characters that neither begin the text nor end a line with
// white space.
func literal(v string) bool {
	if !strings.Contains(v, "\n") || v[0] == ' ' || v[0] == '\n' || v[0] == '\t' {
		return false
	}
	for i, c := range v {
		switch {
		case c == '\n':
			if p := v[i-1]; p == ' ' || p == '\t' {
				return false
			}
		case c == '\t' || c >= ' ' && c <= '~' || c > '~' && c < 0xfffd && unicode.IsPrint(c):
		default:
			return false
		}
	}
	last := v[len(v)-1]
	return last != ' ' && last != '\t'
}

// appendIndented moves every line that is not empty 4 blanks to the right.
func appendIndented(out []byte, text string) []byte {
	out = slices.Grow(out, len(text)+len(text)/8)
	for line := range strings.Lines(text) {
		if line != "\n" {
			out = append(out, "    "...)
		}
		out = append(out, line...)
	}
	if !strings.HasSuffix(text, "\n") {
		out = append(out, '\n')
	}
	return out
}

func stringNode(s string) *node { return &node{tag: "!!str", text: s} }

// dump writes YAML. Without a style of its own the library takes a literal
// block for text of several lines wherever that can hold it.
func dump(n *node) ([]byte, error) {
	s, err := dumpString(n)
	return []byte(s), err
}

func dumpString(n *node) (string, error) {
	var cut runs
	s, err := dumpCut(n, &cut)
	return cut.restore(s), err
}

// dumpCut leaves the long runs in cut.
func dumpCut(n *node, cut *runs) (string, error) {
	b, err := yaml.Dump(n.yaml(cut), yaml.WithV3Defaults(), yaml.WithLineWidth(-1))
	if err != nil {
		return "", err
	}
	defer clear(b)
	return string(b), nil
}

// seedKeys are the keys of a volume whose values are secrets of the disk.
var seedKeys = []string{"seed", "previousSeed"}

func hasSeeds(n *node) bool {
	v := n.get("volumes")
	return v != nil && v.kind == mapNode && len(v.vals) > 0
}

// mask copies a section with its seeds replaced.
func mask(n *node) *node {
	out := *n
	out.vals = slices.Clone(n.vals)
	for i, k := range n.keys {
		if k.text != "volumes" || n.vals[i].kind != mapNode {
			continue
		}
		vols := *n.vals[i]
		vols.vals = slices.Clone(vols.vals)
		for j, vol := range vols.vals {
			m := *vol
			m.vals = slices.Clone(m.vals)
			for l, key := range m.keys {
				if contains(seedKeys, key.text) {
					m.vals[l] = &node{tag: "!!str", text: SeedMask, quote: yaml.DoubleQuotedStyle}
				}
			}
			vols.vals[j] = &m
		}
		out.vals[i] = &vols
	}
	return &out
}
