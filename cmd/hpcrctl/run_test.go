package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"hpcr/initramfs/qemu"
)

// What a guest's machine did is told apart from what the guest said, and
// neither hides the other.
func TestRunTellsHowAGuestEnded(t *testing.T) {
	const panicked = "[    3.2] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000200"
	ready := runResult{Verdict: "ready", Message: "HPL10001I: Services succeeded", StoppedInOrder: true}
	for name, tc := range map[string]struct {
		said    runResult
		how     qemu.End
		console string
		want    runResult
	}{
		"power-off after a verdict": {ready, qemu.EndPowerOff, "", ready},
		"power-off without one":     {runResult{}, qemu.EndPowerOff, "", runResult{Verdict: "off", Message: "the guest powered off without a verdict"}},
		"a panic on s390x":          {runResult{}, qemu.EndPanic, "", runResult{Verdict: "failed", Message: "the guest's kernel panicked; the console says why"}},
		"a panic on amd64":          {runResult{}, qemu.EndReset, panicked, runResult{Verdict: "failed", Message: "the guest's kernel panicked; the console says why"}},
		"a reset":                   {runResult{}, qemu.EndReset, "", runResult{Verdict: "failed", Message: "the guest reset itself, which no image of ours does"}},
		"QEMU died":                 {runResult{}, qemu.EndUnknown, "", runResult{Verdict: "failed", Message: "the virtual machine ended by itself or was killed"}},
		"a panic after ready": {
			ready, qemu.EndPanic, "",
			runResult{Verdict: "ready", Message: "HPL10001I: Services succeeded; then the guest's kernel panicked; the console says why"},
		},
		"the plug was pulled": {
			runResult{Verdict: "timeout", Message: "limit"}, qemu.EndUnknown, panicked, runResult{Verdict: "timeout", Message: "limit"},
		},
		"the plug was pulled after a verdict": {ready, qemu.EndUnknown, "", ready},
	} {
		t.Run(name, func(t *testing.T) {
			got := tc.said
			got.end(tc.how, tc.console)
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Errorf("result (-want +got):\n%s", d)
			}
		})
	}
}

// A console arrives in pieces; what is reported is the whole.
func TestRunReadsAFailureWhole(t *testing.T) {
	f := &follower{result: &runResult{}, verdict: make(chan struct{})}
	for _, piece := range []string{"# HPL11000E: Inter", "nal error. -> x\n# HPL10", "000E: One or more services failed\n"} {
		if _, err := f.Write([]byte(piece)); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-f.verdict:
	default:
		t.Error("the first piece is a verdict already")
	}
	f.reread()
	want := &runResult{Verdict: "failed", Message: "HPL11000E: Internal error. -> x", Codes: []string{"HPL11000E", "HPL10000E"}}
	if d := cmp.Diff(want, f.result); d != "" {
		t.Errorf("result (-want +got):\n%s", d)
	}
}
