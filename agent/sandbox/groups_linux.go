package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Root is where the cgroup2 hierarchy is mounted.
const Root = "/sys/fs/cgroup"

// The guest's control groups, below Root. Each short-lived child has one more
// of its own.
const (
	Agent    = "agent"
	Daemon   = "containerd" // and the shim
	Workload = "hpcr"       // all containers
)

// Containers are in one of two groups of Workload. In the second they are on
// the guest's own network, whose settings are not theirs to change.
const (
	OwnNetwork   = Workload + "/own"
	GuestNetwork = Workload + "/guest"
)

// setting is one file of a control group.
type setting struct{ file, value string }

// What the guest keeps for itself when memory or processor time is short.
// Weights are relative: a container group has 100.
var ours = map[string][]setting{
	Agent:  {{"memory.min", "67108864"}, {"cpu.weight", "1000"}, {"pids.max", "512"}},
	Daemon: {{"memory.min", "67108864"}, {"cpu.weight", "500"}, {"pids.max", "4096"}},
}

// KeepForAgent gives the calling process, which is the agent, its share of the
// machine, and the memory killer another victim.
func KeepForAgent() error {
	if err := write(Root, "cgroup.subtree_control", "+memory +pids +cpu"); err != nil {
		return err
	}
	for name, settings := range ours {
		if err := group(name, settings); err != nil {
			return err
		}
	}
	if err := write(filepath.Join(Root, Agent), "cgroup.procs", "0"); err != nil {
		return err
	}
	return setVictim(os.Getpid(), -1000)
}

// setVictim tells the kernel's memory killer how soon to take a process.
// Children start with their parent's value.
func setVictim(pid, adj int) error {
	return write(filepath.Join("/proc", strconv.Itoa(pid)), "oom_score_adj", strconv.Itoa(adj))
}

// reserve is what of the free memory no container gets: 64 MiB, or a sixteenth
// of a large guest.
func reserve(free uint64) uint64 { return max(64<<20, free/16) }

// LimitWorkload makes the containers' groups: what is free now less a reserve,
// half of the kernel's process numbers, and no setting of the guest's kernel.
func LimitWorkload() error {
	free, err := FreeMemory()
	if err != nil {
		return err
	}
	pids, err := processLimit()
	if err != nil {
		return err
	}
	if free <= 2*reserve(free) {
		return errors.New("there is no memory for containers")
	}
	err = group(Workload, []setting{
		{"memory.max", strconv.FormatUint(free-reserve(free), 10)},
		{"pids.max", strconv.Itoa(pids / 2)},
		{"cgroup.subtree_control", "+memory +pids +cpu"},
	})
	if err != nil {
		return err
	}
	for name, network := range map[string]bool{OwnNetwork: true, GuestNetwork: false} {
		if err := group(name, nil); err != nil {
			return err
		}
		if err := guardSysctls(filepath.Join(Root, name), network); err != nil {
			return fmt.Errorf("guard of the kernel's settings: %w", err)
		}
	}
	return nil
}

func group(name string, settings []setting) error {
	dir := filepath.Join(Root, name)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("cgroup: %w", err)
	}
	for _, s := range settings {
		if err := write(dir, s.file, s.value); err != nil {
			return err
		}
	}
	return nil
}

func write(dir, file, value string) error {
	if err := os.WriteFile(filepath.Join(dir, file), []byte(value), 0); err != nil {
		return fmt.Errorf("limit: %w", err)
	}
	return nil
}

// OpenGroup is for starting a process inside of a group.
func OpenGroup(name string) (*os.File, error) { return os.Open(filepath.Join(Root, name)) }

// FreeMemory is what the kernel could give to new processes, in bytes.
func FreeMemory() (uint64, error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		var kib uint64
		if _, err := fmt.Sscanf(line, "MemAvailable: %d kB", &kib); err == nil {
			return kib << 10, nil
		}
	}
	return 0, errors.New("no MemAvailable in meminfo")
}

// processLimit is how many processes and threads the kernel can have.
func processLimit() (int, error) {
	limit := 1 << 22
	for _, name := range []string{"pid_max", "threads-max"} {
		b, err := os.ReadFile("/proc/sys/kernel/" + name)
		if err != nil {
			return 0, err
		}
		n, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil {
			return 0, fmt.Errorf("%s: %w", name, err)
		}
		limit = min(limit, n)
	}
	return limit, nil
}
