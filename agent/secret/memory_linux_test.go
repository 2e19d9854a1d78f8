package secret

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"unsafe"

	"golang.org/x/sys/unix"
)

// smaps is what the kernel says of the mapping that holds address, and of the
// two beside it.
func smaps(t *testing.T, address uintptr) (before, own, after string) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	starts := regexp.MustCompile(`(?m)^[0-9a-f]+-[0-9a-f]+ `).FindAllStringIndex(string(text), -1)
	var all []string
	for i, s := range starts {
		end := len(text)
		if i+1 < len(starts) {
			end = starts[i+1][0]
		}
		all = append(all, string(text[s[0]:end]))
	}
	for i, m := range all {
		var from, to uintptr
		if _, err := fmt.Sscanf(m, "%x-%x", &from, &to); err != nil {
			t.Fatal(err)
		}
		if from <= address && address < to {
			return all[i-1], m, all[i+1]
		}
	}
	t.Fatal("no mapping holds the secret")
	return "", "", ""
}

func TestMemory(t *testing.T) {
	if err := RequireLock(); err != nil {
		if os.Getuid() == 0 {
			t.Fatal(err) // as in the guest, where it must hold
		}
		t.Skipf("this user may not lock memory: %v", err)
	}
	defer lockRequired.Store(false)
	fromReader, err := ReadAll(strings.NewReader(strings.Repeat("canary", 4000)), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct{ s *Secret }{
		"a small secret is in the arena":       {FromString("canary")},
		"a large one has pages of its own":     {New(bytes.Repeat([]byte("canary"), 20000))},
		"what was read never saw the heap":     {fromReader},
		"a copy is protected as its origin is": {FromString("canary").Clone()},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			b := tt.s.Bytes()
			before, own, after := smaps(t, uintptr(unsafe.Pointer(&b[len(b)-1])))
			_, flags, _ := strings.Cut(own, "VmFlags:")
			for _, want := range []string{"lo", "dd", "wf"} { // locked, do not dump, wipe on fork
				if !slices.Contains(strings.Fields(flags), want) {
					t.Errorf("the flags lack %q: %s", want, flags)
				}
			}
			for _, guard := range []string{before, after} {
				if !strings.Contains(strings.SplitN(guard, "\n", 2)[0], " ---p ") {
					t.Errorf("no guard page: %s", guard)
				}
			}
		})
	}
}

func TestLimits(t *testing.T) {
	tests := map[string]struct {
		length, limit int
		want          error
	}{
		"nothing":           {0, 10, nil},
		"just as much":      {10, 10, nil},
		"one byte too many": {11, 10, ErrTooLong},
		"much too much":     {1 << 20, 10, ErrTooLong},
		"many pages":        {1 << 20, 1 << 21, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			in := bytes.Repeat([]byte("x"), tt.length)
			s, err := ReadAll(iotest.HalfReader(bytes.NewReader(in)), tt.limit)
			if !errors.Is(err, tt.want) {
				t.Fatalf("got %v, want %v", err, tt.want)
			}
			if err == nil && !bytes.Equal(s.Bytes(), in) {
				t.Errorf("%d bytes arrived", s.Len())
			}
		})
	}
	broken := errors.New("broken")
	if _, err := ReadAll(iotest.ErrReader(broken), 10); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

// TestWipedPagesAreGivenBack: a large secret costs memory only until Wipe.
func TestWipedPagesAreGivenBack(t *testing.T) {
	s := New(bytes.Repeat([]byte("canary"), 1<<20))
	kept := s.Bytes()
	s.Wipe()
	_, own, _ := smaps(t, uintptr(unsafe.Pointer(&kept[0])))
	if !regexp.MustCompile(`(?m)^Rss: +0 kB`).MatchString(own) {
		t.Errorf("pages stay: %s", own)
	}
	if bytes.ContainsFunc(kept, func(r rune) bool { return r != 0 }) {
		t.Error("a slice kept past Wipe reads something")
	}
}

// TestMemoryThatCannotBeLocked: in the guest a panic, elsewhere no matter.
func TestMemoryThatCannotBeLocked(t *testing.T) {
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &old); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		lockRequired.Store(false)
		if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &old); err != nil {
			t.Error(err)
		}
	}()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread without rights ends with this goroutine
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		none := [2]unix.CapUserData{}
		if err := unix.Capset(&header, &none[0]); err != nil {
			done <- err
			return
		}
		large := strings.Repeat("x", 1<<20)
		FromString(large) // tolerated
		if RequireLock() == nil {
			done <- errors.New("memory was locked without a right to")
			return
		}
		lockRequired.Store(true)
		defer func() {
			if recover() == nil {
				done <- errors.New("no panic")
			}
			done <- nil
		}()
		FromString(large)
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestNoCopyOnTheHeap: what passes through leaves no trace for the collector.
func TestNoCopyOnTheHeap(t *testing.T) {
	const size = 1 << 20
	in := bytes.NewReader(make([]byte, size))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	s, err := ReadAll(in, 2*size)
	if err != nil {
		t.Fatal(err)
	}
	s.Clone().Wipe()
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > size/16 {
		t.Errorf("%d bytes of heap for a secret of %d", got, size)
	}
}
