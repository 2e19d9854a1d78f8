//go:build vm

package test

import (
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hpcr/test/peers"
	"hpcr/test/scenario"
)

var contractScenarios = []scenario.Scenario{
	{
		Name:     "a guest without cidata powers off",
		Attacker: "a host that withholds the contract",
		Claim:    "HPL11001E alone, as from HPCR's bootloader, and an orderly power-off.",
		Tier:     scenario.Core,
		Archs:    []string{scenario.AMD64},
		Cost:     11 * time.Second,
		Run: func(t *testing.T, lab *scenario.Lab) {
			lab.Boot(t, scenario.Boot{}).Failed(t, "HPL11001E")
		},
	},
	{
		Name:     "a blank device in the place of cidata powers off",
		Attacker: "a host that attaches a disk without a label where the contract should be",
		Claim:    "HPL11001E alone: no other device is taken for the contract.",
		Tier:     scenario.Full,
		Archs:    []string{scenario.AMD64},
		Cost:     8 * time.Second,
		Run: func(t *testing.T, lab *scenario.Lab) {
			lab.Boot(t, scenario.Boot{Cidata: sparse(t, lab, "blank.iso", 1<<20)}).Failed(t, "HPL11001E")
		},
	},
	{
		Name:     "an empty user-data powers off",
		Attacker: "a host that empties the contract",
		Claim:    "HPL11001E alone, and an orderly power-off.",
		Tier:     scenario.Core,
		Archs:    []string{scenario.AMD64},
		Cost:     8 * time.Second,
		Run: func(t *testing.T, lab *scenario.Lab) {
			lab.Boot(t, scenario.Boot{UserData: lab.File(t, "user-data", nil)}).Failed(t, "HPL11001E")
		},
	},
	{
		Name:     "a contract for another image's key powers off",
		Attacker: "a host that gives the guest somebody else's contract",
		Claim:    "HPL11001E alone: nothing of the contract is used when its token does not open.",
		Tier:     scenario.Core,
		Archs:    scenario.Both,
		Cost:     8 * time.Second,
		Run: func(t *testing.T, lab *scenario.Lab) {
			lab.Boot(t, scenario.Boot{UserData: lab.EncryptFor(t, lab.Small(t), lab.Other)}).Failed(t, "HPL11001E")
		},
	},
	{
		Name:     "an env section swapped under a signature is refused",
		Attacker: "a host that knows the public certificate and writes an env section of its own under the owner's workload",
		Claim:    "HPL12001E before any value of the swapped section is used: no log host and no registry hears of this guest.",
		Tier:     scenario.Core,
		Archs:    scenario.Both,
		Cost:     8 * time.Second,
		Run:      swappedEnv,
	},
	{
		Name:     "a workload joined with a stranger's env is refused",
		Attacker: "a host that has the provider's encrypted workload, writes an env of its own and signs the two with a key of its own",
		Claim:    "HPL12001E at the provider's condition (x-hpcr.require.signingKeys), before any value of that env is used.",
		Tier:     scenario.Full,
		Archs:    scenario.Both,
		Cost:     8 * time.Second,
		Run:      strangersEnv,
	},
	{
		Name:     "a token with one changed character is refused",
		Attacker: "a host that flips bits in the contract",
		Claim:    "HPL11001E: padding, UTF-8 or YAML breaks, and one error stands for all of them.",
		Tier:     scenario.Full,
		Archs:    []string{scenario.AMD64},
		Cost:     8 * time.Second,
		Run: func(t *testing.T, lab *scenario.Lab) {
			sections := sections(t, lab.Encrypt(t, lab.Small(t)))
			env := sections["env"]
			// The last block: the padding, and with it the end of the YAML.
			at := len(env) - 12
			changed := "A"
			if env[at] == 'A' {
				changed = "B"
			}
			sections["env"] = env[:at] + changed + env[at+1:]
			lab.Boot(t, scenario.Boot{UserData: envelope(t, lab, sections)}).Failed(t, "HPL11001E")
		},
	},
	{
		Name:     "a contract that breaks the schema is refused",
		Attacker: "nobody; a provider forgets the workload's kind",
		Claim:    "HPL05001E with the path in the contract.",
		Tier:     scenario.Core,
		Archs:    []string{scenario.AMD64},
		Cost:     8 * time.Second,
		Run: func(t *testing.T, lab *scenario.Lab) {
			c := lab.Small(t)
			c.Workload.Compose = nil
			r := lab.Boot(t, scenario.Boot{UserData: lab.Encrypt(t, c)})
			r.Failed(t, "HPL05001E")
			if !strings.Contains(r.Message, "/workload") {
				t.Errorf("message %q names no path", r.Message)
			}
		},
	},
	{
		Name:     "an image that is not pinned is refused",
		Attacker: "a registry that could serve what it likes",
		Claim:    "HPL06010E, and the registry is never asked.",
		Tier:     scenario.Core,
		Archs:    []string{scenario.AMD64},
		Cost:     8 * time.Second,
		Run: func(t *testing.T, lab *scenario.Lab) {
			c := lab.Small(t)
			const repo = scenario.Canary + "repo/never-asked"
			c.Workload.Compose = lab.Compose(t, fmt.Sprintf("services:\n  canaryidle:\n    image: %s/%s:latest\n", lab.Registry.Guest(), repo))
			lab.Boot(t, scenario.Boot{UserData: lab.Encrypt(t, c)}).Failed(t, "HPL06010E")
			neverAsked(t, lab, repo)
		},
	},
}

func swappedEnv(t *testing.T, lab *scenario.Lab) {
	const repo = scenario.Canary + "repo/under-a-wrong-signature"
	owner := lab.Contract(t)
	owner.Workload.Volumes, owner.Env.Volumes = nil, nil
	owner.Workload.Compose = lab.Compose(t, fmt.Sprintf("services:\n  canaryidle:\n    image: %s/%s@sha256:%s\n", lab.Registry.Guest(), repo, strings.Repeat("0", 64)))
	signed := sections(t, lab.Sign(t, owner))
	other := owner
	other.Env.Env = map[string]string{"CANARY_GREETING": "the attacker's"}
	swapped := sections(t, lab.Sign(t, other))
	signed["env"] = swapped["env"]
	lab.Boot(t, scenario.Boot{UserData: envelope(t, lab, signed)}).Failed(t, "HPL12001E")
	neverAsked(t, lab, repo)
	notTold(t, lab)
}

// strangersEnv is the same guest for a host that signs as well: its signature
// holds, but the provider named the one key that may sign.
func strangersEnv(t *testing.T, lab *scenario.Lab) {
	const repo = scenario.Canary + "repo/under-a-strangers-signature"
	c := lab.Contract(t)
	c.Workload.Volumes, c.Env.Volumes = nil, nil
	c.Workload.Compose = lab.Compose(t, fmt.Sprintf("services:\n  canaryidle:\n    image: %s/%s@sha256:%s\n", lab.Registry.Guest(), repo, strings.Repeat("0", 64)))
	public, err := exec.Command("openssl", "pkey", "-in", lab.Signing, "-pubout").Output()
	if err != nil {
		t.Fatal(err)
	}
	c.Workload.XHPCR = map[string]any{"require": map[string]any{"signingKeys": []string{base64.StdEncoding.EncodeToString(public)}}}
	workload := sections(t, lab.Encrypt(t, c))["workload"]

	c.Env.Env = map[string]string{"CANARY_GREETING": "the attacker's"}
	joined := sections(t, lab.Plain(t, c))
	joined["workload"] = workload
	key := lab.File(t, "stranger.key", nil)
	if out, err := exec.Command("openssl", "genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072", "-out", key).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	signed := lab.Hpcrctl(t, "contract", "sign", "--signing-key", key, "--cert", filepath.Join(lab.Keys, "contract.crt"), envelope(t, lab, joined))
	r := lab.Boot(t, scenario.Boot{UserData: lab.File(t, "signed", signed)})
	r.Failed(t, "HPL12001E")
	if !strings.Contains(r.Message, "/workload/x-hpcr/require/signingKeys") {
		t.Errorf("message %q does not name the condition", r.Message)
	}
	neverAsked(t, lab, repo)
	notTold(t, lab)
}

// notTold expects that the log host of a contract that was not verified has
// not heard of this guest.
func notTold(t *testing.T, lab *scenario.Lab) {
	t.Helper()
	messages, err := lab.LogHost.Messages()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range messages {
		if strings.Contains(m, " "+lab.Hostname()+" ") {
			t.Fatalf("the log host of an unverified contract was told: %s", m)
		}
	}
}

// neverAsked expects that no guest asked the registry for a repository.
func neverAsked(t *testing.T, lab *scenario.Lab, repo string) {
	t.Helper()
	for _, request := range lab.Registry.Requests() {
		if strings.Contains(request, repo) {
			t.Errorf("the registry was asked: %s", request)
		}
	}
}

func sections(t *testing.T, userData string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(userData)
	if err != nil {
		t.Fatal(err)
	}
	s, err := peers.Sections(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func envelope(t *testing.T, lab *scenario.Lab, sections map[string]string) string {
	t.Helper()
	text, err := peers.Envelope(sections)
	if err != nil {
		t.Fatal(err)
	}
	return lab.File(t, "user-data", text)
}
