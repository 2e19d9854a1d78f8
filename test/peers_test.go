//go:build vm

package test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"hpcr/test/peers"
	"hpcr/test/scenario"
)

var peerScenarios = []scenario.Scenario{
	broken("an image that the registry does not have is refused", scenario.Core, "HPL06004E",
		"a registry that has lost or withholds the image",
		func(t *testing.T, lab *scenario.Lab, c *peers.Contract) {
			c.Workload.Compose = lab.Compose(t, fmt.Sprintf("services:\n  canaryidle:\n    image: %s/canaryrepo/gone@sha256:%s\n", lab.Registry.Guest(), strings.Repeat("12", 32)))
		}),
	broken("a registry of another authority is refused", scenario.Core, "HPL06004E",
		"somebody on the network who answers as the registry",
		func(t *testing.T, lab *scenario.Lab, c *peers.Contract) { c.Env.CACerts = peers.Trust(lab.OtherCA) }),
	broken("a registry that refuses the password is told as such", scenario.Full, "HPL06004E",
		"nobody; a password has expired",
		func(t *testing.T, lab *scenario.Lab, c *peers.Contract) {
			c.Workload.Auths[lab.Registry.Guest()] = peers.Auth{Username: lab.Registry.User, Password: scenario.Canary + "-old-password"}
		}),
	broken("a log host that is down stops the boot", scenario.Core, "HPL01011E",
		"a host that cuts the guest off from its owner's log",
		func(t *testing.T, lab *scenario.Lab, c *peers.Contract) {
			port, err := peers.ClosedPort()
			if err != nil {
				t.Fatal(err)
			}
			c.Env.Logging = peers.SyslogTo(port, lab.LogCA, lab.LogClient)
		}),
	broken("a log host of another authority is refused", scenario.Core, "HPL01011E",
		"somebody on the network who answers as the log host",
		func(t *testing.T, lab *scenario.Lab, c *peers.Contract) {
			c.Env.Logging = peers.SyslogTo(lab.LogHost.Port(), lab.OtherCA, lab.LogClient)
		}),
	broken("a log host that refuses the guest's certificate stops the boot", scenario.Full, "HPL01011E",
		"nobody; the certificate is of a stranger's authority",
		func(t *testing.T, lab *scenario.Lab, c *peers.Contract) {
			stranger, err := lab.OtherCA.Client("stranger")
			if err != nil {
				t.Fatal(err)
			}
			c.Env.Logging = peers.SyslogTo(lab.LogHost.Port(), lab.LogCA, stranger)
		}),
}

// broken is a scenario with one peer that is not as the contract says.
func broken(name string, tier scenario.Tier, code, attacker string, change func(*testing.T, *scenario.Lab, *peers.Contract)) scenario.Scenario {
	return scenario.Scenario{
		Name:     name,
		Attacker: attacker,
		Claim:    code + " with what to change, and an orderly power-off; no container runs.",
		Tier:     tier,
		Archs:    []string{scenario.AMD64},
		Cost:     10 * time.Second,
		Run: func(t *testing.T, lab *scenario.Lab) {
			c := lab.Small(t)
			change(t, lab, &c)
			r := lab.Boot(t, scenario.Boot{UserData: lab.Encrypt(t, c)})
			r.Failed(t, code)
			for _, p := range r.Phases {
				if p.Name == "containers" {
					t.Error("the phase of the containers began")
				}
			}
		},
	}
}
