package contract

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
	"go.yaml.in/yaml/v4/plugin/loaderlimits"
)

// Bounds of one YAML document.
const (
	maxDocument = 16 << 20 // bytes, as the contract itself
	maxDepth    = 64       // nesting
	maxNodes    = 200_000  // after aliases are expanded
	maxScalars  = 48 << 20 // bytes of all scalars after aliases are expanded
	maxMarks    = 600_000  // characters that can start a node, counted before parsing
)

type nodeKind uint8

const (
	scalarNode nodeKind = iota
	mapNode
	listNode
)

// node is one value of a strict YAML document: no duplicate keys, string keys
// only, aliases and merges expanded within a budget.
type node struct {
	kind  nodeKind
	tag   string // "!!str", "!!int", "!!bool", "!!null", ...
	text  string // of a scalar
	keys  []*node
	vals  []*node // of a mapping beside keys; of a list alone
	doc   string  // document that line and col count in
	line  int
	col   int
	quote yaml.Style
}

// yamlError is a document that is not strict YAML. Its message is ours and
// holds no text of the document.
type yamlError struct {
	msg       string
	line, col int
	syntax    bool  // not YAML at all, as opposed to YAML that we refuse
	err       error // the parser's words, for the owner
}

func (e *yamlError) Error() string { return e.msg }
func (e *yamlError) Unwrap() error { return e.err }

// parseYAML reads one document. An empty one yields nil without an error.
func parseYAML(doc string, data []byte) (*node, *yamlError) {
	return parseWith(doc, data, new(runs))
}

// parseWith keeps the document's long runs in cut; nil leaves them in.
func parseWith(doc string, data []byte, cut *runs) (*node, *yamlError) {
	if len(data) > maxDocument {
		return nil, &yamlError{msg: "the document is larger than 16 MiB: put large data into an image or a volume"}
	}
	if !utf8.Valid(data) {
		return nil, &yamlError{msg: "the document is not UTF-8 text: save it as UTF-8", syntax: true}
	}
	if bytes.IndexByte(data, 0) >= 0 {
		return nil, &yamlError{msg: "the document holds a NUL byte: give the plain YAML text", syntax: true}
	}
	data = cutRuns(cut, data)
	cut.measure(data)
	marks := 0
	for _, c := range data {
		switch c {
		case '\n', ',', '[', '{', ':', '-', '?', '&', '*':
			marks++
		}
	}
	if marks > maxMarks {
		return nil, &yamlError{msg: "the document has too many lines or entries: put large data into an archive"}
	}
	var root, second yaml.Node
	loader, err := yaml.NewLoader(bytes.NewReader(data),
		yaml.WithPlugin(loaderlimits.New(loaderlimits.DepthValue(maxDepth), loaderlimits.AliasValue(maxNodes))))
	if err == nil {
		err = loader.Load(&root)
	}
	if errors.Is(err, io.EOF) {
		return nil, nil
	}
	if err == nil {
		switch err = loader.Load(&second); {
		case errors.Is(err, io.EOF):
			err = nil
		case err == nil:
			return nil, &yamlError{msg: "there is more than one YAML document: remove what follows the second ---", line: second.Line, col: cut.column(second.Line, second.Column)}
		}
	}
	if err != nil {
		e := &yamlError{msg: "the text is not one YAML document: check indentation, quotes and brackets", syntax: true, err: err}
		var le *yaml.LoadError
		if errors.As(err, &le) {
			e.line, e.col = le.Mark.Line, le.Mark.Column
			// What is still open at the end is missed behind the last line.
			text := bytes.TrimRight(data, "\n")
			line, start := lastLine(text)
			if e.line > line {
				e.line, e.col = line, utf8.RuneCount(text[start:])+1
			}
			e.col = cut.column(e.line, e.col)
		}
		return nil, e
	}
	if root.Kind == 0 || len(root.Content) == 0 {
		return nil, nil
	}
	b := builder{doc: doc, cut: cut}
	n, yerr := b.build(&root, 0)
	if yerr != nil {
		return nil, yerr
	}
	return n, nil
}

// builder copies the parser's tree into ours and keeps the budget.
type builder struct {
	doc     string
	cut     *runs
	nodes   int
	scalars int
}

func (b *builder) refuse(y *yaml.Node, format string, args ...any) *yamlError {
	return &yamlError{msg: fmt.Sprintf(format, args...), line: y.Line, col: b.cut.column(y.Line, y.Column)}
}

func (b *builder) build(y *yaml.Node, depth int) (*node, *yamlError) {
	b.nodes++
	b.scalars += b.cut.length(y.Value) + b.cut.length(y.Tag)
	if b.nodes > maxNodes || b.scalars > maxScalars {
		return nil, b.refuse(y, "the document grows beyond its bounds, by aliases or by size: write the values out")
	}
	if depth > maxDepth {
		return nil, b.refuse(y, "the document is nested deeper than %d levels: flatten it", maxDepth)
	}
	n := &node{doc: b.doc, line: y.Line, col: b.cut.column(y.Line, y.Column), quote: y.Style, tag: b.cut.restore(y.ShortTag())}
	switch y.Kind {
	case yaml.DocumentNode:
		return b.build(y.Content[0], depth+1)
	case yaml.AliasNode:
		// A cycle runs into the depth bound.
		v, err := b.build(y.Alias, depth+1)
		if err != nil {
			return nil, err
		}
		v.line, v.col = y.Line, b.cut.column(y.Line, y.Column)
		return v, nil
	case yaml.ScalarNode:
		n.text = b.cut.restore(y.Value)
		return n, nil
	case yaml.SequenceNode:
		n.kind = listNode
		for _, c := range y.Content {
			v, err := b.build(c, depth+1)
			if err != nil {
				return nil, err
			}
			n.vals = append(n.vals, v)
		}
		return n, nil
	case yaml.MappingNode:
		n.kind = mapNode
		return n, b.fill(n, y, depth)
	default:
		return nil, b.refuse(y, "the document holds something that is neither text, list nor mapping")
	}
}

func (b *builder) fill(n *node, y *yaml.Node, depth int) *yamlError {
	var merged []*node
	seen := make(map[string]bool, len(y.Content)/2)
	for i := 0; i+1 < len(y.Content); i += 2 {
		k, err := b.build(y.Content[i], depth+1)
		if err != nil {
			return err
		}
		v, err := b.build(y.Content[i+1], depth+1)
		if err != nil {
			return err
		}
		if k.tag == "!!merge" {
			merged = append(merged, v)
			continue
		}
		// A key like 1 or true is text to every reader of contracts.
		if k.kind != scalarNode || k.tag == "!!null" || k.tag == "!!binary" {
			return b.refuse(y.Content[i], "a key is not plain text: write it as text before the colon")
		}
		if seen[k.text] {
			return b.refuse(y.Content[i], "a key stands twice in one mapping: remove one of the two")
		}
		seen[k.text] = true
		n.keys, n.vals = append(n.keys, k), append(n.vals, v)
	}
	for _, m := range merged {
		sources := []*node{m}
		if m.kind == listNode {
			sources = m.vals
		}
		for _, s := range sources {
			if s.kind != mapNode {
				return b.refuse(y, "a merge key (<<) takes a mapping: write the values out")
			}
			for i, k := range s.keys {
				if !seen[k.text] {
					seen[k.text] = true
					n.keys, n.vals = append(n.keys, k), append(n.vals, s.vals[i])
				}
			}
		}
	}
	return nil
}

// get finds a key's value, nil if the mapping has none.
func (n *node) get(key string) *node {
	if n == nil || n.kind != mapNode {
		return nil
	}
	for i, k := range n.keys {
		if k.text == key {
			return n.vals[i]
		}
	}
	return nil
}

func (n *node) isString() bool { return n != nil && n.kind == scalarNode && n.tag == "!!str" }

// yaml is the node as the library's tree, for writing it out, without its long
// runs.
func (n *node) yaml(cut *runs) *yaml.Node {
	y := &yaml.Node{Tag: n.tag, Style: n.quote &^ yaml.TaggedStyle}
	switch n.kind {
	case scalarNode:
		y.Kind, y.Value = yaml.ScalarNode, cutRuns(cut, n.text)
	case listNode:
		y.Kind = yaml.SequenceNode
		for _, v := range n.vals {
			y.Content = append(y.Content, v.yaml(cut))
		}
	case mapNode:
		y.Kind = yaml.MappingNode
		for i, k := range n.keys {
			y.Content = append(y.Content, k.yaml(cut), n.vals[i].yaml(cut))
		}
	}
	return y
}
