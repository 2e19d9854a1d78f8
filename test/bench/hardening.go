package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"hpcr/initramfs"
)

// counting makes the guest's clock count instructions (2 ns each) while the
// guest works, so that the machine's load does not blur a difference of a few
// percent.
var counting = []string{"-icount", "shift=1,sleep=on"}

// plainly is what a guest without hardening boots with: Debian's kernels have
// the first two on unless told otherwise.
const plainly = "init_on_alloc=0 randomize_kstack_offset=0"

// closing are the phases whose whole work is hardening; the guest without it
// is spared their time.
var closing = []string{"sysctls", "firewall", "seal"}

// hardening compares start to ready with and without what closes the guest:
// kernel parameters by leaving them away, the agent's own part by its time.
func (s *setup) hardening(ctx context.Context, boots int) (figure, error) {
	f := figure{Name: "hardening: agent start to ready, instructions as time", Unit: "s", Peer: "without it", most: 1.03}
	if err := s.plainImage(); err != nil {
		return f, err
	}
	var with, without []*run
	for i := range boots {
		fmt.Fprintf(os.Stderr, "hardening: pair %d of %d\n", i+1, boots)
		for _, m := range []struct {
			image string
			into  *[]*run
		}{{"image", &with}, {"plain", &without}} {
			r, err := s.boot(ctx, machine{image: m.image, args: counting})
			if err != nil {
				return f, fmt.Errorf("hardening, %s: %w", m.image, err)
			}
			*m.into = append(*m.into, r)
		}
	}
	f.Value = median(with, func(r *run) float64 { return r.ready.Seconds() })
	f.PeerValue = median(without, func(r *run) float64 {
		ready := r.ready
		for _, name := range closing {
			ready -= r.phases[name]
		}
		return ready.Seconds()
	})
	ratio := f.Value / f.PeerValue
	f.Ratio = &ratio
	return f, nil
}

// plainImage is the image with the hardening left out of its command line.
func (s *setup) plainImage() error {
	if err := os.CopyFS(s.path("plain"), os.DirFS(s.path("image"))); err != nil {
		return err
	}
	file := filepath.Join(s.path("plain"), initramfs.ParmFile)
	line, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	words := slices.DeleteFunc(strings.Fields(string(line)), func(w string) bool { return slices.Contains(initramfs.Hardening, w) })
	return os.WriteFile(file, []byte(strings.Join(words, " ")+" "+plainly), 0o644)
}
