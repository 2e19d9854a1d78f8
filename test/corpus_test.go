//go:build vm

package test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"hpcr/test/scenario"
)

var corpusScenarios = []scenario.Scenario{{
	Name:     "the contract applet says of every bad contract what lint says",
	Attacker: "an author of contracts that break one rule each, and a host that hopes for an architecture that reads them differently",
	Claim: "A stand-in for the agent hands the whole list of bad contracts (contract/testdata/bad) to the image's own applet, in the agent's own " +
		"children: confined, within their memory and time. Each is refused with the code and path that lint gives in the list's own test.",
	Tier:  scenario.Full,
	Archs: scenario.Both,
	Cost:  200 * time.Second,
	Run:   corpus,
}}

func corpus(t *testing.T, lab *scenario.Lab) {
	dir := filepath.Join(lab.Dir, "corpus")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	lab.Command(t, "env", "-C", lab.Root, "HPCR_BAD_CONTRACTS="+dir, "go", "test", "-count=1", "-run", "^TestWriteBadContracts$", "./contract")
	tree := lab.StandIn(t, "bin/agent")
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		data, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		tree.File("corpus/"+f.Name(), 0o444, data)
	}
	var cases []struct{ Name, Code, Host string }
	text, err := os.ReadFile(filepath.Join(dir, "cases.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &cases); err != nil || len(cases) < 150 {
		t.Fatal(len(cases), err)
	}
	r := lab.Boot(t, scenario.Boot{Image: lab.Overlay(t, lab.Image(t), "corpus-image", tree, scenario.Asking("contracts")), Limit: 12 * time.Minute})
	said := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^contract (\d+): (.*?)\r?$`).FindAllStringSubmatch(r.Console, -1) {
		said[m[1]] = m[2]
	}
	for i, c := range cases {
		if got, want := said[strconv.Itoa(i)], strings.TrimPrefix(c.Code, "HPL")+" "+c.Host; got != want {
			t.Errorf("%s: %q, want %q", c.Name, got, want)
		}
	}
	t.Logf("%d contracts", len(said))
	if t.Failed() {
		t.Log(r.Console)
	}
}
