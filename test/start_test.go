//go:build vm

package test

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"hpcr/test/peers"
	"hpcr/test/scenario"
)

var startScenarios = []scenario.Scenario{
	{
		Name:     "a signed contract becomes a container whose data outlives the guest",
		Attacker: "a host that boots the guest once more with another seed in between",
		Claim: "The page, the log host's messages and the health answers come from the contract's container and from no one else; " +
			"the wrong seed is refused at once with the disk untouched; the next boot counts on from the first one's file; " +
			"stock cryptsetup opens the partition with the owner's passphrase, and a plain Debian mounts it and reads the file.",
		Tier:  scenario.Core,
		Archs: scenario.Both,
		Cost:  60 * time.Second,
		Run:   wholeLife,
	},
	{
		Name:     "several services of a project find each other by name",
		Attacker: "nobody",
		Claim:    "A second service, started after the first, resolves its name and gets its page; what it got arrives at the log host.",
		Tier:     scenario.Core,
		Archs:    []string{scenario.AMD64},
		Cost:     20 * time.Second,
		Run:      severalServices,
	},
	{
		Name:     "a plain contract without a log host starts where the policy lets it",
		Attacker: "nobody",
		Claim:    "A dev image's policy asks for neither encryption nor logging: the guest starts, says that no token was decrypted, and stays clean.",
		Tier:     scenario.Core,
		Archs:    []string{scenario.AMD64},
		Cost:     24 * time.Second,
		Run: func(t *testing.T, lab *scenario.Lab) {
			r := lab.Boot(t, scenario.Boot{UserData: lab.Plain(t, lab.Small(t))})
			r.Ready(t)
			if !strings.Contains(r.Console, "0 token decrypted, 0 encrypted token ignored") {
				t.Errorf("the console does not count the tokens:\n%s", r.Console)
			}
		},
	},
	{
		Name:     "an image of several architectures is pulled by its index",
		Attacker: "nobody",
		Claim:    "The digest of an index pins the image of the guest's own architecture.",
		Tier:     scenario.Full,
		Archs:    scenario.Both,
		Cost:     30 * time.Second,
		Run:      byIndex,
	},
}

func wholeLife(t *testing.T, lab *scenario.Lab) {
	c := lab.Contract(t)
	disk := filepath.Join(lab.Dir, "data.img")
	boot := func(start int) scenario.Boot {
		return scenario.Boot{
			UserData: lab.Sign(t, c),
			Disks:    []string{scenario.Volume + "=" + disk + ":512M"},
			Publish:  []int{8080},
			While: func(g *scenario.Guest) {
				page := fetch(t, "http://"+g.Address(8080)+"/")
				if want := fmt.Sprintf("starts: %d\ngreeting: %s\n", start, scenario.Greeting); page != want {
					t.Errorf("the page is %q, want %q", page, want)
				}
				line := logged(t, lab, fmt.Sprintf("web: start number %d", start))
				if !strings.HasSuffix(line, "serving on port 8080") {
					t.Errorf("the container's line arrived as %q", line)
				}
				logged(t, lab, "HPL10001I")
				healthy(t, lab, g)
			},
		}
	}

	first := lab.Boot(t, boot(1))
	first.Ready(t)
	for _, want := range []string{"2 token decrypted, 0 encrypted token ignored", "# decrypt user-data...", "HPL07003I", "HPL01010I"} {
		if !strings.Contains(first.Console, want) {
			t.Errorf("the console lacks %q:\n%s", want, first.Console)
		}
	}
	var order []string
	for _, p := range first.Phases {
		order = append(order, p.Name)
	}
	slices.Sort(order)
	if want := slices.Sorted(slices.Values(phases)); !slices.Equal(order, want) {
		t.Errorf("the boot's phases are %v, want %v", order, want)
	}
	// The container's last line left the guest before it went.
	logged(t, lab, "web: asked to stop")

	ownerOpens(t, lab, disk, c)

	before := sum(t, disk)
	wrong := lab.Contract(t)
	wrong.Env.Volumes = map[string]peers.EnvVolume{scenario.Volume: {Seed: scenario.Canary + "-another-seed-01"}}
	refused := lab.Boot(t, scenario.Boot{UserData: lab.Sign(t, wrong), Disks: []string{scenario.Volume + "=" + disk}})
	refused.Failed(t, "HPL02003E")
	if refused.Took > 90*time.Second {
		t.Errorf("the wrong seed was refused after %s: it must not look like a missing disk", refused.Took)
	}
	if after := sum(t, disk); after != before {
		t.Error("a boot with a wrong seed changed the disk")
	}

	lab.Boot(t, boot(2)).Ready(t)
	debianOpens(t, lab, disk, c, "2")
}

// healthy asks each path of the guest's health service.
func healthy(t *testing.T, lab *scenario.Lab, g *scenario.Guest) {
	t.Helper()
	base := strings.TrimSuffix(g.Health, "/")
	for _, path := range []string{"/livez", "/readyz", "/healthz"} {
		body := fetch(t, base+path)
		lab.Clean(t, "health answer", body)
		if path != "/healthz" {
			continue
		}
		var h map[string]any
		if err := json.Unmarshal([]byte(body), &h); err != nil {
			t.Errorf("%s is no JSON: %v: %q", path, err, body)
		}
	}
	lab.Clean(t, "health command", string(lab.Hpcrctl(t, "health", g.Health, "--json")))
}

// ownerOpens opens the data partition of the disk, while its guest is off,
// with what the owner knows and Debian's cryptsetup.
func ownerOpens(t *testing.T, lab *scenario.Lab, disk string, c peers.Contract) {
	t.Helper()
	passphrase := lab.Hpcrctl(t, "volume", "passphrase", "--contract", lab.Sign(t, c), "--key", filepath.Join(lab.Keys, "contract.key"), "--volume", scenario.Volume)
	if !regexp.MustCompile(`^[0-9a-f]{64}$`).Match(passphrase) {
		t.Fatalf("the passphrase has %d bytes, want 64 hex digits and no newline", len(passphrase))
	}
	part := dataPartition(t, lab, disk)
	lab.Command(t, "timeout", "-s", "KILL", "120", "cryptsetup", "open", "--test-passphrase", "--type", "luks2",
		"--key-file", lab.File(t, "passphrase", passphrase), part)
	// And not with anything else: cryptsetup's status 2 is a wrong passphrase.
	wrong := lab.File(t, "wrong-passphrase", []byte(strings.Repeat("0", 64)))
	out, err := exec.Command("timeout", "-s", "KILL", "120", "cryptsetup", "open", "--test-passphrase", "--type", "luks2", "--key-file", wrong, part).CombinedOutput()
	if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 2 {
		t.Errorf("cryptsetup with a wrong passphrase: %v, want exit status 2: %s", err, out)
	}
}

func severalServices(t *testing.T, lab *scenario.Lab) {
	c := lab.Contract(t)
	c.Workload.Volumes, c.Env.Volumes = nil, nil
	c.Workload.Compose = lab.Compose(t, fmt.Sprintf(`services:
  canaryprobe:
    image: %[1]s
    command: [probe, canaryweb, "8080"]
    depends_on: [canaryweb]
  canaryweb:
    image: %[1]s
    environment: {DATA: /tmp/data, GREETING: two services}
`, lab.Web(t)))
	lab.Boot(t, scenario.Boot{UserData: lab.Encrypt(t, c), While: func(*scenario.Guest) {
		logged(t, lab, "probe: got starts: 1")
	}}).Ready(t)
}

func byIndex(t *testing.T, lab *scenario.Lab) {
	var images []*peers.Image
	for _, arch := range scenario.Both {
		busybox, err := peers.Busybox(t.Context(), arch, t.Output())
		if err != nil {
			t.Fatal(err)
		}
		image, err := peers.WebImage(arch, busybox)
		if err != nil {
			t.Fatal(err)
		}
		images = append(images, image)
	}
	index, err := peers.Index(images...)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := lab.Registry.Push(t.Context(), scenario.Canary+"repo/index", index)
	if err != nil {
		t.Fatal(err)
	}
	c := lab.Small(t)
	c.Workload.Compose = lab.Compose(t, fmt.Sprintf("services:\n  canaryidle:\n    image: %s/%s\n    command: [idle]\n", lab.Registry.Guest(), ref))
	lab.Boot(t, scenario.Boot{UserData: lab.Encrypt(t, c)}).Ready(t)
}
