package boot

import "time"

// Phases is the boot, in the order of the security argument: nothing from
// outside is read before the guest is closed, nothing of the contract is used
// before it is verified, no container runs before its image and its volumes
// are proven. Phases whose After is given run beside others.
func (g *Guest) Phases() []Phase {
	const quick, tool = 10 * time.Second, time.Minute
	return []Phase{
		// Close the guest. Nothing of the host's has been read yet.
		{Name: "mounts", Limit: quick, Code: "HPL11000E", Do: g.mounts},
		{Name: "sysctls", Limit: quick, Code: "HPL11000E", Do: g.hardenKernel},
		{Name: "interlock", Limit: quick, Code: "HPL11000E", Do: g.checkMachine},
		{Name: "modules", Limit: tool, Code: "HPL11000E", Do: g.loadBase},
		{Name: "firewall", Limit: quick, Code: "HPL11000E", Do: g.closeNetwork},
		{Name: "entropy", Limit: tool, Code: "HPL11000E", Do: g.awaitEntropy},

		// Read the contract once, in a child; then its key is gone.
		{Name: "cidata", Limit: tool, Code: "HPL11001E", Do: g.readCidata},
		{Name: "contract", Limit: 2 * time.Minute, Code: "HPL11001E", Do: g.verifyContract},
		{Name: "keys", Limit: quick, Code: "HPL11000E", Do: g.dropContractKeys},
		{Name: "lockdown", Limit: tool, Code: "HPL11000E", Do: g.loadRest},

		// Reach the owner.
		{Name: "network", Limit: 2 * time.Minute, Code: "HPL14002E", Do: g.openNetwork, Undo: g.closeLinks},
		{Name: "time", Limit: tool, Code: "HPL11000E", Do: g.setTime},
		{Name: "expiry", Limit: quick, Code: "HPL12007E", Do: g.checkExpiry},
		{Name: "logging", Limit: time.Minute, Code: "HPL01011E", Do: g.openLog, Undo: g.closeLog},

		// Storage and images, side by side.
		{Name: "store", Limit: 5 * time.Minute, Code: "HPL02120E", Do: g.openStore, Undo: g.closeStore, UndoLimit: undoLimit + parking},
		{Name: "disks", After: []string{"store"}, Limit: 20 * time.Minute, Code: "HPL02120E", Do: g.openVolumes, Undo: g.closeVolumes, UndoLimit: undoLimit + parking},
		{Name: "containerd", After: []string{"store"}, Limit: tool, Code: "HPL08004E", Do: g.startContainerd, Undo: g.stopContainerd},
		{Name: "images", After: []string{"containerd"}, Limit: disksLimit + resolveLimit, Code: "HPL06004E", Do: g.resolveImages, Undo: g.closeImages},

		// Say what runs here, then run it.
		{Name: "record", After: []string{"disks", "images"}, Limit: tool, Code: "HPL11000E", Do: g.signRecord},
		{Name: "seal", Limit: quick, Code: "HPL11000E", Do: g.seal},
		{Name: "pull", Limit: 30 * time.Minute, Code: "HPL06004E", Do: g.pullImages},
		{Name: "containers", Limit: 10 * time.Minute, Code: "HPL08004E", Do: g.startContainers, Undo: g.stopContainers, UndoLimit: time.Minute},
		{Name: "ready", Limit: quick, Code: "HPL11000E", Do: g.settle},
	}
}
