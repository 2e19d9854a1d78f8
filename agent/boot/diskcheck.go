package boot

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"hpcr/agent/event"
	"hpcr/agent/storage"
	"hpcr/disk"
)

// diskCheck looks at the open volumes for as long as the guest runs and says
// what HPCR's hourly service says. Its owner alone hears of a change: the
// guest goes on, for the data is in its hands and the mapping in the kernel's.
type diskCheck struct {
	volumes []*disk.Volume
	check   func(context.Context, []*disk.Volume) ([]string, error)
	say     event.Sink
}

const checkEvery = time.Hour

// watch checks at once and then every hour.
func (c diskCheck) watch(ctx context.Context) {
	for {
		c.once(ctx)
		select {
		case <-ctx.Done():
			return
		case <-time.After(checkEvery):
		}
	}
}

func (c diskCheck) once(ctx context.Context) {
	tell := func(s event.Severity, text string, attrs ...slog.Attr) {
		c.say(event.Event{Time: time.Now(), ID: event.VolumeChecked, Severity: s, Text: text, Attrs: attrs})
	}
	tell(event.Info, "HPL13000I: Verify LUKS Encryption...")
	wrong, err := c.check(ctx, c.volumes)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		tell(event.Error, "the disks could not be checked: one may not answer", slog.Any("error", err))
		return
	}
	sound := true
	for i, v := range c.volumes {
		if wrong[i] != "" {
			sound = false
			tell(event.Error, "a volume is not what it was when it opened: the host may have changed its disk",
				slog.String("volume", v.Name), slog.String("cause", wrong[i]))
			continue
		}
		if v.Kind == disk.Scratch {
			tell(event.Info, fmt.Sprintf("Checked for mount point %s, encryption with a key of this boot found", v.Mount))
			continue
		}
		slots := fmt.Sprintf("%d key slots", v.Slots)
		if v.Slots == 1 {
			slots = "1 key slot"
		}
		tell(event.Info, fmt.Sprintf("Checked for mount point %s, LUKS encryption with %s found", v.Mount, slots))
	}
	if sound {
		tell(event.Info, "HPL13001I: Root disk and all the data disks are encrypted")
	}
}

// watchVolumes checks them for as long as the guest runs.
func (g *Guest) watchVolumes(ctx context.Context) {
	open := g.volumes
	if g.scratch != nil {
		open = append(slices.Clone(open), g.scratch)
	}
	if len(open) > 0 {
		go diskCheck{open, storage.Check, g.Hub.Emit}.watch(ctx)
	}
}
