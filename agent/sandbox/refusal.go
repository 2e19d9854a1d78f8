package sandbox

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"

	"hpcr/agent/hpl"
)

// refusal is a child's answer when what it was given does not hold (status 1).
type refusal struct {
	Code   hpl.Code `json:"code"`
	Path   string   `json:"path"`
	Detail string   `json:"detail"`
	Cause  string   `json:"cause"`
}

// Refuse writes err, with its verdict, as the child's answer.
func Refuse(w io.Writer, err error) error {
	e := hpl.From(err)
	r := refusal{Code: e.Code, Path: e.Path, Detail: e.Detail}
	if e.Err != nil {
		r.Cause = e.Err.Error()
	}
	return json.NewEncoder(w).Encode(r)
}

var (
	refusalPath   = regexp.MustCompile(`^(/[A-Za-z0-9_.#-]{1,64})*$`)
	refusalDetail = regexp.MustCompile(`^[ -~]*$`)
)

// ReadRefusal takes the child's word for the reason, as far as it is one: the
// child has read hostile bytes. Otherwise the error has the given code and
// detail. It is an *hpl.Error.
func ReadRefusal(out []byte, code hpl.Code, detail string) error {
	var r refusal
	d := json.NewDecoder(bytes.NewReader(out))
	d.DisallowUnknownFields()
	err := d.Decode(&r)
	e, known := hpl.Lookup(r.Code)
	if err != nil || !known || !e.Fatal || len(r.Path) > 256 || len(r.Detail) > 400 ||
		!refusalPath.MatchString(r.Path) || !refusalDetail.MatchString(r.Detail) {
		return hpl.Wrap(err, code, "", detail)
	}
	cause := errors.New("no further cause")
	if r.Cause != "" {
		cause = fmt.Errorf("%.500q", r.Cause)
	}
	return hpl.Wrap(cause, r.Code, r.Path, r.Detail)
}
