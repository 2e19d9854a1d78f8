package luks2

import (
	"strings"
	"testing"
)

// A host changes what the header says of itself, and hopes that the owner seals
// it. The state is not taken from it, nor a sector size that no guest chose.
func TestResealTakesNoForgedState(t *testing.T) {
	swapped := func(from, to string) *memory {
		m, o := formatted(t)
		if err := o.Commit(m, "data", Ready); err != nil {
			t.Fatal(err)
		}
		rewrite(t, m, func(text string) string { return strings.Replace(text, from, to, 1) })
		return m
	}
	m := swapped(`"state":"ready"`, `"state":"formatting"`)
	if _, err := Reseal(m, testSize, pass(testPass), "data", cheap); err != nil {
		t.Fatal(err)
	}
	if o, err := unlock(t, m, testPass, "data"); err != nil || o.State != Ready {
		t.Errorf("%+v, %v", o, err)
	}
	m = swapped(`"sector_size":4096`, `"sector_size":512`)
	if _, err := Reseal(m, testSize, pass(testPass), "data", cheap); err == nil {
		t.Error("another sector size was sealed")
	}
}
