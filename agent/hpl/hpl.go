// Package hpl is the catalogue of HPCR's messages and the error type that
// carries one of its codes from any room to the boot's verdict.
//
// It imports nothing of ours, and every room may import it. An Error's Detail
// is written for the host's eyes: it must hold no secret, no name that the
// contract chose, and no text that an attacker chose.
package hpl

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Code is a message code: "HPL", component (2 digits), number (3 digits) and
// a severity letter E, W or I, as in "HPL11001E".
type Code string

// Entry is one line of the catalogue.
type Entry struct {
	Code  Code
	Text  string // HPCR's wording; {NAME} marks a value
	When  string // what leads to it
	Unit  string // the systemd unit whose name HPCR prints before it; "" for the bootloader
	Fatal bool   // the boot fails
}

var byCode = func() map[Code]Entry {
	m := make(map[Code]Entry, len(Catalogue))
	for _, e := range Catalogue {
		m[e.Code] = e
	}
	return m
}()

// Lookup finds the catalogue's entry for a code.
func Lookup(c Code) (Entry, bool) {
	e, ok := byCode[c]
	return e, ok
}

// Bootloader says whether the code belongs to HPCR's bootloader phase, whose
// failures print no HPL10000E.
func (c Code) Bootloader() bool { return strings.HasPrefix(string(c), "HPL11") }

// Error is a failure with its verdict.
type Error struct {
	Code   Code
	Path   string // where in the contract: "/env/logging/syslog/port"; user-chosen keys as "#n"
	Detail string // one plain sentence: what is wrong and what to change
	Err    error  // cause, for the owner's log only; may be nil
}

// New makes an Error. Path may be empty.
func New(code Code, path, detail string) *Error {
	return &Error{Code: code, Path: path, Detail: detail}
}

// Wrap is New with a cause that never reaches the console.
func Wrap(err error, code Code, path, detail string) *Error {
	return &Error{Code: code, Path: path, Detail: detail, Err: err}
}

// Error is the owner's form, cause included. The console gets Line.
func (e *Error) Error() string {
	if e.Err == nil {
		return e.Line()
	}
	return e.Line() + ": " + e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// Line is the host's form: "HPL02003E: LUKS Open operation failed. -> PATH: detail".
func (e *Error) Line() string {
	return Message(e.Code, e.Path, e.Detail)
}

// placeholder is a value in the catalogue's text.
var placeholder = regexp.MustCompile(`\{[a-zA-Z_]+\}`)

// values are placeholders that no path can stand for: the detail says them.
var values = []string{"{n}", "{value}", "{keystate}"}

// Message renders a code with the catalogue's text, the path standing for the
// thing that the text names, and the detail behind HPCR's arrow.
func Message(code Code, path, detail string) string {
	rest := path
	text := placeholder.ReplaceAllStringFunc(byCode[code].Text, func(p string) string {
		if slices.Contains(values, p) || path == "" {
			return "…"
		}
		rest = "" // said once is enough
		return path
	})
	tail := detail
	if rest != "" && detail != "" {
		tail = rest + ": " + detail
	} else if rest != "" {
		tail = rest
	}
	if tail == "" {
		return fmt.Sprintf("%s: %s", code, text)
	}
	return fmt.Sprintf("%s: %s -> %s", code, text, tail)
}

// From finds the Error in a chain; an error that carries none is HPL11000E,
// an internal error.
func From(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return Wrap(err, "HPL11000E", "", "an unexpected failure inside the guest; its log has the cause")
}
