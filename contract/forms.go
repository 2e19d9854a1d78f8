package contract

import (
	"errors"
	"slices"

	"go.yaml.in/yaml/v4"

	"hpcr/agent/secret"
)

// forms writes user-data.decrypted as HPCR does (a sorted map of strings,
// literal blocks, 4 blanks), its masked variant, and workload-data.decrypted
// (both sections as real mappings). Seeds are masked in the latter from the
// start: nothing that reads it needs them.
func (r *run) forms() {
	clearText, err1 := r.userData(func(s *section) (string, error) { return s.plainText() })
	masked, err2 := r.userData(func(s *section) (string, error) {
		if !hasSeeds(s.body.n) {
			return s.plainText()
		}
		return dumpString(mask(s.body.n))
	})
	both := &node{kind: mapNode, tag: "!!map"}
	for _, s := range []*section{&r.env, &r.workload} {
		both.keys = append(both.keys, stringNode(s.name))
		both.vals = append(both.vals, mask(s.body.n))
	}
	data, err3 := dumpString(both)
	if err := errors.Join(err1, err2, err3); err != nil {
		r.failCause(err, "HPL05003E", r.top, "the contract cannot be written out", "remove unusual characters from it")
		return
	}
	r.plan.UserDataDecrypted, r.plan.UserDataMasked = secret.New(clearText), secret.New(masked)
	r.plan.WorkloadDataDecrypted = secret.FromString(data)
}

func (s *section) plainText() (string, error) {
	if s.text != nil {
		return string(s.text.Bytes()), nil
	}
	return dumpString(s.body.n)
}

func (r *run) userData(text func(*section) (string, error)) ([]byte, error) {
	out := &node{kind: mapNode, tag: "!!map"}
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
			v, err = text(&r.workload)
		case key == "env":
			v, err = text(&r.env)
		case key == "attestationPublicKey":
			v = r.decryptedKey
		case n.kind == scalarNode:
			v = n.text
		default:
			v, err = dumpString(n)
		}
		if err != nil {
			return nil, err
		}
		out.keys, out.vals = append(out.keys, stringNode(key)), append(out.vals, stringNode(v))
	}
	return dump(out)
}

func stringNode(s string) *node { return &node{tag: "!!str", text: s} }

// dump writes YAML. Without a style of its own the library takes a literal
// block for text of several lines wherever that can hold it.
func dump(n *node) ([]byte, error) {
	return yaml.Dump(n.yaml(), yaml.WithV3Defaults(), yaml.WithLineWidth(-1))
}

func dumpString(n *node) (string, error) {
	b, err := dump(n)
	if err != nil {
		return "", err
	}
	s := string(b)
	clear(b)
	return s, nil
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
