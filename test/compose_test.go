//go:build vm

package test

import (
	"context"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"hpcr/test/composed"
	"hpcr/test/peers"
	"hpcr/test/scenario"
)

var composeScenarios = []scenario.Scenario{
	{
		Name:     "containers see what the attributes of a compose file promise",
		Attacker: "nobody",
		Claim: "Each line of test/composed, said by the containers themselves and read at the log host: identity, limits as the " +
			"kernel has them, capabilities, mounts, configs and secrets, networks, names, ports, order, restarts; memory that ran out is " +
			"told. Services stop by their signals, dependents first; one that ignores the signal is killed after its grace.",
		Tier:  scenario.Full,
		Archs: scenario.Both,
		Cost:  75 * time.Second,
		Run:   composedProject,
	},
}

func composedProject(t *testing.T, lab *scenario.Lab) {
	c := lab.Contract(t)
	files, err := composed.Files(lab.Web(t), lab.Arch, scenario.Mount)
	if err != nil {
		t.Fatal(err)
	}
	archive, err := peers.Archive(files)
	if err != nil {
		t.Fatal(err)
	}
	c.Workload.Compose = &peers.Compose{Archive: archive}
	c.Workload.Env, c.Env.Env = composed.Env(), nil
	disk := sparse(t, lab, "data.img", 256<<20)
	lab.Boot(t, scenario.Boot{
		UserData: lab.Encrypt(t, c), Disks: []string{scenario.Volume + "=" + disk}, Publish: []int{8080, 8081, 8082, 8083}, Limit: 8 * time.Minute, // twenty containers, emulated
		While: func(g *scenario.Guest) {
			for port, want := range map[int]string{8080: "page of 7080\n", 8081: "page of 7081\n", 8082: "page of 7082\n"} {
				if page := fetch(t, "http://"+g.Address(port)+"/"); page != want {
					t.Errorf("port %d serves %q, want %q", port, page, want)
				}
			}
			quick := &http.Client{Timeout: 3 * time.Second}
			if resp, err := quick.Get("http://" + g.Address(8083) + "/"); err == nil {
				t.Errorf("a port that is published on the guest's own loopback answers the host: %s", resp.Status)
				_ = resp.Body.Close() // the test has failed already
			}
			observe(t, lab, composed.Observations)
		},
	}).Ready(t)
	at := observe(t, lab, composed.AtTheEnd)
	if !slices.IsSorted(at) {
		t.Errorf("the containers stopped in another order: %v", at)
	}
	for _, m := range said(t, lab) {
		for _, line := range composed.Unheard {
			if strings.Contains(m, line) {
				t.Errorf("heard: %s", m)
			}
		}
	}
}

// said is what the log host has of this scenario's guest.
func said(t *testing.T, lab *scenario.Lab) []string {
	t.Helper()
	all, err := lab.LogHost.Messages()
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(all, func(m string) bool { return !strings.Contains(m, " "+lab.Hostname()+" ") })
}

// observe waits for each observation and returns where it stands among the messages.
func observe(t *testing.T, lab *scenario.Lab, list []composed.Observation) []int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	var at []int
	for _, o := range list {
		match := regexp.MustCompile(o.Line + `(\s|#015|\\x0d)*$`)
		for {
			i := slices.IndexFunc(said(t, lab), match.MatchString)
			if i >= 0 {
				at = append(at, i)
				break
			}
			select {
			case <-ctx.Done():
			case <-time.After(300 * time.Millisecond):
				continue
			}
			name, _, _ := strings.Cut(o.Line, ":")
			var near []string
			for _, m := range said(t, lab) {
				if strings.Contains(m, name+":") {
					near = append(near, m)
				}
			}
			t.Errorf("never heard %q, but %q", o.Line, near)
			break
		}
	}
	return at
}
