package storage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"hpcr/agent/hpl"
	"hpcr/agent/sandbox"
	"hpcr/agent/secret"
	"hpcr/disk"
)

// The applets' hard links.
const (
	openPath  = "/bin/disk-open"
	checkPath = "/bin/disk-check"
	ClosePath = "/bin/disk-close"
)

const (
	maxAnswer   = 1 << 20
	maxOrder    = 1 << 20
	keepFree    = 16 << 20 // bytes of the guest's memory that the child never gets
	checkMemory = 64 << 20
	checkLimit  = 2 * time.Minute
	toAnswer    = 15 * time.Second // of a limit, for a child that waited until then to say what for

	passphraseLength = 64
)

// order is what the agent asks of the child that opens.
type order struct {
	Specs   []spec        `json:"specs"`
	KDF     disk.KDF      `json:"kdf"`
	Wait    time.Duration `json:"wait"`
	Limit   time.Duration `json:"limit"` // for all of it
	Exclude []string      `json:"exclude"`
	Scratch string        `json:"scratch"` // mount path; the scratch disk is all that is opened then
}

// spec is a disk.Spec whose passphrases come in a file of their own, all of
// one length, one after the other.
type spec struct {
	disk.Spec
	Current, Before int
}

// Open finds, creates or unlocks, checks and mounts the volumes, as
// disk.OpenAll does, in a child. limit bounds it. The passphrases are borrowed.
func Open(ctx context.Context, specs []disk.Spec, o disk.Options, limit time.Duration) ([]*disk.Volume, error) {
	in := order{KDF: o.KDF, Wait: o.Wait, Exclude: o.Exclude, Limit: limit - toAnswer}
	var all []*secret.Secret
	for _, s := range specs {
		w := spec{Spec: s, Current: len(s.Passphrases), Before: len(s.Previous)}
		all = append(all, slices.Concat(s.Passphrases, s.Previous)...)
		in.Specs = append(in.Specs, w)
	}
	return openIn(ctx, in, all, o.Log, limit, func(volumes []*disk.Volume) error { return sound(volumes, specs) })
}

// OpenScratch makes the scratch disk and mounts it, as disk.OpenScratch does,
// in a child. limit bounds it.
func OpenScratch(ctx context.Context, o disk.ScratchOptions, limit time.Duration) (*disk.Volume, error) {
	volumes, err := openIn(ctx, order{Exclude: o.Exclude, Scratch: o.Mount}, nil, o.Log, limit, func(volumes []*disk.Volume) error {
		if len(volumes) != 1 || volumes[0] == nil || volumes[0].Kind != disk.Scratch || volumes[0].Mount != o.Mount {
			return errors.New("the disk child answered for another disk")
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return volumes[0], nil
}

// openIn runs the child that opens.
func openIn(ctx context.Context, in order, all []*secret.Secret, to *slog.Logger, limit time.Duration, check func([]*disk.Volume) error) ([]*disk.Volume, error) {
	text, err := json.Marshal(in)
	if err != nil {
		return nil, err
	}
	keys, wipe, err := secretFile(all)
	if err != nil {
		return nil, err
	}
	defer wipe()
	free, err := sandbox.FreeMemory()
	if err != nil {
		return nil, err
	}
	log, heard, err := listen(to)
	if err != nil {
		return nil, err
	}
	defer heard()
	var volumes []*disk.Volume
	err = sandbox.Spawn(ctx, sandbox.Child{
		Path: openPath, Name: "disks", Stdin: text, Files: []*os.File{log, keys}, Root: true,
		Memory: int64(max(free, 2*keepFree) - keepFree), Output: maxAnswer, Limit: limit,
	}, func(answer []byte, refused bool) error {
		if refused {
			return sandbox.ReadRefusal(answer, "HPL02120E", "the disks were refused without a reason")
		}
		if err := json.Unmarshal(answer, &volumes); err != nil {
			return fmt.Errorf("the disk child's answer: %w", err)
		}
		return check(volumes)
	})
	var known *hpl.Error
	if err != nil && !errors.As(err, &known) {
		err = hpl.Wrap(err, "HPL02120E", "", "the disks could not be opened: a disk does not answer, or the guest has too little memory")
	}
	if err != nil {
		return nil, err
	}
	return volumes, nil
}

// sound: the answer names the volumes that were asked for. The child has read
// hostile bytes.
func sound(volumes []*disk.Volume, specs []disk.Spec) error {
	if len(volumes) != len(specs) {
		return errors.New("the disk child answered for other volumes")
	}
	for i, v := range volumes {
		if v == nil || v.Name != specs[i].Name || v.Path != specs[i].Path || v.Mount != specs[i].Mount ||
			v.Kind != disk.Ours && v.Kind != disk.ForeignLUKS {
			return errors.New("the disk child answered for other volumes")
		}
	}
	return nil
}

// secretFile puts the passphrases into a file in memory. wipe overwrites it.
func secretFile(all []*secret.Secret) (f *os.File, wipe func(), err error) {
	fd, err := unix.MemfdCreate("passphrases", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, nil, fmt.Errorf("memfd: %w", err)
	}
	f = os.NewFile(uintptr(fd), "passphrases")
	wipe = func() {
		// Failing means that the passphrases stay in memory that is nobody's.
		_, _ = f.WriteAt(make([]byte, len(all)*passphraseLength), 0)
		f.Close()
	}
	for i, s := range all {
		if s.Len() != passphraseLength {
			wipe()
			return nil, nil, errors.New("a passphrase has another length")
		}
		if _, err := f.WriteAt(s.Bytes(), int64(i)*passphraseLength); err != nil {
			wipe()
			return nil, nil, fmt.Errorf("memfd: %w", err)
		}
	}
	return f, wipe, nil
}

// OpenMain is the applet that opens: the order on stdin, the log and the
// passphrases as its files; the volumes, or the refusal, to stdout.
func OpenMain() { sandbox.Finish(openMain()) }

func openMain() int {
	log := sandbox.File(0, "log")
	volumes, err := openChild(slog.New(slog.NewJSONHandler(log, nil)))
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(volumes)
	}
	if err == nil {
		return 0
	}
	if sandbox.Refuse(os.Stdout, err) != nil {
		return 2
	}
	return 1
}

func openChild(log *slog.Logger) ([]*disk.Volume, error) {
	// Mounts and mappings; the node of the device mapper; ext4's growing.
	if err := sandbox.ConfineRoot(unix.CAP_SYS_ADMIN, unix.CAP_MKNOD, unix.CAP_SYS_RESOURCE, unix.CAP_IPC_LOCK, unix.CAP_DAC_OVERRIDE); err != nil {
		return nil, err
	}
	var in order
	if err := json.NewDecoder(io.LimitReader(os.Stdin, maxOrder)).Decode(&in); err != nil {
		return nil, fmt.Errorf("order: %w", err)
	}
	if in.Scratch != "" {
		v, err := disk.OpenScratch(context.Background(), disk.ScratchOptions{Mount: in.Scratch, Exclude: in.Exclude, Log: log})
		return []*disk.Volume{v}, err
	}
	b, err := sandbox.Mapped(1, "passphrases")
	if err != nil {
		return nil, fmt.Errorf("passphrases: %w", err)
	}
	take := func(n int) (some []*secret.Secret, err error) {
		for range n {
			if len(b) < passphraseLength {
				return nil, errors.New("passphrases: too few")
			}
			some = append(some, secret.New(slices.Clone(b[:passphraseLength])))
			b = b[passphraseLength:]
		}
		return some, nil
	}
	var specs []disk.Spec
	for _, w := range in.Specs {
		s := w.Spec
		if s.Passphrases, err = take(w.Current); err != nil {
			return nil, err
		}
		if s.Previous, err = take(w.Before); err != nil {
			return nil, err
		}
		specs = append(specs, s)
	}
	ctx, cancel := context.WithTimeout(context.Background(), in.Limit)
	defer cancel()
	return disk.OpenAll(ctx, specs, disk.Options{KDF: in.KDF, Wait: in.Wait, Exclude: in.Exclude, Log: log})
}
