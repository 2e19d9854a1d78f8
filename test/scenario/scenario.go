package scenario

import (
	"fmt"
	"io"
	"regexp"
	"slices"
	"sort"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"
)

// Tier says when a scenario runs.
type Tier string

// Core is part of every test run; Full only of 'make check'.
const (
	Core Tier = "core"
	Full Tier = "full"
)

// CoreLimit is what the declared costs of the core tier may add up to.
const CoreLimit = 18 * time.Minute

// atOnce is how many guests run side by side: one a core.
const atOnce = 2

// The architectures.
const (
	AMD64 = "amd64"
	S390X = "s390x"
)

// Both is for claims that depend on byte order, console, bus or cryptography.
var Both = []string{AMD64, S390X}

// Scenario is one claim about a guest that boots.
type Scenario struct {
	Name     string   // a sentence
	Attacker string   // who does what
	Claim    string   // what must hold, and why what the test sees is enough
	Tier     Tier     // core scenarios run on Archs; in the full tier on both
	Archs    []string // where the tier's run boots it
	Cost     time.Duration
	Run      func(*testing.T, *Lab)
}

// Cost is declared in seconds of an amd64 guest; s390x takes longer under TCG.
func (s Scenario) cost(arch string) time.Duration {
	if arch == S390X {
		return s.Cost * 3 / 2
	}
	return s.Cost
}

// archs are the architectures on which a run of that tier boots the scenario.
func (s Scenario) archs(tier Tier) []string {
	switch {
	case tier == Core && s.Tier == Full:
		return nil
	case tier == Full && s.Tier == Core:
		return Both
	}
	return s.Archs
}

// Check finds mistakes in the declarations, the sum of costs included.
func Check(all []Scenario) error {
	seen := map[string]bool{}
	for _, s := range all {
		switch {
		case !strings.Contains(s.Name, " "), seen[s.Name]:
			return fmt.Errorf("scenario %q: its name must be a sentence that no other has", s.Name)
		case s.Attacker == "" || s.Claim == "":
			return fmt.Errorf("scenario %q names no attacker or no claim", s.Name)
		case s.Tier != Core && s.Tier != Full:
			return fmt.Errorf("scenario %q is of no tier", s.Name)
		case s.Cost <= 0 || s.Run == nil || len(s.Archs) == 0:
			return fmt.Errorf("scenario %q has no cost, no test or no architecture", s.Name)
		}
		seen[s.Name] = true
	}
	if sum := CoreCost(all); sum > CoreLimit {
		return fmt.Errorf("the declared costs of tier core are %s, more than %s: move scenarios to tier full or share boots", sum, CoreLimit)
	}
	return nil
}

// CoreCost adds up the declared costs of the core tier, all architectures.
func CoreCost(all []Scenario) time.Duration {
	var sum time.Duration
	for _, s := range all {
		for _, arch := range s.archs(Core) {
			sum += s.cost(arch)
		}
	}
	return sum
}

// Choice is which scenarios a run takes.
type Choice struct {
	Tier  Tier
	Archs []string
	Match *regexp.Regexp // of "arch/Name"; nil takes all
}

func (c Choice) takes(arch, name string) bool {
	if !slices.Contains(c.Archs, arch) {
		return false
	}
	full := arch + "/" + name
	return c.Match == nil || c.Match.MatchString(full) || c.Match.MatchString(strings.ReplaceAll(full, " ", "_"))
}

// Any says whether there is something to run.
func (c Choice) Any(all []Scenario) bool {
	return slices.ContainsFunc(all, func(s Scenario) bool {
		return slices.ContainsFunc(s.archs(c.Tier), func(arch string) bool { return c.takes(arch, s.Name) })
	})
}

// measured is what a scenario cost.
type measured struct {
	arch, name     string
	declared, took time.Duration
	failed         bool
}

// RunAll boots the chosen scenarios as subtests "arch/Name", and at the end
// writes declared and measured costs to report.
func RunAll(t *testing.T, lab *Lab, all []Scenario, c Choice, report io.Writer) {
	var (
		slots   = make(chan struct{}, atOnce)
		mu      sync.Mutex
		results []measured
	)
	t.Cleanup(func() {
		if _, err := io.WriteString(report, table(results)); err != nil {
			t.Errorf("report the costs: %v", err)
		}
	})
	for _, s := range all {
		for _, arch := range s.archs(c.Tier) {
			if !c.takes(arch, s.Name) {
				continue
			}
			t.Run(arch+"/"+s.Name, func(t *testing.T) {
				t.Parallel()
				slots <- struct{}{}
				defer func() { <-slots }()
				own := lab.For(t, arch)
				start := time.Now()
				defer func() {
					mu.Lock()
					defer mu.Unlock()
					results = append(results, measured{arch, s.Name, s.cost(arch), time.Since(start), t.Failed()})
				}()
				t.Logf("attacker: %s\nclaim: %s", s.Attacker, s.Claim)
				s.Run(t, own)
			})
		}
	}
}

// table shows each scenario's cost, the dearest first, and the sums.
func table(results []measured) string {
	sort.Slice(results, func(i, j int) bool { return results[i].took > results[j].took })
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	row := func(declared, took time.Duration, arch, name, note string) {
		// The buffer below takes everything.
		_, _ = fmt.Fprintf(w, "%.0f s\t%.1f s\t%s\t  %s%s\n", declared.Seconds(), took.Seconds(), arch, name, note)
	}
	_, _ = fmt.Fprintln(w, "declared\tmeasured\tarch\t  scenario")
	var declared, took time.Duration
	for _, r := range results {
		note := ""
		if r.took > r.declared {
			note = "  (over)"
		}
		if r.failed {
			note += "  FAILED"
		}
		row(r.declared, r.took, r.arch, r.name, note)
		declared, took = declared+r.declared, took+r.took
	}
	row(declared, took, "", fmt.Sprintf("%d scenarios", len(results)), "")
	_ = w.Flush()
	return b.String()
}
