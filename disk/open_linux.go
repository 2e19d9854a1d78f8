package disk

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"hpcr/agent/hpl"
	"hpcr/agent/secret"
	"hpcr/disk/luks2"
)

// Spec is a volume as the contract names it.
type Spec struct {
	Name       string // also the serial that a disk is looked for by
	Path       string // in the contract, for messages
	Mount      string // absolute
	Filesystem string // used at creation only; "" = ext4
	// Passphrases in order of trial; [0] creates. A volume that opens only with
	// one of Previous is rolled to it. Borrowed.
	Passphrases   []*secret.Secret `json:"-"`
	Previous      []*secret.Secret `json:"-"`
	MayCreate     bool             // [0] is good enough for a new key slot
	Existing      bool             // the volume must be there already
	Integrity     bool             // made with it, opened with nothing less
	MinGeneration uint64           // of a header that may be opened; above 0 the volume must be there already
	Own           bool             // the guest's own, at a path of the guest's
	Cache         bool             // what it holds can be had again: a file system beyond repair is made anew
}

// mustExist: a floor is no floor if a host may have the volume made anew.
func (s Spec) mustExist() bool { return s.Existing || s.MinGeneration > 0 }

// trials are all passphrases, in order.
func (s Spec) trials() []*secret.Secret { return slices.Concat(s.Passphrases, s.Previous) }

// previous says whether the trial of this number was with previous seeds.
func (s Spec) previous(trial int) bool { return trial >= len(s.Passphrases) }

// KDF is the argon2id cost of a volume that is created.
type KDF struct {
	MemoryKiB, Time, Parallel uint32
}

// Options of OpenAll.
type Options struct {
	KDF     KDF           // zero: 256 MiB, 4 passes, 2 lanes
	Wait    time.Duration // for a disk to appear; 0 = 900 s
	Exclude []string      // kernel names of disks that hold something else: "vda"
	Log     *slog.Logger  // the owner's; nil = none
}

const (
	defaultWait  = 900 * time.Second
	settle       = 300 * time.Millisecond // without news before a disk is chosen by content
	closeLimit   = 10 * time.Second
	undoPatience = time.Second      // nobody has used the volumes yet
	lookAgain    = 10 * time.Second // the kernel drops news when memory is short
	toolRoom     = 128 << 10        // KiB that must be available beside what is held for a derivation, when mke2fs and its like run
)

// OpenAll finds, creates or unlocks, maps, checks and mounts all volumes, one
// after the other: each derivation may take half of the guest's memory. On an
// error, which is a *hpl.Error, whatever was opened is closed again. The
// volumes come in the order of specs.
func OpenAll(ctx context.Context, specs []Spec, o Options) ([]*Volume, error) {
	if o.KDF == (KDF{}) {
		o.KDF = KDF{MemoryKiB: 256 << 10, Time: 4, Parallel: 2}
	}
	if o.Wait == 0 {
		o.Wait = defaultWait
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	op := &opener{Options: o, volumes: make([]*Volume, len(specs)), tried: map[[2]string]error{}}
	for i, s := range specs {
		if s.Filesystem == "" {
			s.Filesystem = "ext4"
		}
		if err := checkSpec(s, op.specs); err != nil {
			return nil, err
		}
		op.specs = append(op.specs, s)
		op.volumes[i] = &Volume{Name: s.Name, Path: s.Path, Mount: s.Mount, Table: Table{Mapping: fmt.Sprintf("%s%d", mappingPrefix, i+1)}, log: o.Log}
	}
	err := op.attachAll(ctx)
	luks2.Release()
	if err == nil {
		err = op.mountAll(ctx)
	}
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeLimit)
		defer cancel()
		if cerr := CloseVolumes(undo, undoPatience); cerr != nil {
			o.Log.Error("closing after a failure", "error", cerr)
		}
		return nil, hpl.From(err)
	}
	return op.volumes, nil
}

// guestPaths are those that the guest itself lives by: no volume may cover
// them.
var guestPaths = []string{"/bin", "/data1", "/dev", "/etc", "/init", "/keys", "/lib", "/lib64", "/proc", "/run", "/sbin", "/sys",
	"/usr", "/var/hyperprotect", "/var/lib/containerd", "/var/lib/hpcr"}

func checkSpec(s Spec, before []Spec) error {
	if _, ok := filesystems[s.Filesystem]; !ok {
		return hpl.New("HPL02005E", s.Path+"/filesystem", "the file system is not known: use ext4, xfs or btrfs")
	}
	if len(s.Passphrases) == 0 || s.Name == "" {
		return hpl.New("HPL02121E", s.Path, "the volume has no seeds")
	}
	for _, p := range guestPaths {
		if s.Own {
			break
		}
		if s.Mount == p || strings.HasPrefix(s.Mount, p+"/") || strings.HasPrefix(p, s.Mount+"/") {
			return hpl.New("HPL02007E", s.Path+"/mount", "the guest itself uses this path: choose another one, such as /mnt/data")
		}
	}
	if clean := cleanMount(s.Mount); clean != s.Mount || s.Mount == "/" {
		return hpl.New("HPL02007E", s.Path+"/mount", "the mount path must be absolute and plain, such as /mnt/data")
	}
	for _, b := range before {
		if b.Name == s.Name || b.Mount == s.Mount {
			return hpl.New("HPL02121E", s.Path, "two volumes have the same name or mount path")
		}
	}
	return nil
}

// opener is the work of one OpenAll.
type opener struct {
	Options
	specs   []Spec
	volumes []*Volume
	disks   []*found
	tried   map[[2]string]error // volume name and disk: why it did not open
}

// attachAll gives each volume its disk, mapped.
func (op *opener) attachAll(ctx context.Context) error {
	news, err := newUevents()
	if err != nil {
		return hpl.Wrap(err, "HPL02120E", "", "the guest cannot list its disks")
	}
	defer news.close()
	end, changedAt := time.Now().Add(op.Wait), time.Now()
	for {
		changed, err := op.look()
		if err != nil {
			return hpl.Wrap(err, "HPL02120E", "", "the guest cannot list its disks")
		}
		if changed {
			changedAt = time.Now()
		}
		settled := time.Since(changedAt) >= settle
		for progress := true; progress; {
			if progress, err = op.round(ctx, settled); err != nil {
				return err
			}
			if progress {
				end = time.Now().Add(op.Wait) // time spent on one disk is not waiting for the next
			}
		}
		pending := op.pending()
		if len(pending) == 0 {
			return nil
		}
		if settled && time.Now().After(end) {
			return hpl.New("HPL02122E", op.specs[pending[0]].Path,
				"no disk for this volume was attached: attach an empty disk, or its own, with the volume's name as serial")
		}
		next := end
		if !settled {
			next = changedAt.Add(settle)
		} else if again := time.Now().Add(lookAgain); again.Before(next) {
			next = again
		}
		if err := op.await(ctx, news, next); err != nil {
			return hpl.Wrap(err, "HPL02122E", op.specs[pending[0]].Path, "no disk for this volume was attached in time")
		}
	}
}

// await sleeps until the kernel tells of a device, or until then. An error is
// ctx's end, or a socket that fails.
func (op *opener) await(ctx context.Context, news *uevents, then time.Time) error {
	luks2.Release() // others use the memory meanwhile
	if d, ok := ctx.Deadline(); ok && d.Before(then) {
		then = d
	}
	stop := context.AfterFunc(ctx, news.close)
	defer stop()
	_, err := news.wait(then)
	return errors.Join(ctx.Err(), err)
}

// pending lists the specs without a disk, by index.
func (op *opener) pending() []int {
	var all []int
	for i, v := range op.volumes {
		if v.mapping == nil {
			all = append(all, i)
		}
	}
	return all
}

// round goes over the pending volumes once and says whether one got a disk.
// Disks without a fitting serial are looked at only once the set of disks
// has settled: the volume's own may be about to appear.
func (op *opener) round(ctx context.Context, settled bool) (bool, error) {
	all := make([]string, len(op.specs))
	for i, s := range op.specs {
		all[i] = s.Name
	}
	pending := op.pending()
	var unnamed []string // volumes that no disk's serial names
	for _, i := range pending {
		if name := op.specs[i].Name; !slices.ContainsFunc(op.disks, func(f *found) bool { return f.names(name) }) {
			unnamed = append(unnamed, name)
		}
	}
	for _, d := range op.disks {
		if len(unnamed) > 0 && settled || slices.ContainsFunc(all, d.names) {
			op.probe(d)
		}
	}
	verdicts := make([]verdict, len(pending))
	var failed error
	for n, i := range pending {
		s, v := op.specs[i], op.volumes[i]
		if !settled && slices.Contains(unnamed, s.Name) {
			continue
		}
		verdicts[n] = decide(s, len(unnamed), all, op.disks)
		if len(verdicts[n].open) == 0 {
			failed = errors.Join(failed, verdicts[n].err)
			continue
		}
		claimed, err := op.tryEach(ctx, s, v, verdicts[n].open)
		if claimed {
			return true, nil
		}
		failed = errors.Join(failed, err)
	}
	if failed != nil {
		return false, failed // before anything is created in a boot that fails
	}
	for n, i := range pending {
		if d := verdicts[n].create; d != nil {
			if err := op.create(ctx, op.specs[i], op.volumes[i], d); err != nil {
				return false, err
			}
			d.claimed = true
			return true, nil
		}
	}
	return false, nil
}

// tryEach opens the first disk that fits. That none fits is an error at once:
// a wrong seed must not look like a missing disk.
func (op *opener) tryEach(ctx context.Context, s Spec, v *Volume, disks []*found) (bool, error) {
	var last error
	for _, d := range disks {
		key := [2]string{s.Name, d.name + "\x00" + d.sequence}
		err, known := op.tried[key]
		if !known {
			err = op.open(ctx, s, v, d)
			op.tried[key] = err
		}
		if err == nil {
			d.claimed = true
			return true, nil
		}
		if !errors.Is(err, luks2.ErrPassphrase) && !errors.Is(err, luks2.ErrSeal) {
			return false, err
		}
		if last == nil || errors.Is(err, luks2.ErrSeal) {
			last = err
		}
	}
	code := hpl.Code("HPL02003E")
	detail := "the volume does not open with these seeds: check the seeds of both contract sections, and that this is the right disk"
	if len(s.Previous) > 0 {
		code = "HPL02125E"
		detail = "the volume opens neither with the new seeds nor with a previousSeed: check both, in both contract sections, and that this is the right disk"
	}
	if errors.Is(last, luks2.ErrSeal) {
		code, detail = "HPL02003E", "the seeds are right, but the volume's header was changed or belongs to a volume of another name: attach the right disk; if its owner changed a key slot, run hpcrctl volume reseal"
	}
	return false, hpl.Wrap(last, code, s.Path, detail)
}

// look lists the disks anew; a disk that has not changed keeps what was found.
func (op *opener) look() (changed bool, err error) {
	now, err := scan(op.Exclude)
	if err != nil {
		return false, err
	}
	var next []*found
	changed = len(now) != len(op.disks)
	for _, d := range now {
		if i := slices.IndexFunc(op.disks, func(f *found) bool { return f.blockDevice == d }); i >= 0 {
			next = append(next, op.disks[i])
			continue
		}
		changed = true
		next = append(next, &found{blockDevice: d})
	}
	op.disks = next
	return changed, nil
}

// probe reads what a disk is, once, and only of a disk that is in question:
// looking for emptiness costs a tenth of a second.
func (op *opener) probe(d *found) {
	if d.probed {
		return
	}
	d.probed = true
	d.content, d.err = probeNode(d.blockDevice)
	d.claimed = d.err == nil && d.content.Kind == Foreign && holdsCidata(d.blockDevice) // a disk with another purpose
	op.Log.Info("disk found", "disk", d.name, "bytes", d.size, "kind", d.content.Kind, "layout", d.content.Layout,
		"error", errors.Join(d.err, d.content.Reason))
}

func probeNode(d blockDevice) (Content, error) {
	f, err := os.Open(d.node())
	if err != nil {
		return Content{}, err
	}
	defer f.Close()
	return Probe(f, d.size, d.block)
}
