package compose

import (
	"bytes"
	"errors"
	"io"
	"strings"

	"go.yaml.in/yaml/v4"

	"hpcr/agent/hpl"
)

// Bounds of the compose file: far above any real one, low enough that
// aliases cannot blow up memory.
const (
	maxFile     = 1 << 20
	maxNodes    = 100_000 // after aliases are followed
	maxDepth    = 64
	maxServices = 256
)

// document is the parsed compose file before interpolation.
type document struct {
	root  *yaml.Node
	index map[string]int // service name → 1-based place
}

// parse reads one compose file; errors point to at.
func parse(text []byte, at string) (*document, error) {
	if len(text) > maxFile {
		return nil, hpl.New("HPL06009E", at, "the compose file is larger than 1 MiB: make it smaller")
	}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	var doc, more yaml.Node
	if err := dec.Decode(&doc); err != nil {
		// The parser's text may quote the document: it is for the owner's log.
		return nil, hpl.Wrap(err, "HPL06009E", at, "the compose file is not YAML: check it with docker compose config")
	}
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		return nil, hpl.New("HPL06009E", at, "the compose file holds more than one YAML document: keep one")
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 || doc.Content[0].Kind != yaml.MappingNode {
		return nil, hpl.New("HPL06009E", at, "the compose file is not a mapping: begin it with services")
	}
	c := counter{}
	if !c.within(doc.Content[0], 0) {
		return nil, hpl.New("HPL06009E", at, "the compose file nests or repeats too much through aliases: write it out")
	}
	if c.tagged {
		return nil, hpl.New("HPL06009E", at, "the tags !reset and !override, and other tags of one's own, are not supported: write out what is meant")
	}
	return &document{root: doc.Content[0], index: map[string]int{}}, nil
}

// model is a fresh copy as plain maps; the loader changes what it is given.
func (d *document) model() (map[string]any, error) {
	var raw map[string]any
	if err := d.root.Decode(&raw); err != nil {
		return nil, hpl.Wrap(err, "HPL06009E", Root, "the compose file is not valid YAML, for example by a repeated key: check it with docker compose config")
	}
	delete(raw, "version") // obsolete, and the loader would print a warning
	return raw, nil
}

// mappingKeys lists the keys below root[key] in the order of the text.
func mappingKeys(root *yaml.Node, key string) []string {
	for i := 0; i+1 < len(root.Content); i += 2 {
		if root.Content[i].Value != key {
			continue
		}
		v := root.Content[i+1]
		for v.Kind == yaml.AliasNode {
			v = v.Alias
		}
		var keys []string
		for j := 0; v.Kind == yaml.MappingNode && j+1 < len(v.Content); j += 2 {
			keys = append(keys, v.Content[j].Value)
		}
		return keys
	}
	return nil
}

// counter walks a document with its aliases followed, up to the bounds.
type counter struct {
	n      int
	tagged bool // there is a tag that is not YAML's own
}

func (c *counter) within(n *yaml.Node, depth int) bool {
	if c.n++; c.n > maxNodes || depth > maxDepth {
		return false
	}
	if n.Tag != "" && !strings.HasPrefix(n.Tag, "!!") && !strings.HasPrefix(n.Tag, "tag:yaml.org,2002:") {
		c.tagged = true
	}
	if n.Kind == yaml.AliasNode {
		return n.Alias != nil && c.within(n.Alias, depth+1)
	}
	for _, child := range n.Content {
		if !c.within(child, depth+1) {
			return false
		}
	}
	return true
}
