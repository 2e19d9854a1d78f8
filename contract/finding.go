package contract

import (
	"errors"
	"strconv"
	"strings"

	"hpcr/agent/hpl"
)

// Severity of a finding.
type Severity string

const (
	SeverityError   Severity = "error"   // the guest refuses the contract
	SeverityWarning Severity = "warning" // the guest accepts, the author should look
	SeverityNote    Severity = "note"    // worth knowing
)

// Finding is one thing that lint says about a contract. Path names keys as
// the contract does and is for the contract's owner only; the guest shows
// HostPath, where every key that an author chose is "#n" in document order.
type Finding struct {
	Code     hpl.Code `json:"code"`
	Severity Severity `json:"severity"`
	Path     string   `json:"path"`
	Document string   `json:"document"` // user-data, workload, env, compose, play
	Line     int      `json:"line"`     // 1-based, in Document; 0 = unknown
	Column   int      `json:"column"`
	Message  string   `json:"message"` // what is wrong; no text of the contract
	Fix      string   `json:"fix"`     // what to change
	HostPath string   `json:"-"`
	File     Position `json:"-"` // set by lint: the same place, or what holds it, in user-data

	err error
}

func (f *Finding) hplError() *hpl.Error {
	return hpl.Wrap(f.err, f.Code, f.HostPath, f.detail())
}

func (f *Finding) detail() string {
	if f.Fix == "" {
		return f.Message
	}
	return f.Message + ": " + f.Fix
}

// maxFindings bounds what a contract full of mistakes can make us keep.
const maxFindings = 200

// report collects findings of one run.
type report struct {
	findings []Finding
	failed   bool
}

func (r *report) add(f Finding) {
	r.failed = r.failed || f.Severity == SeverityError
	if len(r.findings) < maxFindings || (f.Severity == SeverityError && !r.hasError()) {
		r.findings = append(r.findings, f)
	}
}

func (r *report) hasError() bool { return r.firstError() != nil }

func (r *report) firstError() *Finding {
	for i := range r.findings {
		if r.findings[i].Severity == SeverityError {
			return &r.findings[i]
		}
	}
	return nil
}

// failedAt says whether there is an error at a place already: what follows
// from it need not be said as well.
func (r *report) failedAt(a at) bool {
	for i := range r.findings {
		if f := &r.findings[i]; f.Severity == SeverityError && f.Path == a.path {
			return true
		}
	}
	return false
}

// at is a place in a contract: a node (nil if it is missing) and its two names.
type at struct {
	n          *node
	path, host string
	doc        string // where to point if n is nil
	line, col  int
}

// root starts a path, "/workload" for example. A nil node points at line 1.
func root(name, doc string, n *node) at {
	a := at{n: n, path: "/" + name, host: "/" + name, doc: doc, line: 1, col: 1}
	return a.onto(n)
}

func (a at) onto(n *node) at {
	if a.n = n; n != nil {
		a.doc, a.line, a.col = n.doc, n.line, n.col
	}
	return a
}

// get goes to a key that the schema defines. If it is missing, the place
// keeps its parent's line.
func (a at) get(key string) at {
	v := a.n.get(key)
	return at{path: a.path + "/" + escape(key), host: a.host + "/" + escape(key), doc: a.doc, line: a.line, col: a.col}.onto(v)
}

// entry goes to the i-th value of a mapping whose keys authors choose.
func (a at) entry(i int) at {
	return at{path: a.path + "/" + escape(a.n.keys[i].text), host: a.host + "/#" + strconv.Itoa(i+1)}.onto(a.n.vals[i])
}

// key is the place of the i-th key itself.
func (a at) key(i int) at {
	e := a.entry(i)
	e.line, e.col, e.doc = a.n.keys[i].line, a.n.keys[i].col, a.n.keys[i].doc
	return e
}

// item goes to the i-th value of a list.
func (a at) item(i int) at {
	s := "/" + strconv.Itoa(i)
	return at{path: a.path + s, host: a.host + s}.onto(a.n.vals[i])
}

func (a at) present() bool { return a.n != nil }

// escape is RFC 6901's.
func escape(key string) string { return pointer.Replace(key) }

var pointer = strings.NewReplacer("~", "~0", "/", "~1")

func (r *report) say(sev Severity, code hpl.Code, a at, message, fix string, err error) {
	r.add(Finding{Code: code, Severity: sev, Path: a.path, HostPath: a.host, Document: a.doc,
		Line: a.line, Column: a.col, Message: message, Fix: fix, err: err})
}

func (r *report) fail(code hpl.Code, a at, message, fix string) {
	r.say(SeverityError, code, a, message, fix, nil)
}

func (r *report) failCause(err error, code hpl.Code, a at, message, fix string) {
	r.say(SeverityError, code, a, message, fix, err)
}

func (r *report) warn(code hpl.Code, a at, message, fix string) {
	r.say(SeverityWarning, code, a, message, fix, nil)
}

// failYAML reports a section or file that is not strict YAML.
func (r *report) failYAML(code hpl.Code, a at, e *yamlError) {
	if e.line > 0 {
		a.line, a.col = e.line, e.col
	}
	message, fix, _ := strings.Cut(e.msg, ": ")
	r.failCause(errors.Unwrap(e), code, a, message, fix)
}

// schema is the code of every rule of contract.md §9.
const schema hpl.Code = "HPL05001E"

// mapping says whether a is a mapping, and reports it if not.
func (r *report) mapping(a at) bool {
	if a.n != nil && a.n.kind == mapNode {
		return true
	}
	r.fail(schema, a, "this must be a mapping", `write "key: value" lines below it, or remove the key`)
	return false
}

func (r *report) list(a at) bool {
	if a.n != nil && a.n.kind == listNode {
		return true
	}
	r.fail(schema, a, "this must be a list", `begin each entry with "- "`)
	return false
}

// str returns a string value; numbers and booleans are not strings.
func (r *report) str(a at) (string, bool) {
	if a.n.isString() {
		return a.n.text, !r.open(a)
	}
	r.fail(schema, a, "this must be text", "put the value in quotes")
	return "", false
}

// open reports a value that its author has yet to fill in.
func (r *report) open(a at) bool {
	if a.n.text != FillIn {
		return false
	}
	fix, known := fillIns[a.path[strings.LastIndexByte(a.path, '/')+1:]]
	if !known {
		fix = "replace it by a value of your own"
	}
	r.fail(schema, a, "this value is still to be filled in", fix)
	return true
}

// openBelow does the same for parts whose fields the rules do not read. The
// host sees where the part is, no more.
func (r *report) openBelow(a at) {
	if !a.present() {
		return
	}
	if a.n.isString() {
		r.open(a)
	}
	for i := range a.n.vals {
		below := a.item
		if a.n.kind == mapNode {
			below = a.entry
		}
		b := below(i)
		b.host = a.host
		r.openBelow(b)
	}
}

// required is get for a mandatory key.
func (r *report) required(a at, key string) (at, bool) {
	v := a.get(key)
	if v.present() {
		return v, true
	}
	r.fail(schema, v, "this key is missing", "add it")
	return v, false
}

// unsupported refuses a field that the contract knows and this version does
// not act on.
func (r *report) unsupported(code hpl.Code, a at, what string) {
	if a.present() {
		r.fail(code, a, what+" is not supported by this image", "remove it from the contract")
	}
}

// boolean is true, or false also if it is missing.
func (r *report) boolean(a at) bool {
	var b bool
	if a.present() && setBool(&b, a.n) != nil {
		r.fail(schema, a, "this must be true or false", "write true or false, without quotes")
	}
	return b
}

// matching is str with a rule.
func (r *report) matching(a at, ok func(string) bool, message, fix string) (string, bool) {
	s, isStr := r.str(a)
	if !isStr {
		return "", false
	}
	if !ok(s) {
		r.fail(schema, a, message, fix)
		return "", false
	}
	return s, true
}

// closed refuses keys that a closed mapping does not have.
func (r *report) closed(a at, known ...string) {
	for i, k := range a.n.keys {
		if !contains(known, k.text) {
			r.fail(schema, a.key(i), "this key does not belong here", "remove it or correct its name; "+listing(known))
		}
	}
}

// loose warns of keys that an open mapping ignores.
func (r *report) loose(a at, known ...string) {
	for i, k := range a.n.keys {
		if !contains(known, k.text) {
			r.warn("", a.key(i), "this key is not part of the contract and has no effect", "remove it or correct its name")
		}
	}
}

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}

func listing(known []string) string {
	if len(known) == 0 {
		return "nothing may stand here"
	}
	return "known are " + strings.Join(known, ", ")
}
