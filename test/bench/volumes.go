package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	luks "github.com/anatol/luks.go"
	"golang.org/x/crypto/argon2"

	"hpcr/agent/secret"
	"hpcr/disk/luks2"
	"hpcr/test/scenario"
)

const (
	volumePass  = "5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8"
	volumeSize  = 32 * mib
	volumeTurns = 3
	manyVolumes = 16
)

var (
	usualCost = luks2.KDF{MemoryKiB: 256 << 10, Time: 4, Parallel: 2} // a guest's default
	manyCost  = luks2.KDF{MemoryKiB: 64 << 10, Time: 4, Parallel: 1}  // cheap: what is not derivation shows
)

// volumeCost compares unlocking with cryptsetup's, and many volumes with the
// derivations that they need. Each side is a process: its processor time and
// highest memory are the figures, in turns, medians.
func volumeCost(ctx context.Context, dir string) ([]figure, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	b := &volumeBench{ctx: ctx, dir: dir}
	if err := os.WriteFile(b.path("pass"), []byte(volumePass), 0o600); err != nil {
		return nil, err
	}
	ours, err := b.ours("ours", usualCost)
	if err != nil {
		return nil, err
	}
	argon, err := b.stock("argon2id", "--pbkdf-memory", strconv.Itoa(int(usualCost.MemoryKiB)), "--pbkdf-parallel", strconv.Itoa(int(usualCost.Parallel)),
		"--pbkdf-force-iterations", strconv.Itoa(int(usualCost.Time)))
	if err != nil {
		return nil, err
	}
	pbkdf2, err := b.stock("pbkdf2", "--hash", "sha256", "--pbkdf-force-iterations", "600000")
	if err != nil {
		return nil, err
	}
	var figures []figure
	for _, c := range []struct {
		name, as, file string
		most           float64
	}{
		{"volume: unlock ours, argon2id t4 m256M p2", "ours", ours, 1.6},
		{"volume: unlock cryptsetup's, argon2id t4 m256M p2", "foreign", argon, 1.6},
		{"volume: unlock cryptsetup's, pbkdf2-sha256 600 000", "foreign", pbkdf2, 1.1},
	} {
		f, err := b.compare(figure{Name: c.name, Unit: "s", Peer: "cryptsetup open --test-passphrase", most: c.most}, volumeTurns,
			b.self(c.as, c.file), []string{"cryptsetup", "open", "--test-passphrase", "--key-file", b.path("pass"), c.file}, used)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.name, err)
		}
		figures = append(figures, f)
	}
	var many []string
	for i := range manyVolumes {
		file, err := b.ours(fmt.Sprint("many", i), manyCost)
		if err != nil {
			return nil, err
		}
		many = append(many, file)
	}
	work, err := b.compare(figure{Name: fmt.Sprintf("volume: unlock %d", manyVolumes), Unit: "s", Peer: "bare argon2id, as often", most: 1.1}, volumeTurns,
		b.self("ours", many...), b.self("derive", strconv.Itoa(manyVolumes)), used)
	if err != nil {
		return nil, err
	}
	memory, err := b.compare(figure{Name: fmt.Sprintf("volume: memory of unlocking %d", manyVolumes), Unit: "MiB", Peer: "one", most: 1.25}, 1,
		b.self("ours", many...), b.self("ours", many[0]), resident)
	if err != nil {
		return nil, err
	}
	return append(figures, work, memory), nil
}

// onlyVolumes prints the volumes' figures alone.
func onlyVolumes(ctx context.Context) (err error) {
	s, release, err := newSetup(scenario.AMD64)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	figures, err := s.volumes(ctx)
	if err != nil {
		return err
	}
	return errors.Join(show(figures), overBudget(figures))
}

type volumeBench struct {
	ctx context.Context
	dir string
}

func (b *volumeBench) path(name string) string { return filepath.Join(b.dir, name) }

// ours formats a volume as a guest does.
func (b *volumeBench) ours(name string, cost luks2.KDF) (string, error) {
	f, err := os.Create(b.path(name))
	if err != nil {
		return "", err
	}
	pass := secret.FromString(volumePass)
	err = f.Truncate(volumeSize)
	if err == nil {
		var o *luks2.Opened
		if o, err = luks2.Format(f, volumeSize, luks2.FormatOptions{Passphrase: pass, Name: "data", KDF: cost}); err == nil {
			err = o.Commit(f, "data", luks2.Ready)
			o.Key.Wipe()
		}
	}
	return f.Name(), errors.Join(err, f.Close())
}

// stock has cryptsetup format one.
func (b *volumeBench) stock(kdf string, args ...string) (string, error) {
	file := b.path("stock-" + kdf)
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		return "", err
	}
	if err := os.Truncate(file, volumeSize); err != nil {
		return "", err
	}
	command := append([]string{"luksFormat", "-q", "--type", "luks2", "--pbkdf", kdf, "--key-file", b.path("pass")}, args...)
	if out, err := exec.CommandContext(b.ctx, "cryptsetup", append(command, file)...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("cryptsetup luksFormat: %w: %s", err, out)
	}
	return file, nil
}

// self is this program as one side of a comparison: see unlockAll.
func (b *volumeBench) self(as string, args ...string) []string {
	return append([]string{"/proc/self/exe", "-volume-child", as}, args...)
}

// compare runs both sides in turns.
func (b *volumeBench) compare(f figure, turns int, ours, theirs []string, of func(*os.ProcessState) float64) (figure, error) {
	var all [2][]float64
	for range turns {
		for i, command := range [][]string{ours, theirs} {
			cmd := exec.CommandContext(b.ctx, command[0], command[1:]...)
			cmd.Stdin = strings.NewReader(volumePass)
			if i == 0 { // as the agent starts the disk child
				cmd.Env = append(os.Environ(), "GOGC=off", "GODEBUG=clobberfree=1")
			}
			if out, err := cmd.CombinedOutput(); err != nil {
				return f, fmt.Errorf("%s: %w: %s", filepath.Base(command[0]), err, bytes.TrimSpace(out))
			}
			all[i] = append(all[i], of(cmd.ProcessState))
		}
	}
	for _, side := range all {
		slices.Sort(side)
	}
	f.Value, f.PeerValue = all[0][turns/2], all[1][turns/2]
	ratio := f.Value / f.PeerValue
	f.Ratio = &ratio
	fmt.Fprintf(os.Stderr, "%s: %.3f, %s: %.3f %s, ratio %.3f of %v and %v\n", f.Name, f.Value, f.Peer, f.PeerValue, f.Unit, ratio, all[0], all[1])
	return f, nil
}

// used is a process's processor time in seconds.
func used(p *os.ProcessState) float64 { return (p.UserTime() + p.SystemTime()).Seconds() }

// resident is its highest resident size in MiB.
func resident(p *os.ProcessState) float64 {
	usage, ok := p.SysUsage().(*syscall.Rusage)
	if !ok {
		return 0
	}
	return float64(usage.Maxrss) / 1024
}

// volumeChild is one side of a comparison, with the passphrase on its standard
// input: "ours" and "foreign" unlock files one after the other, as the guest's
// disk child does up to the mapping; "derive" runs argon2id so many times.
func volumeChild(ctx context.Context, args []string) error {
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	pass := secret.New(text)
	defer pass.Wipe()
	switch args[0] {
	case "derive":
		n, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		for range n {
			argon2.IDKey(pass.Bytes(), make([]byte, 32), manyCost.Time, manyCost.MemoryKiB, uint8(manyCost.Parallel), 64)
		}
		return nil
	case "ours", "foreign":
		for _, name := range args[1:] {
			if err := unlockFile(ctx, name, args[0] == "foreign", pass); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		return nil
	}
	return fmt.Errorf("no such side: %s", args[0])
}

func unlockFile(ctx context.Context, name string, foreign bool, pass *secret.Secret) (err error) {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	im, err := luks2.Read(f, volumeSize)
	if err != nil {
		return err
	}
	if !foreign {
		o, err := im.Unlock(ctx, pass, "data")
		if err == nil {
			o.Key.Wipe()
		}
		return err
	}
	header, err := im.Foreign()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "hpcr-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	mem, err := os.Create(filepath.Join(dir, "header"))
	if err != nil {
		return err
	}
	for _, s := range header.Sections {
		if _, err := mem.WriteAt(s.Data, s.Offset); err != nil {
			return errors.Join(err, mem.Close())
		}
	}
	if err := errors.Join(mem.Truncate(header.DataOffset+int64(header.SectorSize)), mem.Close()); err != nil {
		return err
	}
	dev, err := luks.Open(mem.Name())
	if err != nil {
		return err
	}
	slot := header.Slots[0]
	luks2.Derive(slot.MemoryKiB, func() { _, err = dev.UnsealVolume(slot.ID, pass.Bytes()) })
	return errors.Join(err, dev.Close())
}

// volumes are the figures of both: here, and of the device mapper in a guest.
func (s *setup) volumes(ctx context.Context) ([]figure, error) {
	figures, err := volumeCost(ctx, s.path("volumes"))
	if err != nil {
		return nil, err
	}
	mapped, err := s.mapped(ctx)
	return append(figures, mapped...), err
}

// mapped has the disk package's guest measure mapping and formatting. Its test
// prints figures on lines of their own.
func (s *setup) mapped(ctx context.Context) ([]figure, error) {
	return s.printed(ctx, "./disk", "^TestBenchInGuest$")
}
