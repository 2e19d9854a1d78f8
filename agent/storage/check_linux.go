package storage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"hpcr/agent/sandbox"
	"hpcr/disk"
)

// Check compares open volumes with what they were when they opened. The
// result has a line for each volume, in order: "" or what is wrong.
func Check(ctx context.Context, volumes []*disk.Volume) ([]string, error) {
	in, err := json.Marshal(volumes)
	if err != nil {
		return nil, err
	}
	var lines []string
	err = sandbox.Spawn(ctx, sandbox.Child{
		Path: checkPath, Name: "disk-check", Stdin: in, Root: true, Memory: checkMemory, Output: maxAnswer, Limit: checkLimit,
	}, func(answer []byte, refused bool) error {
		if refused {
			return sandbox.ReadRefusal(answer, "HPL02120E", "the disks could not be checked")
		}
		return json.Unmarshal(answer, &lines)
	})
	if err == nil && len(lines) != len(volumes) {
		err = errors.New("the disk child answered for other volumes")
	}
	return lines, err
}

// CheckMain is the applet that checks: the volumes on stdin, the lines to stdout.
func CheckMain() { sandbox.Finish(checkMain()) }

func checkMain() int {
	lines, err := checkChild()
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(lines)
	}
	if err == nil {
		return 0
	}
	if sandbox.Refuse(os.Stdout, err) != nil {
		return 2
	}
	return 1
}

func checkChild() ([]string, error) {
	if err := sandbox.ConfineRoot(unix.CAP_SYS_ADMIN, unix.CAP_DAC_OVERRIDE, unix.CAP_IPC_LOCK); err != nil {
		return nil, err
	}
	var volumes []*disk.Volume
	if err := json.NewDecoder(io.LimitReader(os.Stdin, maxOrder)).Decode(&volumes); err != nil {
		return nil, fmt.Errorf("order: %w", err)
	}
	lines := make([]string, len(volumes))
	for i, v := range volumes {
		if err := v.Check(); err != nil {
			lines[i] = err.Error()
		}
	}
	return lines, nil
}
