package contract

import (
	"errors"
	"slices"
	"strings"
	"text/template"
	"text/template/parse"

	"go.yaml.in/yaml/v4"

	"hpcr/agent/hpl"
	"hpcr/contract/archive"
)

// ConfigMapName is the ConfigMap that every pod may take the merged
// environment from.
const ConfigMapName = "contract.config.map"

const playCode hpl.Code = "HPL15002E"

// Bounds of what templates may cost.
const (
	maxRendered = 16 << 20 // bytes of all rendered values
	maxTemplate = 16 << 10 // bytes of one value that is a template
	maxRanges   = 16       // loops of all templates, each over the environment
)

// templateFuncs are the functions that make no text: those that do can double
// it with each call, unseen by any bound on what is written.
var templateFuncs = []string{"and", "or", "not", "eq", "ne", "lt", "le", "gt", "ge", "len", "index"}

// pods unpacks the archive and fills the templates.
func (r *run) pods() {
	p := r.workload.body.get("play")
	if p.n == nil || p.n.kind != mapNode || r.failed && !r.lint {
		return
	}
	var (
		files []archive.File
		all   []descriptor
	)
	if a := p.get("archive"); a.n.isString() && !r.failedAt(a) {
		var err error
		if files, err = archive.Unpack(a.n.text); err != nil {
			e := hpl.From(err)
			r.failFrom(a, hpl.Wrap(e.Err, playCode, e.Path, e.Detail))
		}
		all = r.archived(a, files)
	}
	env := r.mergedEnv()
	l := p.get("resources")
	for i := range l.vals() {
		all = append(all, descriptor{l.item(i), l.n.vals[i]})
	}
	t := rendering{run: r, env: env, unset: map[string]bool{}}
	l = p.get("templates")
	for i := range l.vals() {
		d := l.item(i)
		filled := d
		filled.n = t.fill(d)
		all = append(all, descriptor{filled, d.n})
	}
	if len(t.unset) > 0 && !r.workload.closed && !r.env.closed {
		r.say(SeverityNote, "", l, "the templates use variables that nobody sets, and they are empty", "set them under env of the contract", nil)
	}
	if r.failed || r.workload.closed || r.env.closed {
		return // without all variables pods are not what they will be
	}
	if p := r.translate(all, files, env); !r.failed {
		r.plan.Compose = p
	}
}

// quoted is text that no reader takes for anything else.
func quoted(s string) *node { return &node{tag: "!!str", text: s, quote: yaml.DoubleQuotedStyle} }

// rendering fills templates as HPCR does: on the parsed descriptor, value by
// value, so that what a variable holds never becomes structure.
type rendering struct {
	*run
	env    map[string]string
	unset  map[string]bool
	size   int
	ranges int
}

func (r *rendering) fill(a at) *node {
	n := *a.n
	switch {
	case n.kind == mapNode:
		n.vals = slices.Clone(n.vals)
		for i := range n.vals {
			n.vals[i] = r.fill(a.entry(i))
		}
	case n.kind == listNode:
		n.vals = slices.Clone(n.vals)
		for i := range n.vals {
			n.vals[i] = r.fill(a.item(i))
		}
	case n.isString() && strings.Contains(n.text, "{{"):
		return r.value(a)
	}
	return &n
}

func (r *rendering) value(a at) *node {
	const fix = "write variables of the contract as {{ .Env.NAME }}"
	if len(a.n.text) > maxTemplate {
		r.fail(playCode, a, "the template is longer than 16 KiB", "put large data into the archive")
		return a.n
	}
	t, err := template.New("").Option("missingkey=zero").Parse(a.n.text)
	if err != nil {
		r.failCause(err, playCode, a, "the template cannot be read", fix)
		return a.n
	}
	if len(t.Templates()) > 1 || !r.simple(t.Root, false) {
		r.fail(playCode, a, "the template does more than fill in variables", fix+"; functions that make text are not supported, loops only over .Env and not inside each other")
		return a.n
	}
	out := limited{left: maxRendered - r.size}
	if err := t.Execute(&out, struct{ Env map[string]string }{r.env}); err != nil {
		r.failCause(err, playCode, a, "the template cannot be filled in, or grows beyond 16 MiB", fix)
		return a.n
	}
	r.size += out.Len()
	v := quoted(out.String())
	v.doc, v.line, v.col = a.doc, a.line, a.col
	return v
}

var errTooLong = errors.New("too long")

type limited struct {
	strings.Builder
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	if l.left -= len(p); l.left < 0 {
		return 0, errTooLong
	}
	return l.Builder.Write(p)
}

// simple says whether a template ends soon and stays small: no calls of
// templates, which may call themselves; no functions that make text; loops over
// the environment alone, none within another. It notes the variables that
// nobody sets.
func (r *rendering) simple(n parse.Node, inLoop bool) bool {
	all := func(inLoop bool, nodes ...parse.Node) bool {
		return !slices.ContainsFunc(nodes, func(n parse.Node) bool { return !r.simple(n, inLoop) })
	}
	list := func(l *parse.ListNode, inLoop bool) bool { return l == nil || all(inLoop, l.Nodes...) }
	switch n := n.(type) {
	case *parse.ListNode:
		return list(n, inLoop)
	case *parse.ActionNode:
		return all(inLoop, n.Pipe)
	case *parse.PipeNode:
		for _, c := range n.Cmds {
			if !all(inLoop, c.Args...) {
				return false
			}
		}
	case *parse.FieldNode:
		if len(n.Ident) == 2 && n.Ident[0] == "Env" {
			if _, set := r.env[n.Ident[1]]; !set {
				r.unset[n.Ident[1]] = true
			}
		}
	case *parse.IfNode:
		return all(inLoop, n.Pipe) && list(n.List, inLoop) && list(n.ElseList, inLoop)
	case *parse.WithNode:
		return all(inLoop, n.Pipe) && list(n.List, inLoop) && list(n.ElseList, inLoop)
	case *parse.RangeNode:
		r.ranges++
		return !inLoop && r.ranges <= maxRanges && n.Pipe.String() == rangeOver(n.Pipe) && list(n.List, true) && list(n.ElseList, inLoop)
	case *parse.IdentifierNode:
		return slices.Contains(templateFuncs, n.Ident)
	case *parse.TemplateNode:
		return false
	}
	return true
}

// rangeOver is the one form of loop that is taken: over .Env, with variables
// or without.
func rangeOver(p *parse.PipeNode) string {
	var names []string
	for _, v := range p.Decl {
		names = append(names, v.String())
	}
	if len(names) == 0 {
		return ".Env"
	}
	return strings.Join(names, ", ") + " := .Env"
}
