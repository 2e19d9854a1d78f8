package luks2

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// maxDepth is what a LUKS2 header needs, and one more.
const maxDepth = 6

// parseTree reads the JSON area of a header: one object, then only NUL up to
// the end. encoding/json alone would take doubled keys, other case and bytes
// behind the end, each of which two readers may understand differently.
func parseTree(area []byte) (map[string]any, error) {
	end := bytes.IndexByte(area, 0)
	if end < 0 {
		return nil, errors.New("the JSON area has no end")
	}
	if slices.ContainsFunc(area[end:], func(b byte) bool { return b != 0 }) {
		return nil, errors.New("bytes follow the JSON text")
	}
	if area[0] != '{' { // nor a blank before it
		return nil, errors.New("the JSON text does not begin with an object")
	}
	if slices.ContainsFunc(area[:end], func(b byte) bool { return b >= 0x80 }) {
		return nil, errors.New("the JSON text is not ASCII")
	}
	dec := json.NewDecoder(bytes.NewReader(area[:end]))
	dec.UseNumber()
	v, err := parseValue(dec, 0)
	if err != nil {
		return nil, fmt.Errorf("the JSON text is malformed: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one JSON value")
	}
	m, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New("the JSON text is not an object")
	}
	return m, nil
}

var errTree = errors.New("nesting, key or value not allowed here")

func parseValue(dec *json.Decoder, depth int) (any, error) {
	if depth > maxDepth {
		return nil, errTree
	}
	tok, err := dec.Token()
	if err != nil {
		return nil, errTree // the decoder's text may quote the host's bytes
	}
	switch tok {
	case json.Delim('{'):
		m := map[string]any{}
		for dec.More() {
			key, err := dec.Token()
			name, ok := key.(string)
			if err != nil || !ok {
				return nil, errTree
			}
			if _, double := m[name]; double {
				return nil, errTree
			}
			if m[name], err = parseValue(dec, depth+1); err != nil {
				return nil, err
			}
		}
		_, err = dec.Token()
		return m, wrapTree(err)
	case json.Delim('['):
		list := []any{}
		for dec.More() {
			v, err := parseValue(dec, depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err = dec.Token()
		return list, wrapTree(err)
	}
	return tok, nil
}

func wrapTree(err error) error {
	if err != nil {
		return errTree
	}
	return nil
}

// walker takes an object apart field by field and remembers the first field
// that is not as it must be. It never repeats what it read.
type walker struct {
	err error
}

func (w *walker) fail(where string) { w.want(where, "there, and of its type") }

// want says what the field must be, in our own words.
func (w *walker) want(where, what string) {
	if w.err == nil {
		w.err = fmt.Errorf("%s must be %s", where, what)
	}
}

// node is an object whose fields are taken one by one; done refuses the rest.
type node struct {
	w    *walker
	path string
	m    map[string]any
}

func (n node) take(key string) any {
	v, ok := n.m[key]
	if !ok {
		n.w.fail(n.path + "." + key)
	}
	delete(n.m, key)
	return v
}

func (n node) has(key string) bool { _, ok := n.m[key]; return ok }

func (n node) object(key string) node {
	m, ok := n.take(key).(map[string]any)
	if !ok {
		n.w.fail(n.path + "." + key)
		m = map[string]any{}
	}
	return node{n.w, n.path + "." + key, m}
}

func (n node) text(key string) string {
	s, ok := n.take(key).(string)
	if !ok {
		n.w.fail(n.path + "." + key)
	}
	return s
}

// exact takes a field that may have only the given values.
func (n node) exact(key string, want ...string) string {
	s := n.text(key)
	if !slices.Contains(want, s) {
		n.w.want(n.path+"."+key, strings.Join(want, " or "))
	}
	return s
}

func (n node) exactNumber(key string, want uint64) {
	if n.number(key, want, want) != want {
		n.w.fail(n.path + "." + key)
	}
}

// number takes a JSON number in plain decimal form.
func (n node) number(key string, low, high uint64) uint64 {
	num, ok := n.take(key).(json.Number)
	if !ok {
		n.w.fail(n.path + "." + key)
	}
	return n.decimal(key, num.String(), low, high)
}

// numeral takes a number written as a string, as LUKS2 does for 64 bits.
func (n node) numeral(key string, low, high uint64) uint64 {
	return n.decimal(key, n.text(key), low, high)
}

func (n node) decimal(key, s string, low, high uint64) uint64 {
	v, err := strconv.ParseUint(s, 10, 64)
	if err != nil || strconv.FormatUint(v, 10) != s || v < low || v > high {
		what := fmt.Sprint(low)
		if low != high {
			what = fmt.Sprintf("from %d to %d", low, high)
		}
		n.w.want(n.path+"."+key, what)
		return low
	}
	return v
}

// bytes takes base64 of an exact length.
func (n node) bytes(key string, size int) []byte {
	b, err := b64.DecodeString(n.text(key))
	if err != nil || len(b) != size {
		n.w.want(n.path+"."+key, fmt.Sprintf("%d bytes in base64", size))
		return make([]byte, size)
	}
	return b
}

// list takes an array of exactly these strings, in any order; what describes
// them.
func (n node) list(key string, want []string, what string) {
	got, ok := n.take(key).([]any)
	if !ok || len(got) != len(want) {
		n.w.want(n.path+"."+key, what)
		return
	}
	for _, w := range want {
		if !slices.Contains(got, any(w)) {
			n.w.want(n.path+"."+key, what)
		}
	}
}

func (n node) done() {
	if len(n.m) > 0 && n.w.err == nil {
		n.w.err = fmt.Errorf("%s has a field that may not be there", n.path)
	}
}
