//go:build vm

package test

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"hpcr/test/peers"
	"hpcr/test/scenario"
)

// phases are the boot's, in order; a change of the list must reach the tests.
var phases = []string{
	"mounts", "sysctls", "interlock", "modules", "firewall", "entropy", "cidata", "contract", "keys", "lockdown",
	"network", "time", "expiry", "logging", "store", "disks", "containerd", "images", "record", "seal", "pull", "containers", "ready",
}

// userspace is the first phase after HPCR's bootloader would have ended.
const userspace = "lockdown"

var killScenarios = slices.Concat(
	agentKills(),
	[]scenario.Scenario{
		kill("contract", "contract", scenario.Core, "HPL11001E alone: without its answer nothing of the contract is used, and its keys are gone with the guest.",
			func(t *testing.T, r *scenario.Result) { r.Failed(t, "HPL11001E") }),
		{
			Name:     "killing disk-open in phase disks ends in order",
			Attacker: fault,
			Claim:    "HPL02120E: no container runs without its volume; whatever was mapped is closed.",
			Tier:     scenario.Full,
			Archs:    []string{scenario.AMD64},
			Cost:     12 * time.Second,
			Run: func(t *testing.T, lab *scenario.Lab) {
				r := lab.Boot(t, scenario.Boot{
					UserData: lab.Encrypt(t, lab.Contract(t)), Disks: []string{scenario.Volume + "=" + filepath.Join(lab.Dir, "data.img") + ":300M"},
					Args: []string{"--kill", "disks:disk-open"},
				})
				r.Failed(t, "HPL02120E")
			},
		},
		kill("record", "signer", scenario.Full, "HPL11000E: no container runs without a signed record.",
			func(t *testing.T, r *scenario.Result) { r.Failed(t, "HPL11000E") }),
		kill("containerd", "containerd", scenario.Full, recovers, recovered),
		kill("images", "containerd", scenario.Full, recovers, recovered),
		kill("pull", "containerd", scenario.Core, recovers, recovered),
		kill("containers", "containerd", scenario.Full, recovers, recovered),
		{
			Name:     "killing containerd leaves its containers running and managed",
			Attacker: fault,
			Claim: "The page is served on without a new start; containerd runs again within seconds; " +
				"the orderly stop, which goes through the new one, reaches the container. Nothing of it shows on console or event port.",
			Tier:  scenario.Core,
			Archs: []string{scenario.AMD64},
			Cost:  20 * time.Second,
			Run:   func(t *testing.T, lab *scenario.Lab) { survives(t, lab, "containerd") },
		},
		kill("pull", "containerd:STOP", scenario.Full, recovers, recovered),
		{
			Name:     "a containerd that hangs is replaced, and its containers stay",
			Attacker: fault,
			Claim:    "As if it had been killed, a minute later: what answers nothing is killed and started again.",
			Tier:     scenario.Full,
			Archs:    []string{scenario.AMD64},
			Cost:     100 * time.Second,
			Run:      func(t *testing.T, lab *scenario.Lab) { survives(t, lab, "containerd:STOP") },
		},
		kill("containers", "shim", scenario.Core, recovers, recovered),
		kill("ready", "shim", scenario.Full, recovers, recovered),
	})

// recovers is what holds for a child that the agent can start again.
const recovers = "Either the agent starts it again and the guest gets ready, or it fails with a code; it never hangs and never ends without a verdict."

func recovered(t *testing.T, r *scenario.Result) {
	if r.Verdict == "ready" {
		r.Ready(t)
		return
	}
	if len(r.Codes) != 2 {
		t.Fatalf("verdict %s, codes %v, want ready, or a code of its own and HPL10000E", r.Verdict, r.Codes)
	}
	r.Failed(t, r.Codes[0])
}

// kill is a scenario that kills a child when a phase begins.
func kill(phase, child string, tier scenario.Tier, claim string, judge func(*testing.T, *scenario.Result)) scenario.Scenario {
	cost := 12 * time.Second
	switch {
	case child == "containerd:STOP":
		cost = 90 * time.Second // the agent's patience is most of it
	case slices.Index(phases, phase) < slices.Index(phases, userspace):
		cost = 8 * time.Second
	}
	return scenario.Scenario{
		Name:     striking(child) + " in phase " + phase + " ends in order",
		Attacker: fault,
		Claim:    claim,
		Tier:     tier,
		Archs:    []string{scenario.AMD64},
		Cost:     cost,
		Run: func(t *testing.T, lab *scenario.Lab) {
			c := lab.Small(t)
			c.Env.Logging = peers.SyslogTo(lab.LogHost.Port(), lab.LogCA, lab.LogClient)
			judge(t, lab.Boot(t, scenario.Boot{
				UserData: lab.Encrypt(t, c),
				Args:     []string{"--kill", phase + ":" + child},
			}))
		},
	}
}

// striking says what is done to a child: "agent" or "agent:STOP".
func striking(child string) string {
	if name, stop := strings.CutSuffix(child, ":STOP"); stop {
		return "stopping " + name
	}
	return "killing " + child
}

func survives(t *testing.T, lab *scenario.Lab, fault string) {
	c := lab.Contract(t)
	c.Workload.Volumes, c.Env.Volumes = nil, nil
	c.Workload.Compose = lab.Compose(t, fmt.Sprintf(`services:
  canaryweb:
    image: %s
    environment: {DATA: /tmp/data, GREETING: still here}
    ports: ["8080:8080"]
%s`, lab.Web(t), countingService(lab.Web(t))))
	d := lab.Direct(t, lab.Encrypt(t, c), 8080)
	serves := func(when string) {
		if page := fetch(t, "http://"+d.Address(8080)+"/"); page != "starts: 1\ngreeting: still here\n" {
			t.Errorf("%s the page is %q", when, page)
		}
	}
	serves("before")
	daemon := pid(t, d, "containerd")
	if killed := d.Command(t, "kill", fault).Killed; killed != 1 {
		t.Fatalf("%d processes were struck, want containerd alone", killed)
	}
	serves("at once")
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(300 * time.Millisecond) {
		if now := pid(t, d, "containerd"); now != 0 && now != daemon {
			break
		}
		if time.Now().After(end) {
			t.Fatal("containerd was not started again")
		}
	}
	logged(t, lab, "containerd ended and is started again")
	logged(t, lab, "container found again")
	serves("after the restart")
	d.Stop(t)
	logged(t, lab, "web: asked to stop")
	countedAll(t, lab)
}

// pid is the process of that name in the guest; 0 if there is none.
func pid(t *testing.T, d *scenario.Direct, name string) int {
	t.Helper()
	for _, p := range d.Command(t, "memory", "").Processes {
		if p.Name == name {
			return p.PID
		}
	}
	return 0
}

// agentKills kills the agent in each phase; init then has the last word.
func agentKills() []scenario.Scenario {
	var all []scenario.Scenario
	for _, phase := range phases {
		tier := scenario.Full
		if slices.Contains([]string{"contract", "containers"}, phase) {
			tier = scenario.Core
		}
		all = append(all, kill(phase, "agent", tier, "The guest powers off at once; PID 1 gives the verdict that the agent could not give.",
			func(t *testing.T, r *scenario.Result) { powersOff(t, r, phase, "killed by SIGKILL") }))
	}
	for _, phase := range []string{"cidata", "disks", "ready"} {
		all = append(all, kill(phase, "agent:STOP", scenario.Full, "As if it were killed, seconds later: PID 1 notices that the agent no longer beats.",
			func(t *testing.T, r *scenario.Result) { powersOff(t, r, phase, "it does not respond") }))
	}
	return all
}

func powersOff(t *testing.T, r *scenario.Result, phase, cause string) {
	t.Helper()
	if r.StoppedInOrder {
		t.Error("a guest whose agent was killed claims to have stopped in order")
	}
	if phase == "ready" && r.Verdict == "ready" {
		// The verdict was out before the agent died: no E code may follow it.
		if !strings.Contains(r.Console, "# the agent ended: "+cause) || strings.Contains(r.Console, "HPL11000E") {
			t.Errorf("init did not say why the guest ends, or said too much:\n%s", r.Console)
		}
		return
	}
	if r.Exit != 1 || r.Verdict != "failed" {
		t.Errorf("exit status %d, verdict %s, want 1 and failed", r.Exit, r.Verdict)
	}
	codes := []string{"HPL11000E"}
	switch i := slices.Index(phases, phase); {
	case i >= slices.Index(phases, userspace),
		// The agent may live just long enough to end this short phase.
		phase == "keys" && strings.Contains(r.Console, "HPL10000E"):
		codes = append(codes, "HPL10000E")
	}
	r.ConsoleCodes(t, codes)
	if !strings.Contains(r.Console, "the agent ended before its verdict: "+cause) {
		t.Errorf("init did not say why the guest ends:\n%s", r.Console)
	}
}
