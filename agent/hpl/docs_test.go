package hpl

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the generated documents")

// TestMessagesDocument keeps docs/messages.md equal to the catalogue.
func TestMessagesDocument(t *testing.T) {
	const path = "../../docs/messages.md"
	var b strings.Builder
	b.WriteString("# Messages\n\nGenerated from `agent/hpl` by `go test ./agent/hpl -update`. On the console a JSON path of the contract\nstands where the text has a `{NAME}`; after `->` comes what is wrong and what to change. A code with the\nsuffix `E` appears only if the boot has failed.\n\n| Code | Text | When | The boot |\n|---|---|---|---|\n")
	cell := strings.NewReplacer("|", `\|`, "\n", " ")
	for _, e := range Catalogue {
		effect := "goes on"
		if e.Fatal {
			effect = "fails, power-off"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", e.Code, cell.Replace(e.Text), cell.Replace(e.When), effect)
	}
	if *update {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != b.String() {
		t.Error("docs/messages.md is not the catalogue's: run go test ./agent/hpl -update")
	}
}
