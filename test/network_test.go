//go:build vm

package test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"hpcr/test/scenario"
)

var networkScenarios = []scenario.Scenario{
	{
		Name:     "a guest takes its addresses from network-config",
		Attacker: "nobody",
		Claim: "With DHCP off and the addresses that QEMU's network expects, the image is pulled and the published port answers; " +
			"the console says which interface was configured, in HPCR's words.",
		Tier:  scenario.Core,
		Archs: scenario.Both,
		Cost:  35 * time.Second,
		Run:   staticNetwork,
	},
	{
		Name:     "a network-config that breaks the schema is refused",
		Attacker: "nobody; an operator leaves the addresses out",
		Claim:    "The guest does not fall back to DHCP: it fails with a code and powers off.",
		Tier:     scenario.Full,
		Archs:    []string{scenario.AMD64},
		Cost:     20 * time.Second,
		Run: func(t *testing.T, lab *scenario.Lab) {
			r := lab.Boot(t, scenario.Boot{
				UserData:      lab.Encrypt(t, lab.Small(t)),
				NetworkConfig: "network:\n  version: 2\n  ethernets:\n    enc1:\n      dhcp4: false\n",
			})
			if r.Verdict != "failed" || r.Exit != 1 || !r.StoppedInOrder || len(r.Codes) == 0 {
				t.Errorf("verdict %s, codes %v, exit status %d, in order %v, want a failure with a code: %s", r.Verdict, r.Codes, r.Exit, r.StoppedInOrder, r.Message)
			}
		},
	},
}

func staticNetwork(t *testing.T, lab *scenario.Lab) {
	c := lab.Small(t)
	c.Workload.Compose = lab.Compose(t, fmt.Sprintf("services:\n  canaryweb:\n    image: %s\n    environment: {DATA: /tmp/data, GREETING: static}\n    ports: [\"8080:8080\"]\n", lab.Web(t)))
	r := lab.Boot(t, scenario.Boot{
		UserData: lab.Encrypt(t, c),
		NetworkConfig: `network:
  version: 2
  ethernets:
    enc1:
      dhcp4: false
      addresses: [10.0.2.15/24]
      gateway4: 10.0.2.2
      nameservers: {addresses: [10.0.2.3]}
      mtu: 1400
`,
		Publish: []int{8080},
		While: func(g *scenario.Guest) {
			if page := fetch(t, "http://"+g.Address(8080)+"/"); !strings.Contains(page, "greeting: static") {
				t.Errorf("the page is %q", page)
			}
		},
	})
	r.Ready(t)
	for _, want := range []string{"HPL13000I: Validation Successfull", "[enc1]", "HPL13004I: Netplan file is updated"} {
		if !strings.Contains(r.Console, want) {
			t.Errorf("the console lacks %q:\n%s", want, r.Console)
		}
	}
}
