package boot

import (
	"bytes"
	"errors"
	"regexp"
	"strings"
	"testing"
	"time"

	"hpcr/agent/hpl"
)

// What the k8s operator of HPCR looks for, failure first (contract.md §7.4).
var (
	operatorFailure = regexp.MustCompile(`HPL\d+E`)
	operatorSuccess = regexp.MustCompile(`(HPL10001I)|(VSI has started successfully)`)
)

func TestVerdictsAsOperatorsReadThem(t *testing.T) {
	tests := map[string]struct {
		say  func(*Console)
		want string
		ok   bool
	}{
		"ready": {(*Console).Ready, "hpcr-catch-success[7]: VSI has started successfully.\nhpcr-catch-success[7]: HPL10001I: Services succeeded\n", true},
		"bootloader failure stands alone": {
			func(c *Console) { c.Failed(hpl.New("HPL11001E", "/env", "x"), true) },
			"# HPL11001E: Unable to parse/decrypt contract. -> /env: x\n", false},
		"signature failure is a unit's": {
			func(c *Console) { c.Failed(hpl.New("HPL12001E", "", "x"), true) },
			"hpcr-signature[7]: HPL12001E: Unable to validate the contract signature semantically. -> x\nhpcr-catch-failure[7]: VSI has failed to start!\nhpcr-catch-failure[7]: HPL10000E: One or more services failed\n", false},
		"internal error after the bootloader": {
			func(c *Console) { c.Failed(hpl.New("HPL11000E", "", "x"), false) },
			"# HPL11000E: Internal error. -> x\nhpcr-catch-failure[7]: VSI has failed to start!\nhpcr-catch-failure[7]: HPL10000E: One or more services failed\n", false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			c := NewConsole(&b, 7, false)
			c.Phase(Report{Name: "disks", Took: 1234 * time.Millisecond})
			tt.say(c)
			got := strings.TrimPrefix(b.String(), "hpcr-boot[7]: disks done in 1.234 s\n")
			if got != tt.want {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
			if ok := !operatorFailure.MatchString(b.String()) && operatorSuccess.MatchString(b.String()); ok != tt.ok {
				t.Errorf("an operator reads ok=%v", ok)
			}
		})
	}
}

func TestReleaseRoundsDurations(t *testing.T) {
	var b bytes.Buffer
	NewConsole(&b, 7, true).Phase(Report{Name: "disks", Took: 1634 * time.Millisecond, Err: errors.New("secret")})
	if b.String() != "hpcr-boot[7]: disks failed in 2 s\n" {
		t.Errorf("got %q", b.String())
	}
}
