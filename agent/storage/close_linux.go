package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"hpcr/agent/sandbox"
	"hpcr/disk"
)

// How long the child waits for users of a mount, before it takes the mount away
// from them: after an orderly stop, and when the agent has died and its
// containers live.
const (
	closePatience = 5 * time.Second
	lastPatience  = time.Second
)

// Close unmounts and closes all disks in a child. A child that is stuck in the
// kernel is left behind when ctx ends.
func Close(ctx context.Context) error { return closeBy(ctx, "all") }

// CloseVolumes is Close for all but the scratch disk, which others use.
func CloseVolumes(ctx context.Context) error { return closeBy(ctx, "volumes") }

func closeBy(ctx context.Context, which string) error {
	cmd := exec.CommandContext(ctx, ClosePath, which)
	cmd.Dir = "/"
	var out bytes.Buffer
	cmd.Stdout = &out // an error a volume, by disk.CloseAll
	done := make(chan error, 1)
	go func() { done <- cmd.Run() }()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("close the volumes: %w: %.1000q", err, out.String())
		}
		return nil
	case <-ctx.Done():
		select {
		case <-done:
		case <-time.After(time.Second):
		}
		return errors.Join(errors.New("a volume does not close: its disk does not answer"), ctx.Err())
	}
}

// CloseMain is the applet that closes: the agent's in an orderly stop, and what
// PID 1 runs last when the agent has died. Only the agent wants a report:
// stdout may be the console.
func CloseMain() {
	err := sandbox.ConfineRoot(unix.CAP_SYS_ADMIN, unix.CAP_DAC_OVERRIDE, unix.CAP_MKNOD, unix.CAP_IPC_LOCK)
	patience, report := lastPatience, len(os.Args) > 1
	if report {
		patience = closePatience
	}
	if err == nil {
		// Whoever waits for this child bounds it.
		if report && os.Args[1] == "volumes" {
			err = disk.CloseVolumes(context.Background(), patience)
		} else {
			err = disk.CloseAll(context.Background(), patience)
		}
	}
	if err == nil {
		os.Exit(0)
	}
	if report {
		fmt.Println(err)
	}
	os.Exit(1)
}
