// Command bench is what 'make bench' runs: it boots the demo's contract and
// measures how long the guest takes from its start to a served page, with each
// phase, what our processes keep of memory, and how large the initrd is. It
// writes build/bench.json and prints the same as a table.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"text/tabwriter"

	"hpcr/test/scenario"
)

func main() {
	arch := flag.String("arch", scenario.AMD64, "architecture of the guest: amd64 or s390x")
	boots := flag.Int("boots", 3, "how many guests to boot; figures are medians")
	only := flag.String("only", "", "contract, volumes, logs, tls: print these figures alone, write nothing")
	child := flag.Bool("volume-child", false, "one side of a comparison: see volumes.go")
	logs := flag.Bool("log-child", false, "our side of a comparison: see logs.go")
	applet := flag.String("applet", "", "with -only: measure this program right here, and print JSON on one line")
	flag.Parse()
	if !*child && !*logs && flag.NArg() > 0 || *boots < 1 || !slices.Contains([]string{"", "contract", "volumes", "logs", "tls"}, *only) || !slices.Contains(scenario.Both, *arch) {
		fmt.Fprintln(os.Stderr, "bench: -arch amd64 or -arch s390x, and -boots at least 1")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	do := func() error { return bench(ctx, *arch, *boots) }
	switch {
	case *child:
		do = func() error { return volumeChild(ctx, flag.Args()) }
	case *logs:
		do = func() error { return logChild(ctx, flag.Args()) }
	case *only == "tls":
		do = func() error { return onlyTLS(ctx) }
	case *only == "logs":
		do = func() error { return onlyLogs(ctx) }
	case *only == "contract":
		do = func() error { return onlyContract(ctx, *arch, *applet) }
	case *only == "volumes":
		do = func() error { return onlyVolumes(ctx) }
	}
	if err := do(); err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

func onlyContract(ctx context.Context, arch, applet string) (err error) {
	if applet != "" {
		dir, err := os.MkdirTemp("", "hpcr-bench-")
		if err != nil {
			return err
		}
		figures, err := contractCost(applet, dir)
		if err == nil {
			err = printLine(figures)
		}
		return errors.Join(err, os.RemoveAll(dir))
	}
	s, release, err := newSetup(arch)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	if err := s.image(ctx); err != nil {
		return err
	}
	figures, err := s.reading(ctx)
	if err != nil {
		return err
	}
	return errors.Join(show(figures), overBudget(figures))
}

// newSetup has the bench's folder to itself until it is released.
func newSetup(arch string) (s *setup, release func() error, err error) {
	root, err := scenario.Root()
	if err != nil {
		return nil, nil, err
	}
	s = &setup{root: root, arch: arch, dir: filepath.Join(root, "build", "bench")}
	release, err = scenario.Claim(s.dir)
	return s, release, err
}

// figure is one line of bench.json.
type figure struct {
	Name      string   `json:"name"`
	Unit      string   `json:"unit"`
	Value     float64  `json:"value"`
	Peer      string   `json:"peer,omitempty"`
	PeerValue float64  `json:"peerValue,omitempty"`
	Ratio     *float64 `json:"ratio,omitempty"` // ours to the peer's

	most float64 // budget of Ratio, of Value where there is none; 0 = none
}

// overBudget names the figures that break a promise of docs/budgets.md. Only
// what does not depend on the machine has one.
func overBudget(figures []figure) error {
	var errs []error
	for _, f := range figures {
		v := f.Value
		if f.Ratio != nil {
			v = *f.Ratio
		}
		if f.most > 0 && v > f.most {
			errs = append(errs, fmt.Errorf("over its budget: %s: %.3f, at most %g", f.Name, v, f.most))
		}
	}
	return errors.Join(errs...)
}

func bench(ctx context.Context, arch string, boots int) (err error) {
	s, release, err := newSetup(arch)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close(), release()) }()
	if err := s.prepare(ctx); err != nil {
		return err
	}
	var runs []*run
	for i := range boots {
		fmt.Fprintf(os.Stderr, "boot %d of %d\n", i+1, boots)
		// The first boot formats the disk; the others open it, as most do.
		r, err := s.boot(ctx, machine{image: "image"})
		if err != nil {
			return fmt.Errorf("boot %d: %w", i+1, err)
		}
		runs = append(runs, r)
	}
	figures := summarize(arch, runs)
	cost, err := s.hardening(ctx, boots)
	if err != nil {
		return err
	}
	figures = append(figures, cost)
	reading, err := s.reading(ctx)
	if err != nil {
		return err
	}
	figures = append(figures, reading...)
	if arch == scenario.AMD64 { // nothing in it depends on the architecture but its crypto's speed
		volumes, err := s.volumes(ctx)
		if err != nil {
			return err
		}
		figures = append(figures, volumes...)
		logs, err := logCost(ctx, s.path("logs"))
		if err != nil {
			return err
		}
		figures = append(figures, logs...)
		tls, err := s.tlsCost(ctx)
		if err != nil {
			return err
		}
		figures = append(figures, tls...)
	}
	initrd, err := os.Stat(filepath.Join(s.dir, "image", "initrd"))
	if err != nil {
		return fmt.Errorf("the initrd: %w", err)
	}
	figures = append(figures, figure{Name: "initrd", Unit: "bytes", Value: float64(initrd.Size()), most: 25e6})
	text, err := json.MarshalIndent(figures, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(s.root, "build", "bench.json"), append(text, '\n'), 0o644); err != nil {
		return err
	}
	return errors.Join(show(figures), overBudget(figures))
}

// What users run today, on amd64 with the same kernel, contract, disk, network
// and one small container, under TCG: Debian with docker compose, or with
// podman. Ours is compared with each.
var peersToday = []struct {
	name         string
	seconds, mib float64
}{
	{"Debian + docker compose", 32.3, 159},
	{"Debian + podman", 18.4, 20},
}

// summarize takes medians.
func summarize(arch string, runs []*run) []figure {
	var out []figure
	add := func(name, unit string, of func(*run) float64) float64 {
		v := median(runs, of)
		out = append(out, figure{Name: name, Unit: unit, Value: v})
		return v
	}
	compare := func(name, unit string, v float64, peer string, theirs float64) {
		ratio := v / theirs
		out = append(out, figure{Name: name, Unit: unit, Value: v, Peer: peer, PeerValue: theirs, Ratio: &ratio})
	}
	served := add("QEMU start to HTTP 200", "s", func(r *run) float64 { return r.served.Seconds() })
	add("agent start to ready", "s", func(r *run) float64 { return r.ready.Seconds() })
	add("kernel to agent", "s", func(r *run) float64 { return r.hello.Seconds() })
	for _, name := range runs[0].order {
		add("phase "+name, "s", func(r *run) float64 { return r.phases[name].Seconds() })
	}
	idle := add("memory of our processes at idle (PSS)", "MiB", func(r *run) float64 { return r.idle() })
	add("memory of our processes at peak (sum of highest RSS)", "MiB", func(r *run) float64 { return r.peak() })
	for _, name := range runs[0].processes() {
		add("PSS of "+name, "MiB", func(r *run) float64 { return float64(r.pss[name]) / 1024 })
	}
	if arch == scenario.AMD64 {
		for _, p := range peersToday {
			compare("QEMU start to HTTP 200", "s", served, p.name, p.seconds)
			compare("memory of our processes at idle (PSS)", "MiB", idle, p.name, p.mib)
		}
	}
	return out
}

func median(runs []*run, of func(*run) float64) float64 {
	var all []float64
	for _, r := range runs {
		all = append(all, of(r))
	}
	slices.Sort(all)
	if n := len(all); n%2 == 0 {
		return (all[n/2-1] + all[n/2]) / 2
	}
	return all[len(all)/2]
}

func show(figures []figure) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	for _, f := range figures {
		digits := 3
		if f.Unit != "s" {
			digits = 1
		}
		line := fmt.Sprintf("%s\t%.*f %s", f.Name, digits, f.Value, f.Unit)
		if f.Ratio != nil {
			line += fmt.Sprintf("\t%.2f of %s (%.1f %s)", *f.Ratio, f.Peer, f.PeerValue, f.Unit)
		}
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	return w.Flush()
}
