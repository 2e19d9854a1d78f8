//go:build vm

package test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"hpcr/test/scenario"
)

var releaseScenarios = []scenario.Scenario{{
	Name:     "a release image starts in Secure Execution and nowhere else",
	Attacker: "a host that boots the image in the clear, to see the contract's keys at work; then one that looks for what dev images offer",
	Claim: "Outside: HPL11000E before cidata is read, and power-off. Where /sys/firmware says Secure Execution (a test's own initrd archive " +
		"covers it before the image's /init): ready, with the log host reached and the record served from a container; record and health on " +
		"vsock say release; a pause of 6 s is survived; durations are whole seconds, the stop is in order. Nothing of dev answers: no event, no TCP health.",
	Tier:  scenario.Core,
	Archs: scenario.Both,
	Cost:  45 * time.Second,
	Run:   release,
}}

func release(t *testing.T, lab *scenario.Lab) {
	keys, image := filepath.Join(lab.Dir, "release-keys"), filepath.Join(lab.Dir, "release-image")
	lab.Hpcrctl(t, "keys", "new", "--out", keys, "--flavour", "release")
	lab.Hpcrctl(t, "image", "build", "--source", lab.Root, "--arch", lab.Arch, "--keys", keys, "--out", image)

	c := lab.Contract(t)
	c.Workload.Volumes, c.Env.Volumes = nil, nil
	c.Workload.Compose = lab.Compose(t, fmt.Sprintf(`services:
  canaryrecord:
    image: %s
    entrypoint: [/bin/busybox, httpd, -f, -p, "8080", -h, /var/hyperprotect]
    ports: ["8080:8080"]
    volumes: ["/var/hyperprotect/:/var/hyperprotect/:ro"]
`, lab.Web(t)))
	userData := lab.EncryptFor(t, c, keys)

	refused := lab.Boot(t, scenario.Boot{Image: image, UserData: userData})
	refused.Failed(t, "HPL11000E")
	if strings.Contains(refused.Console, "decrypt user-data") {
		t.Errorf("the contract was touched:\n%s", refused.Console)
	}

	covered := lab.Overlay(t, image, "covered-image", lab.StandIn(t, "outer"), scenario.Outer(""))
	g := lab.Release(t, covered, userData, 8080, 9080)
	logged(t, lab, "HPL10001I")
	// Longer than an agent may be silent.
	g.Pause(t, 6*time.Second)
	if record := fetch(t, "http://"+g.Address(8080)+"/se-checksums.txt"); !strings.Contains(record, "\nFlavour: release\n") {
		t.Errorf("the record does not say its flavour:\n%s", record)
	}
	releaseHealth(t, g)
	if resp, err := (&http.Client{Timeout: 5 * time.Second}).Get("http://" + g.Address(9080) + "/healthz"); err == nil {
		t.Errorf("a release image answers on TCP 9080: %s", resp.Status)
		_ = resp.Body.Close() // the test has failed already
	}
	console := g.Stop(t)
	took := regexp.MustCompile(`(?m)^hpcr-boot\[\d+\]: ([a-z]+) done in (.*?)\r?$`).FindAllStringSubmatch(console, -1)
	if len(took) != len(phases) {
		t.Errorf("the console has %d phases, want %d:\n%s", len(took), len(phases), console)
	}
	for _, m := range took {
		if !regexp.MustCompile(`^\d+ s$`).MatchString(m[2]) {
			t.Errorf("phase %s: %q is finer than a second", m[1], m[2])
		}
	}
}

// releaseHealth asks the one thing that a release image answers its host.
func releaseHealth(t *testing.T, g *scenario.Release) {
	t.Helper()
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return g.Dial(ctx, 9080) },
	}}
	resp, err := client.Get("http://guest/healthz")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	if err != nil {
		t.Fatal(err)
	}
	var report struct {
		Ready   bool
		Flavour string
	}
	if err := json.Unmarshal(body, &report); err != nil || !report.Ready || report.Flavour != "release" || len(body) != 512 {
		t.Errorf("health of a release image that is ready: %v, %d octets: %q", err, len(body), body)
	}
}
