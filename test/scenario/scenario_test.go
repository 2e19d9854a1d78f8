package scenario

import (
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func nothing(*testing.T, *Lab) {}

func TestCheckFindsWrongDeclarations(t *testing.T) {
	good := Scenario{Name: "a good one", Attacker: "the host", Claim: "it holds", Tier: Core, Archs: Both, Cost: time.Minute, Run: nothing}
	change := func(f func(*Scenario)) []Scenario {
		s := good
		f(&s)
		return []Scenario{s}
	}
	dear := func(cost time.Duration, tier Tier) []Scenario {
		return change(func(s *Scenario) { s.Cost, s.Tier, s.Archs = cost, tier, []string{AMD64} })
	}
	for name, tc := range map[string]struct {
		all []Scenario
		bad string
	}{
		"a good one":                 {[]Scenario{good}, ""},
		"a name of one word":         {change(func(s *Scenario) { s.Name = "word" }), "sentence"},
		"two of one name":            {[]Scenario{good, good}, "sentence"},
		"no attacker":                {change(func(s *Scenario) { s.Attacker = "" }), "attacker"},
		"no claim":                   {change(func(s *Scenario) { s.Claim = "" }), "claim"},
		"a tier of its own":          {change(func(s *Scenario) { s.Tier = "soak" }), "tier"},
		"no cost":                    {change(func(s *Scenario) { s.Cost = 0 }), "cost"},
		"no architecture":            {change(func(s *Scenario) { s.Archs = nil }), "architecture"},
		"just as dear as allowed":    {dear(CoreLimit, Core), ""},
		"too dear for core":          {dear(CoreLimit+time.Second, Core), "more than"},
		"dear but full":              {dear(CoreLimit+time.Second, Full), ""},
		"too dear by two, on s390x":  {change(func(s *Scenario) { s.Cost = CoreLimit / 2 }), "more than"},
		"a name that nobody can run": {change(func(s *Scenario) { s.Run = nil }), "no test"},
	} {
		t.Run(name, func(t *testing.T) {
			err := Check(tc.all)
			switch {
			case tc.bad == "" && err != nil:
				t.Errorf("refused: %v", err)
			case tc.bad != "" && (err == nil || !strings.Contains(err.Error(), tc.bad)):
				t.Errorf("got %v, want an error about %q", err, tc.bad)
			}
		})
	}
}

func TestChoiceTakesByTierArchitectureAndSentence(t *testing.T) {
	all := []Scenario{
		{Name: "core on one", Tier: Core, Archs: []string{AMD64}},
		{Name: "core on both", Tier: Core, Archs: Both},
		{Name: "full on one", Tier: Full, Archs: []string{S390X}},
	}
	for name, tc := range map[string]struct {
		choice Choice
		want   []string
	}{
		"core":       {Choice{Tier: Core, Archs: Both}, []string{"amd64/core on one", "amd64/core on both", "s390x/core on both"}},
		"full":       {Choice{Tier: Full, Archs: Both}, []string{"amd64/core on one", "s390x/core on one", "amd64/core on both", "s390x/core on both", "s390x/full on one"}},
		"one arch":   {Choice{Tier: Full, Archs: []string{S390X}}, []string{"s390x/core on one", "s390x/core on both", "s390x/full on one"}},
		"words":      {Choice{Tier: Core, Archs: Both, Match: regexp.MustCompile("on both")}, []string{"amd64/core on both", "s390x/core on both"}},
		"as go does": {Choice{Tier: Core, Archs: Both, Match: regexp.MustCompile("amd64/core_on_b")}, []string{"amd64/core on both"}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, s := range all {
				for _, arch := range s.archs(tc.choice.Tier) {
					if tc.choice.takes(arch, s.Name) {
						got = append(got, arch+"/"+s.Name)
					}
				}
			}
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Errorf("taken (-want +got):\n%s", d)
			}
		})
	}
}

func TestTableShowsDeclaredAgainstMeasured(t *testing.T) {
	got := table([]measured{
		{AMD64, "quick one", 10 * time.Second, 4 * time.Second, false},
		{S390X, "slow one", 10 * time.Second, 12 * time.Second, true},
	})
	lines := strings.Split(strings.TrimSpace(got), "\n")
	if len(lines) != 4 {
		t.Fatalf("%d lines, want 4:\n%s", len(lines), got)
	}
	for i, want := range [][]string{
		{"declared", "measured", "arch", "scenario"},
		{"10", "s", "12.0", "s", "s390x", "slow", "one", "(over)", "FAILED"},
		{"10", "s", "4.0", "s", "amd64", "quick", "one"},
		{"20", "s", "16.0", "s", "2", "scenarios"},
	} {
		if f := strings.Fields(lines[i]); !slices.Equal(f, want) {
			t.Errorf("line %d is %q, want %q", i, f, want)
		}
	}
}

func TestConsoleCodesCountsEveryLine(t *testing.T) {
	for name, tc := range map[string]struct {
		console string
		codes   []string
		fails   bool
	}{
		"a bootloader failure": {"# decrypt user-data...\n# HPL11001E: Unable to parse/decrypt contract. -> x\n", []string{"HPL11001E"}, false},
		"a later failure":      {"hpcr-logging[7]: HPL01011E: a\nhpcr-catch-failure[7]: HPL10000E: b\n", []string{"HPL01011E", "HPL10000E"}, false},
		"one code too many":    {"HPL02003E: a\nHPL02003E: a\nHPL10000E: b\n", []string{"HPL02003E", "HPL10000E"}, true},
		"an early success":     {"HPL10001I: a\nHPL11000E: b\n", []string{"HPL11000E"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			var shadow testing.T
			(&Result{Console: tc.console}).ConsoleCodes(&shadow, tc.codes)
			if shadow.Failed() != tc.fails {
				t.Errorf("failed: %v, want %v", shadow.Failed(), tc.fails)
			}
		})
	}
}

func TestClaimIsForOneAtATime(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "build", "x")
	release, err := Claim(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Claim(dir); err == nil || !strings.Contains(err.Error(), "another run") {
		t.Errorf("a second claim: %v, want a refusal", err)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	again, err := Claim(dir)
	if err != nil {
		t.Fatalf("after the release: %v", err)
	}
	if err := again(); err != nil {
		t.Error(err)
	}
}
