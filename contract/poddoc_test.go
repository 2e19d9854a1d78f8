package contract

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// docs/play.md lists the fields that the decoder takes, no more and no less.
func TestPlayDocument(t *testing.T) {
	b, err := os.ReadFile("../docs/play.md")
	if err != nil {
		t.Fatal(err)
	}
	_, pod, _ := strings.Cut(string(b), "\n## Pod\n")
	pod, container, _ := strings.Cut(pod, "\n## Container\n")
	name := regexp.MustCompile("`([A-Za-z]+)`")
	for table, want := range map[string][]string{pod: podFields, container: containerFields} {
		var got []string
		for line := range strings.Lines(table) {
			if cell, _, ok := strings.Cut(strings.TrimPrefix(line, "| "), " | "); ok && strings.HasPrefix(line, "| `") {
				for _, m := range name.FindAllStringSubmatch(cell, -1) {
					got = append(got, m[1])
				}
			}
		}
		slices.Sort(got)
		if diff := cmp.Diff(slices.Sorted(slices.Values(want)), got); diff != "" {
			t.Errorf("(-code +document): %s", diff)
		}
	}
}
