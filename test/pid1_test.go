//go:build vm

package test

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"hpcr/initramfs"
	"hpcr/test/scenario"
)

const fault = "a fault, or memory that the host took away"

var pid1Scenarios = []scenario.Scenario{
	{
		Name:     "a hung agent or a dead PID 1 ends the guest within seconds",
		Attacker: fault,
		Claim: "Within 5 s on the guest's own clock init has said HPL11000E with the cause and powers off; where PID 1 itself dies, the kernel " +
			"panics at once. Nothing boots twice, and hpcrctl run tells both as failures with their causes.",
		Tier:  scenario.Core,
		Archs: scenario.Both,
		Cost:  10 * time.Second,
		Run:   func(t *testing.T, lab *scenario.Lab) { endings(t, lab, "hangs", "PID 1 dies") },
	},
	{
		Name:     "whatever ends the agent, PID 1 says so once and powers off",
		Attacker: fault,
		Claim: "Each way to end has its cause on the console in init's own words, within 5 s; no E code follows the agent's own verdict; " +
			"neither a disk that does not sync nor an init that cannot mount anything holds the power-off.",
		Tier:  scenario.Core,
		Archs: []string{scenario.AMD64},
		Cost:  28 * time.Second,
		Run: func(t *testing.T, lab *scenario.Lab) {
			endings(t, lab, "hangs late", "hangs after its verdict", "fails on a dead disk", "is missing", "no /proc")
		},
	},
	{
		Name:     "rarer ends of the agent and of PID 1 are told apart too",
		Attacker: fault,
		Claim:    "A stopped agent is a hung one; an agent that leaves without a verdict has failed; a PID 1 that reboots ends the machine, once; so does its last resort, its own end with the kernel watching for stuck tasks.",
		Tier:     scenario.Full,
		Archs:    scenario.Both,
		Cost:     22 * time.Second,
		Run: func(t *testing.T, lab *scenario.Lab) {
			endings(t, lab, "is stopped", "leaves without a verdict", "PID 1 reboots", "PID 1 cannot power off")
		},
	},
	{
		Name:     "PID 1 does not take a paused or loaded guest's agent for hung",
		Attacker: "a host that stops the processors for longer than the limit, or gives them too much to do",
		Claim:    "The agent beats on among twenty processes that never sleep, through a pause of 15 s; the guest ends in order and says nothing.",
		Tier:     scenario.Full,
		Archs:    scenario.Both,
		Cost:     35 * time.Second,
		Run:      misfire,
	},
}

// ending is one way in which an agent, or PID 1, ends.
type ending struct {
	edit  func(string) string
	add   func(*initramfs.Tree)
	codes []string // on the console
	say   string   // in the verdict's line
	from  string   // mark from which …
	to    string   // … to the last of this one 5 s may pass
}

// crash is what a guest's end may take.
const crash = 5.0

var (
	event    = "standin: event"
	synced   = "standin: closed" // follows init's verdict; on a dead disk, again and again to the power-off
	internal = []string{"HPL11000E"}
)

var waysToEnd = map[string]ending{
	"hangs": {
		edit: scenario.Asking("hang"), codes: internal,
		say: "# HPL11000E: Internal error. -> the agent ended before its verdict: it does not respond", from: event, to: synced,
	},
	"is stopped": {
		edit: scenario.Asking("stopped"), codes: internal,
		say: "# HPL11000E: Internal error. -> the agent ended before its verdict: it does not respond", from: event, to: synced,
	},
	"hangs late": {
		edit: scenario.Asking("late"), codes: []string{"HPL11000E", "HPL10000E"},
		say: "# HPL10000E: One or more services failed", from: event, to: synced,
	},
	"hangs after its verdict": {edit: scenario.Asking("decided"), say: "# the agent ended: it does not respond", from: event, to: synced},
	"leaves without a verdict": {
		edit: scenario.Asking("leaves"), codes: internal,
		say: "# HPL11000E: Internal error. -> the agent ended before its verdict: exit status 0", from: event, to: synced,
	},
	"fails on a dead disk": {
		edit: scenario.Asking("dead-disk"), codes: internal,
		say: "# HPL11000E: Internal error. -> the agent ended before its verdict: exit status 3", from: event, to: synced,
	},
	"is missing": {
		edit: scenario.Asking(""), add: func(t *initramfs.Tree) { t.Symlink("bin/agent", "/nowhere") }, codes: internal,
		say: "# HPL11000E: Internal error. -> init cannot start the agent: no such file or directory",
	},
	"no /proc": {
		edit: scenario.Asking(""), add: func(t *initramfs.Tree) { t.File("proc", 0o644, nil) }, codes: internal,
		say: "# HPL11000E: Internal error. -> init cannot set up the guest: mount point: mkdir /proc: not a directory",
	},
	"PID 1 dies": {edit: scenario.Outer("panic"), say: "Attempted to kill init!", from: event, to: "Kernel panic - not syncing"},
	"PID 1 cannot power off": {
		edit: scenario.Outer("stuck"), say: "Attempted to kill init!", from: event + " 1", to: "Kernel panic - not syncing",
	},
	"PID 1 reboots": {edit: scenario.Outer("reboot"), say: event},
}

func endings(t *testing.T, lab *scenario.Lab, names ...string) {
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			way := waysToEnd[name]
			tree := lab.StandIn(t, "outer", "bin/agent", "bin/disk-close")
			if way.add != nil {
				way.add(tree)
			}
			r := lab.Boot(t, scenario.Boot{Image: lab.Overlay(t, lab.Image(t), "image-"+strings.ReplaceAll(strings.ReplaceAll(name, "/", ""), " ", "-"), tree, way.edit)})
			if !strings.Contains(r.Console, way.say) || strings.Count(r.Console, way.say) != 1 {
				t.Errorf("the console does not say %q once", way.say)
			}
			r.ConsoleCodes(t, way.codes)
			if r.Exit != 1 || r.StoppedInOrder {
				t.Errorf("exit status %d, in order: %v, want 1 and no", r.Exit, r.StoppedInOrder)
			}
			judge(t, name, r)
			if way.from != "" {
				took := stamp(t, r.Console, way.to) - stamp(t, r.Console, way.from)
				t.Logf("%.1f s on the guest's clock", took)
				if took < 0 || took > crash {
					t.Errorf("from %q to %q %.1f s passed, want at most %.0f s", way.from, way.to, took, crash)
				}
			}
			if t.Failed() {
				t.Logf("verdict %s: %s\n%s", r.Verdict, r.Message, r.Console)
			}
		})
	}
}

// judge compares what hpcrctl run makes of it.
func judge(t *testing.T, name string, r *scenario.Result) {
	t.Helper()
	way := waysToEnd[name]
	verdict, message := "failed", strings.TrimPrefix(way.say, "# ")
	switch {
	case name == "hangs late":
		message = "HPL11000E: Internal error. -> the agent ended before its verdict: it does not respond"
	case name == "hangs after its verdict": // the stand-in's verdict was for init alone
		verdict, message = "off", "the guest powered off without a verdict"
	case name == "PID 1 dies", name == "PID 1 cannot power off":
		message = "the guest's kernel panicked; the console says why"
	case name == "PID 1 reboots":
		message = "the guest reset itself, which no image of ours does"
	}
	if r.Verdict != verdict || r.Message != message || !slices.Equal(r.Codes, way.codes) && len(r.Codes)+len(way.codes) > 0 {
		t.Errorf("hpcrctl run says %s, %v, %q, want %s, %v, %q", r.Verdict, r.Codes, r.Message, verdict, way.codes, message)
	}
}

// stamp is the guest's own time, in seconds, of the last such line.
func stamp(t *testing.T, console, line string) float64 {
	t.Helper()
	m := regexp.MustCompile(`\[ *(\d+\.\d+)\] `+regexp.QuoteMeta(line)).FindAllStringSubmatch(console, -1)
	if m == nil {
		t.Errorf("the console has no %q", line)
		return 0
	}
	seconds, err := strconv.ParseFloat(m[len(m)-1][1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return seconds
}

func misfire(t *testing.T, lab *scenario.Lab) {
	image := lab.Overlay(t, lab.Image(t), "busy-image", lab.StandIn(t, "bin/agent", "bin/disk-close"), scenario.Asking("busy"))
	console := lab.Paused(t, image, event, 15*time.Second)
	if !strings.Contains(console, "standin: end") || strings.Contains(console, "the agent ended") || strings.Contains(console, "HPL") {
		t.Errorf("the guest did not end in order:\n%s", console)
	}
}
