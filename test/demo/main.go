// Command demo is what 'make demo' shows: from keys to a running container and
// back, twice, with the commands that a user would type. It ends with 0 only if
// every step did what it says.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"hpcr/test/scenario"
)

func main() {
	arch := flag.String("arch", "amd64", "architecture of the guest: amd64 or s390x")
	flag.Parse()
	if flag.NArg() > 0 || (*arch != scenario.AMD64 && *arch != scenario.S390X) {
		fmt.Fprintln(os.Stderr, "demo: -arch amd64 or -arch s390x, nothing else")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := demo(ctx, *arch); err != nil {
		fmt.Fprintf(os.Stderr, "\ndemo: failed: %v\n", err)
		os.Exit(1)
	}
}

// folder is where the demo leaves all it makes, below the repository.
const folder = "build/demo"

func demo(ctx context.Context, arch string) (err error) {
	start := time.Now()
	root, err := scenario.Root()
	if err != nil {
		return err
	}
	release, err := scenario.Claim(filepath.Join(root, folder))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	s := &stage{ctx: ctx, root: root, arch: arch}
	defer func() { err = errors.Join(err, s.clear()) }()
	if err := s.fresh(); err != nil {
		return err
	}
	for i, step := range []struct {
		title string
		do    func() error
	}{
		{"Keys: the image's own, and the deployer's signing key", s.keys},
		{"A registry (TLS, password) and a log host (rsyslog, mutual TLS) on the loopback", s.peers},
		{"The contract of docs/examples/web: filled in, signed, encrypted", s.contract},
		{"The guest's image: kernel, initrd, our binary as PID 1", s.image},
		{"First boot, on a blank disk", func() error { return s.boot(1) }},
		{"Asking the guest", func() error { return s.ask(1) }},
		{"Orderly stop", s.stop},
		{"Second boot, with the disk of the first", func() error { return s.boot(2) }},
		{"The data is still there", func() error { return s.ask(2) }},
		{"Orderly stop", s.stop},
	} {
		s.title(i+1, step.title)
		begun := time.Now()
		if err := step.do(); err != nil {
			return fmt.Errorf("step %d (%s): %w", i+1, step.title, err)
		}
		s.say("done in %.1f s", time.Since(begun).Seconds())
	}
	fmt.Printf("\nAll of it worked, in %.0f s. Consoles: %s and %s\n", time.Since(start).Seconds(),
		filepath.Join(folder, "console-1.log"), filepath.Join(folder, "console-2.log"))
	return nil
}
