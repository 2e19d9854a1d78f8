package workload

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// oomPeriod is how often a running container's count is looked at; that of one
// that has ended is, at once.
const oomPeriod = 10 * time.Second

// watchMemory tells the owner of processes that the kernel kills for want of
// memory. stop looks once more and says how many there were in this run.
func (s *service) watchMemory(ctx context.Context) (stop func() uint64) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	var told uint64
	look := func() {
		if n := oomKills(cgroup(s.def)); n > told {
			s.w.opt.Log.Warn("a container ran out of memory and the kernel killed processes of it", "service", s.def.Name, "killed", n-told, "limit", s.def.Limits.Memory)
			told = n
			s.update(func(st *State) { st.OutOfMemory = true })
		}
	}
	go func() {
		defer close(done)
		for sleep(ctx, oomPeriod) == nil {
			look()
		}
	}()
	return func() uint64 {
		cancel()
		<-done
		look()
		return told
	}
}

// oomKills is the count of a cgroup: whether its own limit was hit, one above
// it, or the guest's memory (cgroup-v2.rst, memory.events). A cgroup that is gone
// has none.
func oomKills(path string) uint64 {
	text, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", path, "memory.events"))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "oom_kill "); ok {
			if n, err := strconv.ParseUint(strings.TrimSpace(value), 10, 64); err == nil {
				return n
			}
		}
	}
	return 0
}
