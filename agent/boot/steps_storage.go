package boot

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"hpcr/agent/attest"
	"hpcr/agent/event"
	"hpcr/agent/storage"
	"hpcr/contract"
	"hpcr/disk"
)

// openVolumes finds, checks and opens every data volume, or makes it on a
// blank disk.
func (g *Guest) openVolumes(ctx context.Context) error {
	defer close(g.disksEnd)
	if len(g.plan.Volumes) == 0 {
		return nil
	}
	var specs []disk.Spec
	for _, v := range g.plan.Volumes {
		specs = append(specs, disk.Spec{
			Name: v.Name, Path: v.Path, Mount: v.Mount, Filesystem: v.Filesystem,
			Passphrases: v.Passphrases, Previous: v.Previous, MayCreate: v.MayCreate,
			Existing: v.Existing, Integrity: v.Integrity, MinGeneration: v.MinGeneration,
			Own: contract.GuestsOwn(v.Mount), Cache: v.Mount == contract.ImageStore,
		})
	}
	volumes, err := storage.Open(ctx, specs, disk.Options{
		KDF:     disk.KDF(g.policy.KDF),
		Exclude: g.notDisks(),
		Log:     g.log,
	}, disksLimit)
	for _, v := range g.plan.Volumes {
		for _, p := range slices.Concat(v.Passphrases, v.Previous) {
			p.Wipe()
		}
	}
	if err != nil {
		// The child may have ended half-way, with mappings and mounts left.
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
		defer cancel()
		if cerr := storage.CloseVolumes(undo); cerr != nil {
			g.log.Error("closing after a failure", "error", cerr)
		}
		return err
	}
	g.volumes = volumes
	for _, v := range volumes {
		g.report(v)
	}
	g.Console.Message("HPL07003I", "", "")
	if slices.ContainsFunc(g.plan.Volumes, isLogStore) {
		return g.keepLog(true)
	}
	return nil
}

// report tells host, owner and record what became of a volume. The record may
// hold its name: it lies in the guest, or leaves it encrypted to the owner.
func (g *Guest) report(v *disk.Volume) {
	state, id := "opened", event.VolumeOpened
	switch {
	case v.Created:
		state, id = "created", event.VolumeCreated
		g.Console.Message("HPL02001I", v.Path, "")
	case v.Rolled:
		state, id = "rolled", event.VolumeRolled
	}
	g.Console.Message("HPL02002I", v.Path+"/mount", "")
	g.note(id, event.Notice, "volume "+state, slog.String("volume", v.Name), slog.String("mount", v.Mount),
		slog.String("kind", string(v.Kind)), slog.Uint64("generation", v.Generation), slog.String("filesystem", v.Filesystem), slog.Bool("grown", v.Grown), slog.Bool("integrity", v.Integrity))
	g.record.Add(volumeFact(v, state))
}

// volumeFact is a volume's line of the record.
func volumeFact(v *disk.Volume, state string) attest.Fact {
	header := "foreign" // nothing authenticates it
	if v.Kind == disk.Ours {
		header = "sealed"
	}
	return attest.Fact{Name: "Volume", Text: fmt.Sprintf("%s %s %s generation %d", v.Name, state, header, v.Generation)}
}

func (g *Guest) closeVolumes(ctx context.Context) error {
	if len(g.volumes) == 0 {
		return nil
	}
	g.parkLog(ctx)
	return storage.CloseVolumes(ctx)
}

// disksLimit leaves the phase time to close what its child left.
const disksLimit = 19 * time.Minute
