package disk

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// mappingPrefix begins the names of all our mappings.
const mappingPrefix = "hpcr-"

// CloseAll writes and unmounts what is mounted from our mappings, and removes
// the mappings, with which the last copies of their keys go. What there is it
// asks the kernel, so it may follow an opening that was cut off anywhere. Volumes
// close side by side: a disk that does not answer keeps only its own from it. One
// that is mounted below another goes first, for the other is busy until then.
//
// Users of a mount have patience to leave it; then it is taken away from them,
// and the kernel removes the mapping after its last user. CloseAll gives up at
// the end of ctx on what is stuck in the kernel.
func CloseAll(ctx context.Context, patience time.Duration) error {
	return closeThose(ctx, patience, func(string) bool { return true })
}

// CloseVolumes is CloseAll for all but the scratch disk, which others use.
func CloseVolumes(ctx context.Context, patience time.Duration) error {
	return closeThose(ctx, patience, func(name string) bool { return !isScratch(name) })
}

func closeThose(ctx context.Context, patience time.Duration, which func(mapping string) bool) error {
	ours, err := mappings()
	if err != nil {
		return err
	}
	maps.DeleteFunc(ours, func(_, name string) bool { return !which(name) })
	mounts, err := mountsOf(ours)
	if err != nil {
		return err
	}
	volumes := map[string]*layers{}
	for _, node := range slices.Sorted(maps.Keys(ours)) {
		name, _, _ := strings.Cut(strings.TrimPrefix(ours[node], mappingPrefix), "-")
		if volumes[name] == nil {
			volumes[name] = &layers{}
		}
		volumes[name].mappings = append(volumes[name].mappings, ours[node])
		volumes[name].mounts = append(volumes[name].mounts, mounts[node]...)
	}
	waiting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	results := make(chan error, len(volumes)) // room for those that nobody waits for
	for _, v := range volumes {
		go func() { results <- v.close(waiting) }()
	}
	var errs []error
	for range volumes {
		select {
		case err := <-results:
			errs = append(errs, err)
		case <-ctx.Done():
			return errors.Join(append(errs, fmt.Errorf("a disk does not answer: %w", context.Cause(ctx)))...)
		}
	}
	return errors.Join(errs...)
}

// layers are what there is of one volume.
type layers struct {
	mappings []string // names; in their order they are from above
	mounts   []string // in the order of mounting
}

// close may never return.
func (l *layers) close(ctx context.Context) error {
	var errs []error
	for _, target := range slices.Backward(l.mounts) {
		errs = append(errs, flush(target)) // before the wait for its users, which may be cut short
		if err := retryBusy(ctx, func() error { return unmount(target) }); err != nil {
			errs = append(errs, fmt.Errorf("unmount: %w", err), flush(target), detach(target))
		}
	}
	for _, name := range slices.Sorted(slices.Values(l.mappings)) {
		if err := retryBusy(ctx, func() error { return removeMapping(name) }); err != nil {
			errs = append(errs, fmt.Errorf("remove mapping %s: %w", name, err), removeMappingLater(name))
		}
	}
	return errors.Join(errs...)
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
		if gone(err) {
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

// mountsOf lists the mount points of these nodes: node → paths, in the order of
// mounting.
func mountsOf(nodes map[string]string) (map[string][]string, error) {
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	defer f.Close()
	plain := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	all := map[string][]string{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) > 1 && nodes[fields[0]] != "" {
			all[fields[0]] = append(all[fields[0]], plain.Replace(fields[1]))
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
