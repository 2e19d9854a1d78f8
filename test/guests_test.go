//go:build vm

package test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"hpcr/test/scenario"
)

// scenarios are the claims, in the order of the guest's life.
var scenarios = slices.Concat(startScenarios, composeScenarios, playScenarios, trustScenarios, releaseScenarios, contractScenarios, corpusScenarios, volumeScenarios, hungDiskScenarios, headerScenarios, debianScenarios, storeScenarios, imageDiskScenarios, peerScenarios, networkScenarios, tlsScenarios, logScenarios, killScenarios, pid1Scenarios, recordScenarios, policyScenarios, hardeningScenarios, runScenarios, secretScenarios)

// chosen is what -run said. It picks scenarios by their sentences, beside test
// functions by their names.
var chosen string

func TestMain(m *testing.M) {
	flag.Parse()
	run := flag.Lookup("test.run")
	if chosen = run.Value.String(); chosen != "" {
		if err := run.Value.Set("^TestGuests$|" + chosen); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
	}
	os.Exit(m.Run())
}

func TestDeclarationsFitTheCoreTier(t *testing.T) {
	if err := scenario.Check(scenarios); err != nil {
		t.Error(err)
	}
	t.Logf("declared for tier core: %s of %s", scenario.CoreCost(scenarios), scenario.CoreLimit)
}

func TestGuests(t *testing.T) {
	c := choice(t)
	if err := scenario.Check(scenarios); err != nil {
		t.Fatal(err)
	}
	if !c.Any(scenarios) {
		t.Skipf("no scenario's sentence matches %q", chosen)
	}
	root, err := scenario.Root()
	if err != nil {
		t.Fatal(err)
	}
	lab := scenario.NewLab(t)
	report := &strings.Builder{}
	t.Cleanup(func() {
		fmt.Print(report)
		if err := os.WriteFile(filepath.Join(root, "build", "test", "costs.txt"), []byte(report.String()), 0o644); err != nil {
			t.Error(err)
		}
	})
	scenario.RunAll(t, lab, scenarios, c, report)
}

// choice reads what make says: HPCR_TIER, HPCR_ARCHS, and -run.
func choice(t *testing.T) scenario.Choice {
	t.Helper()
	c := scenario.Choice{Tier: scenario.Core, Archs: scenario.Both}
	if v := os.Getenv("HPCR_TIER"); v != "" {
		c.Tier = scenario.Tier(v)
	}
	if c.Tier != scenario.Core && c.Tier != scenario.Full {
		t.Fatalf("TIER is %q, want core or full", c.Tier)
	}
	if v := os.Getenv("HPCR_ARCHS"); v != "" {
		c.Archs = strings.Fields(v)
	}
	for _, arch := range c.Archs {
		if !slices.Contains(scenario.Both, arch) {
			t.Fatalf("ARCH is %q, want amd64 or s390x", arch)
		}
	}
	if chosen != "" {
		match, err := regexp.Compile(chosen)
		if err != nil {
			t.Fatalf("RUN: %v", err)
		}
		c.Match = match
	}
	return c
}
