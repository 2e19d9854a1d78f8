package secret

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

func TestSecretNeverPrints(t *testing.T) {
	s := FromString("hunter2-canary")
	type wrap struct {
		S *Secret
		T any
	}
	j, err := json.Marshal(wrap{s, s})
	if err != nil {
		t.Fatal(err)
	}
	for _, out := range []string{
		fmt.Sprint(s), fmt.Sprintf("%s %v %+v %#v %x %q %d", s, s, s, s, s, s, s),
		fmt.Sprintf("%v %+v %#v", wrap{s, s}, &wrap{s, s}, wrap{s, s}), string(j),
		fmt.Errorf("x: %w", fmt.Errorf("%v", s)).Error(), s.LogValue().String(),
	} {
		if strings.Contains(out, "canary") || strings.Contains(out, "63616e617279") {
			t.Errorf("leaked: %s", out)
		}
	}
}

func TestNewWipesItsInput(t *testing.T) {
	in := []byte("abcdef")
	s := New(in)
	if string(in) != "\x00\x00\x00\x00\x00\x00" {
		t.Errorf("input kept: %q", in)
	}
	if string(s.Bytes()) != "abcdef" || s.Len() != 6 {
		t.Errorf("got %q", s.Bytes())
	}
}

func TestWipe(t *testing.T) {
	s, big := FromString("abcdef"), New(make([]byte, 1<<20))
	kept, c := s.Bytes(), s.Clone()
	for range 2 {
		s.Wipe()
		big.Wipe()
	}
	if string(kept) != "\x00\x00\x00\x00\x00\x00" || s.Len() != 0 {
		t.Errorf("not wiped: %q", kept)
	}
	if string(c.Bytes()) != "abcdef" {
		t.Errorf("clone shares memory with its origin: %q", c.Bytes())
	}
	var none *Secret
	none.Wipe()
	if none.Bytes() != nil || (&Secret{}).Len() != 0 {
		t.Error("nil and zero are empty")
	}
}
