package boot

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"hpcr/agent/event"
	"hpcr/disk"
)

// Three hours of a guest: what its owner reads, with HPCR's words while all is
// well, and an error for each volume that is not.
func TestDiskCheck(t *testing.T) {
	volumes := []*disk.Volume{{Name: "data", Mount: "/mnt/data", Slots: 1}, {Name: "old", Mount: "/mnt/old", Slots: 3},
		{Name: "scratch", Mount: storeDir, Kind: disk.Scratch}}
	answers := []struct {
		lines []string
		err   error
		want  []string
	}{
		{[]string{"", "", ""}, nil, []string{
			"HPL13000I: Verify LUKS Encryption...",
			"Checked for mount point /mnt/data, LUKS encryption with 1 key slot found",
			"Checked for mount point /mnt/old, LUKS encryption with 3 key slots found",
			"Checked for mount point /var/lib/hpcr, encryption with a key of this boot found",
			"HPL13001I: Root disk and all the data disks are encrypted",
		}},
		{[]string{"", "", "the live table is not the one that was loaded"}, nil, []string{
			"HPL13000I: Verify LUKS Encryption...",
			"Checked for mount point /mnt/data, LUKS encryption with 1 key slot found",
			"Checked for mount point /mnt/old, LUKS encryption with 3 key slots found",
			"a volume is not what it was when it opened",
		}},
		{nil, errors.New("deadline"), []string{
			"HPL13000I: Verify LUKS Encryption...",
			"the disks could not be checked",
		}},
	}
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var said []event.Event
		turn := 0
		c := diskCheck{volumes, func(_ context.Context, v []*disk.Volume) ([]string, error) {
			a := answers[turn]
			turn++
			return a.lines, a.err
		}, func(e event.Event) {
			mu.Lock()
			defer mu.Unlock()
			said = append(said, e)
		}}
		ctx, cancel := context.WithCancel(t.Context())
		go c.watch(ctx)
		for i, a := range answers {
			synctest.Wait()
			mu.Lock()
			if len(said) != len(a.want) {
				t.Fatalf("hour %d: %+v", i, said)
			}
			for j, want := range a.want {
				e := said[j]
				well := strings.HasPrefix(want, "HPL13") || strings.HasPrefix(want, "Checked")
				if !strings.HasPrefix(e.Text, want) || e.ID != event.VolumeChecked || well != (e.Severity == event.Info) {
					t.Errorf("hour %d: %+v, want %q", i, e, want)
				}
			}
			said = nil
			mu.Unlock()
			if i < len(answers)-1 {
				time.Sleep(time.Hour)
			}
		}
		cancel()
		synctest.Wait()
	})
}
