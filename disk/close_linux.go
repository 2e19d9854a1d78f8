package disk

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// mappingPrefix begins the names of all our mappings.
const mappingPrefix = "hpcr-"

// CloseAll unmounts what is mounted from our mappings, the latest mount first,
// and removes the mappings, with which the last copies of their keys go. What
// there is it asks the kernel, so it may follow an opening that was cut off
// anywhere. It waits for users of a mount as long as ctx lasts, then detaches
// the mount and leaves the mapping's removal to the kernel.
func CloseAll(ctx context.Context) error {
	ours, err := mappings()
	if err != nil {
		return err
	}
	var errs []error
	mounts, err := mountsOf(ours)
	errs = append(errs, err)
	for _, target := range slices.Backward(mounts) {
		if err := retryBusy(ctx, func() error { return unmount(target) }); err != nil {
			errs = append(errs, fmt.Errorf("unmount: %w", err), detach(target))
		}
	}
	for _, name := range slices.Sorted(values(ours)) {
		if err := retryBusy(ctx, func() error { return removeMapping(name) }); err != nil {
			errs = append(errs, fmt.Errorf("remove mapping %s: %w", name, err), removeMappingLater(name))
		}
	}
	return errors.Join(errs...)
}

func values(m map[string]string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for _, v := range m {
			if !yield(v) {
				return
			}
		}
	}
}

// mappings lists our mappings: node → name.
func mappings() (map[string]string, error) {
	files, err := filepath.Glob(filepath.Join(sysBlock, "dm-*", "dm", "name"))
	if err != nil {
		return nil, err
	}
	all := map[string]string{}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue // just removed
		}
		if err != nil {
			return nil, fmt.Errorf("list mappings: %w", err)
		}
		if name := strings.TrimSpace(string(b)); strings.HasPrefix(name, mappingPrefix) {
			all["/dev/"+filepath.Base(filepath.Dir(filepath.Dir(file)))] = name
		}
	}
	return all, nil
}

// mountsOf lists the mount points of these nodes, in the order of mounting.
func mountsOf(nodes map[string]string) ([]string, error) {
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	defer f.Close()
	plain := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var all []string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) > 1 && nodes[fields[0]] != "" {
			all = append(all, plain.Replace(fields[1]))
		}
	}
	return all, lines.Err()
}

// retryBusy repeats do while something still uses the device.
func retryBusy(ctx context.Context, do func() error) error {
	for {
		err := do()
		if !busy(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(removeTry):
		}
	}
}
