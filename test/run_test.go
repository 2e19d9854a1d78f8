//go:build vm

package test

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hpcr/test/scenario"
)

var runScenarios = []scenario.Scenario{{
	Name:     "run ends with the status that its caller scripts against",
	Attacker: "nobody",
	Claim: "A guest that is never ready makes --exec end with 1 and its command never run; the time limit is 124; " +
		"a ready guest's --exec ends with the command's own status, after an orderly stop.",
	Tier:  scenario.Core,
	Archs: []string{scenario.AMD64},
	Cost:  28 * time.Second,
	Run:   runStatus,
}}

func runStatus(t *testing.T, lab *scenario.Lab) {
	good := lab.Plain(t, lab.Small(t))
	for name, tt := range map[string]struct {
		args []string
		want int
		say  string
	}{
		"never ready": {[]string{"--exec", "echo COMMAND RAN"}, 1, `"verdict":"failed"`},
		"time limit":  {[]string{"--timeout", "2s"}, 124, `"verdict":"timeout","codes":[],"message":"the guest gave no verdict within the time limit of 2s"`},
		"command":     {[]string{"--user-data", good, "--exec", `test -n "$HPCR_HEALTH" && exit 7`}, 7, `"stoppedInOrder":true`},
		"wrong usage": {[]string{"--until", "never"}, 2, ""},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
		cmd := exec.CommandContext(ctx, lab.Ctl, append([]string{"run", "--json", "--image", lab.Image(t), "--console", filepath.Join(lab.Dir, "status-console")}, tt.args...)...)
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		err := cmd.Run()
		cancel()
		status := 0
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			status = exit.ExitCode()
		} else if err != nil {
			t.Fatal(err)
		}
		if status != tt.want || !strings.Contains(stdout.String(), tt.say) {
			t.Errorf("%s: status %d, want %d, saying %s\n%s%s", name, status, tt.want, tt.say, stdout.String(), stderr.String())
		}
		if strings.Contains(stderr.String(), "COMMAND RAN") {
			t.Errorf("%s: the command ran without a ready guest", name)
		}
	}
}
