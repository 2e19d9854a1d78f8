//go:build dev

package agent

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// process is one of ours, with its memory in KiB.
type process struct {
	Name string `json:"name"`
	PID  int    `json:"pid"`
	PSS  int    `json:"pssKiB"`
	Peak int    `json:"peakKiB"` // highest resident set
}

// applets are the names under which our processes run.
var applets = map[string]bool{"init": true, "agent": true, "contract": true, "signer": true, "disk-open": true, "disk-check": true, "disk-images": true, "disk-close": true, "containerd": true, "containerd-shim-runc-v2": true, "runc": true}

// processes lists ours by argv[0].
func processes() map[int]string {
	found := map[int]string{}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return found
	}
	for _, d := range dirs {
		b, err := os.ReadFile(filepath.Join(d, "cmdline"))
		if err != nil {
			continue // it ended meanwhile
		}
		name := filepath.Base(string(bytes.SplitN(b, []byte{0}, 2)[0]))
		pid, err := strconv.Atoi(filepath.Base(d))
		if err == nil && applets[name] {
			found[pid] = name
		}
	}
	return found
}

func memory() []process {
	var list []process
	for pid, name := range processes() {
		dir := filepath.Join("/proc", strconv.Itoa(pid))
		list = append(list, process{name, pid, field(filepath.Join(dir, "smaps_rollup"), "Pss:"), field(filepath.Join(dir, "status"), "VmHWM:")})
	}
	return list
}

// field reads "Key:   123 kB" from a file of /proc; 0 if it is not there.
func field(path, key string) int {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == key {
			n, err := strconv.Atoi(f[1])
			if err != nil {
				return 0
			}
			return n
		}
	}
	return 0
}

// readState is a file of the guest's, or where a link of /proc leads, for tests
// to compare.
func readState(path string) string {
	if to, err := os.Readlink(path); err == nil && strings.Contains(path, "/fd/") {
		return to
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// killNow kills every process of that name and says how many; "NAME:STOP"
// stops them instead, as a hang.
func killNow(child string) int {
	signal := unix.SIGKILL
	child, stop := strings.CutSuffix(child, ":STOP")
	if stop {
		signal = unix.SIGSTOP
	}
	if child == "shim" {
		child = "containerd-shim-runc-v2"
	}
	n := 0
	for pid, name := range processes() {
		if name == child && unix.Kill(pid, signal) == nil {
			n++
		}
	}
	return n
}

// killSoon kills a child as soon as it is there.
func killSoon(child string) {
	for range 3000 {
		if killNow(child) > 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
}
