package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"hpcr/test/peers"
	"hpcr/test/scenario"
)

// tlsCost has the network package compare the guest's TLS endpoint with nginx.
// It does so in a namespace without a way out, so nginx is fetched here.
func (s *setup) tlsCost(ctx context.Context) ([]figure, error) {
	program, module, err := peers.Nginx(ctx, os.Stderr)
	if err != nil {
		return nil, err
	}
	return s.printed(ctx, "./network", "^TestBenchTLS$", "HPCR_BENCH_NGINX="+program, "HPCR_BENCH_NGINX_STREAM="+module)
}

func onlyTLS(ctx context.Context) (err error) {
	s, release, err := newSetup(scenario.AMD64)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	figures, err := s.tlsCost(ctx)
	if err != nil {
		return err
	}
	return errors.Join(show(figures), overBudget(figures))
}

// printed runs a test that prints figures.
func (s *setup) printed(ctx context.Context, where, test string, env ...string) ([]figure, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "test", "-tags", "vm", "-count=1", "-timeout", "30m", "-v", where, "-run", test)
	cmd.Dir, cmd.Env, cmd.Stderr = s.root, append(os.Environ(), env...), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("figures of %s: %w\n%s", strings.TrimPrefix(where, "./"), err, out)
	}
	return printedFigures(string(out))
}

// printedFigures reads what bench_guest_test.go of disk and bench_vm_test.go of
// network print.
func printedFigures(out string) ([]figure, error) {
	var figures []figure
	for line := range strings.Lines(out) {
		_, text, found := strings.Cut(line, "figure: ")
		if !found {
			continue
		}
		var f struct {
			figure
			Most float64 `json:"most"`
		}
		if err := json.Unmarshal([]byte(text), &f); err != nil {
			return nil, fmt.Errorf("a printed figure: %w", err)
		}
		f.figure.most = f.Most
		figures = append(figures, f.figure)
	}
	if len(figures) == 0 {
		return nil, errors.New("the test printed no figures")
	}
	return figures, nil
}
