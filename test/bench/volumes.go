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

	luks "github.com/anatol/luks.go"

	"hpcr/agent/secret"
	"hpcr/disk/luks2"
	"hpcr/test/scenario"
)

const (
	volumePass  = "5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8"
	volumeSize  = 32 * mib
	volumeTurns = 3
)

// usualCost is a guest's default.
var usualCost = luks2.KDF{MemoryKiB: 256 << 10, Time: 4, Parallel: 2}

// volumeCost compares unlocking with cryptsetup's. Each side is a process, whose
// processor time is the figure: in turns, medians.
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
		f, err := b.compare(figure{Name: c.name, Unit: "s", Peer: "cryptsetup open --test-passphrase", most: c.most},
			b.self(c.as, c.file), []string{"cryptsetup", "open", "--test-passphrase", "--key-file", b.path("pass"), c.file})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.name, err)
		}
		figures = append(figures, f)
	}
	return figures, nil
}

// onlyVolumes prints the volumes' figures alone.
func onlyVolumes(ctx context.Context) (err error) {
	s, release, err := newSetup(scenario.AMD64)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	figures, err := volumeCost(ctx, s.path("volumes"))
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

// self is this program as one side of a comparison: see volumeChild.
func (b *volumeBench) self(as, file string) []string {
	return []string{"/proc/self/exe", "-volume-child", as, file}
}

// compare runs both sides in turns.
func (b *volumeBench) compare(f figure, ours, theirs []string) (figure, error) {
	var all [2][]float64
	for range volumeTurns {
		for i, command := range [][]string{ours, theirs} {
			cmd := exec.CommandContext(b.ctx, command[0], command[1:]...)
			cmd.Stdin = strings.NewReader(volumePass)
			if out, err := cmd.CombinedOutput(); err != nil {
				return f, fmt.Errorf("%s: %w: %s", filepath.Base(command[0]), err, bytes.TrimSpace(out))
			}
			all[i] = append(all[i], used(cmd.ProcessState))
		}
	}
	for _, side := range all {
		slices.Sort(side)
	}
	f.Value, f.PeerValue = all[0][volumeTurns/2], all[1][volumeTurns/2]
	ratio := f.Value / f.PeerValue
	f.Ratio = &ratio
	fmt.Fprintf(os.Stderr, "%s: %.3f, %s: %.3f %s, ratio %.3f of %v and %v\n", f.Name, f.Value, f.Peer, f.PeerValue, f.Unit, ratio, all[0], all[1])
	return f, nil
}

// used is a process's processor time in seconds.
func used(p *os.ProcessState) float64 { return (p.UserTime() + p.SystemTime()).Seconds() }

// volumeChild is one side of a comparison, with the passphrase on its standard
// input: "ours" and "foreign" unlock a file as the guest's disk child does up to
// the mapping.
func volumeChild(ctx context.Context, args []string) error {
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	pass := secret.New(text)
	defer pass.Wipe()
	if len(args) != 2 || args[0] != "ours" && args[0] != "foreign" {
		return fmt.Errorf("no such side: %q", args)
	}
	return unlockFile(ctx, args[1], args[0] == "foreign", pass)
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
	_, err = dev.UnsealVolume(header.Slots[0], pass.Bytes())
	return errors.Join(err, dev.Close())
}
