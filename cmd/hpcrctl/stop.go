package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"hpcr/initramfs/qemu"
)

func init() { commands = append(commands, newStopCmd) }

// state is what a kept guest leaves in its --state folder.
type state struct {
	PID     int               `json:"pid"`
	Dir     string            `json:"dir"` // of its sockets; removed by stop
	Monitor string            `json:"monitor"`
	Console string            `json:"console"`
	Health  string            `json:"health"`
	Publish map[string]string `json:"publish"`
}

const stateFile = "guest.json"

func saveState(dir string, s state) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, stateFile), append(b, '\n'), 0o600)
}

func newStopCmd() *cobra.Command {
	var dir string
	var kill bool
	cmd := &cobra.Command{
		Use:   "stop --state DIR",
		Short: "Stop a guest that 'hpcrctl run --keep' left running",
		Long: `Ask a kept guest to stop in order, as a host's shutdown does, and wait for its
power-off. Exit status 1 if it does not stop within 100 s, or did not close
everything in order; --kill pulls the plug instead of asking.`,
		Example: `  hpcrctl stop --state vm`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir == "" {
				return usage("--state DIR is missing")
			}
			return stopKept(cmd, dir, kill)
		},
	}
	cmd.Flags().StringVar(&dir, "state", "", "folder that run --keep was given")
	cmd.Flags().BoolVar(&kill, "kill", false, "pull the plug")
	return cmd
}

func stopKept(cmd *cobra.Command, dir string, kill bool) error {
	b, err := os.ReadFile(filepath.Join(dir, stateFile))
	if err != nil {
		return usage("no kept guest: %w", err)
	}
	var s state
	if err := json.Unmarshal(b, &s); err != nil {
		return usage("%s: %w", filepath.Join(dir, stateFile), err)
	}
	if s.running() {
		if err := s.stop(cmd.Context(), kill); err != nil {
			return err
		}
	}
	console, readErr := os.ReadFile(s.Console)
	ordered := kill || stoppedLine.MatchString(strings.ReplaceAll(string(console), "\r", ""))
	if err := errors.Join(os.RemoveAll(s.Dir), os.Remove(filepath.Join(dir, stateFile))); err != nil {
		return err
	}
	if !ordered {
		return errors.Join(errors.New("the guest is off, but did not say that it closed everything"), readErr)
	}
	fmt.Fprintln(cmd.ErrOrStderr(), "the guest is off")
	return nil
}

// running says whether the process is still our QEMU and not a successor.
func (s *state) running() bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", s.PID))
	return err == nil && strings.Contains(string(b), s.Monitor)
}

func (s *state) stop(ctx context.Context, kill bool) error {
	if kill {
		if err := syscall.Kill(s.PID, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	} else if err := qemu.Powerdown(ctx, s.Monitor); err != nil && s.running() {
		return fmt.Errorf("the guest cannot be asked to stop (--kill pulls the plug): %w", err)
	}
	for end := time.Now().Add(stopGrace); s.running(); {
		if time.Now().After(end) {
			return fmt.Errorf("the guest did not stop within %s (--kill pulls the plug)", stopGrace)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil
}
