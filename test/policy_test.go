//go:build vm

package test

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hpcr/test/scenario"
)

var policyScenarios = []scenario.Scenario{{
	Name:     "the policy in the image binds the guest",
	Attacker: "a host that writes a contract of its own in the clear, or gives the guest too little memory",
	Claim: "An image built with requireEncryption and minMemoryMiB refuses both: HPL05001E at the plain section, HPL11003E before " +
		"cidata is read. (That such a contract starts on the lab's own image is another scenario's claim.)",
	Tier:  scenario.Core,
	Archs: []string{scenario.AMD64},
	Cost:  14 * time.Second,
	Run:   policyBinds,
}}

func policyBinds(t *testing.T, lab *scenario.Lab) {
	rules := lab.File(t, "strict.yaml", []byte("requireEncryption: true\nminMemoryMiB: 1024\n"))
	image := filepath.Join(lab.Dir, "strict-image")
	lab.Hpcrctl(t, "image", "build", "--source", lab.Root, "--arch", lab.Arch, "--keys", lab.Keys, "--dev", "--policy", rules, "--out", image)
	c := lab.Small(t)

	small := lab.Boot(t, scenario.Boot{Image: image, UserData: lab.Encrypt(t, c), Args: []string{"--memory", "768M"}})
	small.Failed(t, "HPL11003E")
	if strings.Contains(small.Console, "decrypt user-data") {
		t.Errorf("the contract was touched:\n%s", small.Console)
	}
	plain := lab.Boot(t, scenario.Boot{Image: image, UserData: lab.Plain(t, c), Args: []string{"--memory", "1024M"}})
	plain.Failed(t, "HPL05001E")
	if !strings.Contains(plain.Message, "/workload") {
		t.Errorf("the verdict does not name the section: %s", plain.Message)
	}
}
