package hpl

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
)

func TestCatalogue(t *testing.T) {
	form := regexp.MustCompile(`^HPL(0[12567895]|1[0-68])\d{3}[EWI]$`)
	for i, e := range Catalogue {
		if !form.MatchString(string(e.Code)) || e.Text == "" {
			t.Errorf("malformed: %+v", e)
		}
		if e.Fatal && !strings.HasSuffix(string(e.Code), "E") {
			t.Errorf("%s is fatal without the suffix E: the operator would not see it", e.Code)
		}
		if i > 0 && Catalogue[i-1].Code >= e.Code {
			t.Errorf("%s is double or out of order", e.Code)
		}
		if (e.Unit == "") != e.Code.Bootloader() {
			t.Errorf("%s: only the bootloader speaks without a unit", e.Code)
		}
	}
	for _, c := range []Code{"HPL01011E", "HPL02003E", "HPL05001E", "HPL06004E", "HPL06010E", "HPL07006E",
		"HPL08004E", "HPL10000E", "HPL10001I", "HPL11000E", "HPL11001E", "HPL11099I", "HPL12001E", "HPL12004E",
		"HPL12005I", "HPL12006W", "HPL12007E", "HPL13004I", "HPL14001E", "HPL15005E", "HPL16003I", "HPL18007E"} {
		if _, ok := Lookup(c); !ok {
			t.Errorf("%s is missing", c)
		}
	}
	for _, c := range []Code{"HPL12005E", "HPL12006E"} {
		if _, ok := Lookup(c); ok {
			t.Errorf("%s: an E on a good boot reads as a failure", c)
		}
	}
}

func TestMessage(t *testing.T) {
	tests := map[string]struct{ code, path, detail, want string }{
		"plain":            {"HPL02003E", "", "", "HPL02003E: LUKS Open operation failed."},
		"detail":           {"HPL02003E", "", "check the seeds", "HPL02003E: LUKS Open operation failed. -> check the seeds"},
		"path and detail":  {"HPL02003E", "/a", "x", "HPL02003E: LUKS Open operation failed. -> /a: x"},
		"a number":         {"HPL07006E", "/a", "it has 3", "HPL07006E: Volume [/a] has … partition(s). This is an unsupported scenario. -> it has 3"},
		"a value":          {"HPL02121E", "/a", "x", "HPL02121E: Invalid input value … is provided to /a. -> x"},
		"no path":          {"HPL07003E", "", "x", "HPL07003E: Creating second partition on […] failed -> x"},
		"path as the name": {"HPL07003E", "/workload/volumes/#1", "x", "HPL07003E: Creating second partition on [/workload/volumes/#1] failed -> x"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := Message(Code(tt.code), tt.path, tt.detail); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestFrom(t *testing.T) {
	cause := errors.New("secret cause")
	e := Wrap(cause, "HPL02003E", "/p", "d")
	if got := From(fmt.Errorf("disks: %w", e)); got != e {
		t.Errorf("got %v", got)
	}
	if !errors.Is(e, cause) || strings.Contains(e.Line(), "secret") || !strings.Contains(e.Error(), "secret cause") {
		t.Error("the cause belongs to the owner's form only")
	}
	if got := From(cause); got.Code != "HPL11000E" || strings.Contains(got.Line(), "secret") {
		t.Errorf("got %v", got.Line())
	}
}
