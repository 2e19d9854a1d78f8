package luks2

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"hpcr/agent/secret"
)

var cheap = KDF{MemoryKiB: 32 << 10, Time: 4, Parallel: 1}

const testPass = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

func pass(s string) *secret.Secret { return secret.FromString(s) }

// memory is a disk in RAM that counts its writes. Behind b it reads as zeros,
// and is not written to.
type memory struct {
	b      []byte
	size   int64
	writes int
}

var errPower = errors.New("power cut")

func (m *memory) ReadAt(p []byte, at int64) (int, error) {
	clear(p)
	if at < int64(len(m.b)) {
		copy(p, m.b[at:])
	}
	return len(p), nil
}

func (m *memory) Sync() error { return nil }

func (m *memory) WriteAt(p []byte, at int64) (int, error) {
	if at+int64(len(p)) > int64(len(m.b)) {
		return 0, errors.New("a write behind the key slots")
	}
	m.writes++
	return copy(m.b[at:], p), nil
}

func (m *memory) clone() *memory { return &memory{b: bytes.Clone(m.b), size: m.size} }

// save writes the disk to a file.
func (m *memory) save(t testing.TB, name string) {
	t.Helper()
	write(t, name, m.b)
	if err := os.Truncate(name, m.size); err != nil {
		t.Fatal(err)
	}
}

// load is the way back; behind what it keeps there are only zeros.
func load(t testing.TB, name string) *memory {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	end := dataOffset
	for end < len(b) && !zero(b[end:]) {
		end += 1 << 20
	}
	return &memory{b: b[:end:end], size: int64(len(b))}
}

// size of the disks in these tests: as small as the profile allows.
const testSize = MinSize

func blankDisk() *memory { return &memory{b: make([]byte, dataOffset), size: testSize} }

// derive is argon2id itself.
var derive = argon2id

// TestMain derives each key once: with the race detector it takes a second.
func TestMain(m *testing.M) {
	type input struct {
		passphrase, salt string
		cost             KDF
	}
	var known sync.Map
	argon2id = func(passphrase, salt []byte, time, memory uint32, threads uint8, n uint32) []byte {
		in := input{string(passphrase), string(salt), KDF{memory, time, uint32(threads)}}
		key, ok := known.Load(in)
		if !ok {
			key, _ = known.LoadOrStore(in, derive(passphrase, salt, time, memory, threads, n))
		}
		return bytes.Clone(key.([]byte))
	}
	os.Exit(m.Run())
}

// madeDisk is a volume of ours, made once for each kind.
var madeDisk = map[bool]func() (*memory, error){false: makeDisk(false), true: makeDisk(true)}

func makeDisk(integrity bool) func() (*memory, error) {
	return sync.OnceValues(func() (*memory, error) {
		m := blankDisk()
		_, err := Format(m, testSize, FormatOptions{Passphrase: pass(testPass), Name: "data", KDF: cheap, Integrity: integrity})
		return m, err
	})
}

// formatted is a volume of the test's own, as Format leaves it.
func formatted(t testing.TB) (*memory, *Opened) { return formattedAs(t, false) }

func formattedAs(t testing.TB, integrity bool) (*memory, *Opened) {
	t.Helper()
	m, err := madeDisk[integrity]()
	if err != nil {
		t.Fatal(err)
	}
	m = m.clone()
	o, err := unlock(t, m, testPass, "data")
	if err != nil {
		t.Fatal(err)
	}
	return m, o
}

// ready is one with a file system.
func ready(t testing.TB) (*memory, *Opened) {
	t.Helper()
	m, o := formatted(t)
	if err := o.Commit(m, "data", Ready); err != nil {
		t.Fatal(err)
	}
	return m, o
}

func unlock(t testing.TB, m *memory, passphrase, name string) (*Opened, error) {
	t.Helper()
	im, err := Read(m, m.size)
	if err != nil {
		t.Fatal(err)
	}
	return im.Unlock(t.Context(), pass(passphrase), name)
}

func TestFormatUnlockCommit(t *testing.T) {
	m, o := formatted(t)
	if im, err := Read(m, testSize); err != nil || im.Kind() != Ours || im.Generation() != 1 || im.MaxMemoryKiB() != cheap.MemoryKiB {
		t.Fatalf("%+v, %v", im, err)
	}
	got, err := unlock(t, m, testPass, "data")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Key.Bytes(), o.Key.Bytes()) || got.State != Formatting || !got.Fresh ||
		got.SectorSize != 4096 || got.DataOffset != 1<<20 {
		t.Errorf("got %+v", got)
	}
	if err := got.Commit(m, "data", Ready); err != nil {
		t.Fatal(err)
	}
	again, err := unlock(t, m, testPass, "data")
	if err != nil || again.Generation != 2 || again.State != Ready || !again.Fresh {
		t.Errorf("%+v, %v", again, err)
	}
	for name, tt := range map[string]struct {
		pass, volume string
		want         error
	}{
		"wrong seed":                     {strings.Repeat("0", 64), "data", ErrPassphrase},
		"equal seeds, swapped volumes":   {testPass, "other", ErrSeal},
		"passphrase with a line's end":   {testPass + "\n", "data", ErrPassphrase},
		"empty passphrase opens nothing": {"", "data", ErrPassphrase},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := unlock(t, m, tt.pass, tt.volume); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

// TestCryptsetup lets the reference implementation judge what we write.
func TestCryptsetup(t *testing.T) {
	m, _ := ready(t)
	dir := t.TempDir()
	img := filepath.Join(dir, "disk")
	m.save(t, img)
	write(t, filepath.Join(dir, "right"), []byte(testPass))
	write(t, filepath.Join(dir, "wrong"), []byte("not it"))

	dump, err := cryptsetup("luksDump", img)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"aes-xts-plain64", "sector: 4096 [bytes]", "512 bits", "argon2id", "hpcr-seal", "1048576 [bytes]"} {
		if !strings.Contains(dump, want) {
			t.Errorf("luksDump does not show %q:\n%s", want, dump)
		}
	}
	if out, err := cryptsetup("open", "--test-passphrase", "--key-file", filepath.Join(dir, "right"), img); err != nil {
		t.Errorf("right passphrase: %v\n%s", err, out)
	}
	if _, err := cryptsetup("open", "--test-passphrase", "--key-file", filepath.Join(dir, "wrong"), img); err == nil {
		t.Error("wrong passphrase accepted")
	}
	// The owner's visit leaves a volume that still opens.
	if _, err := unlock(t, load(t, img), testPass, "data"); err != nil {
		t.Errorf("after cryptsetup: %v", err)
	}
	// A second key that the owner adds breaks the canonical form: closed, not open.
	if out, err := cryptsetup("luksAddKey", "-q", "--pbkdf-force-iterations", "4", "--pbkdf-memory", "32768", "--key-file",
		filepath.Join(dir, "right"), img, filepath.Join(dir, "wrong")); err != nil {
		t.Fatalf("luksAddKey: %v\n%s", err, out)
	}
	if im, err := Read(load(t, img), testSize); err != nil || im.Kind() != Refused {
		t.Errorf("an added key slot: %v, %v", im.Kind(), err)
	}
}

// TestCryptsetupRepairs: cryptsetup mends our primary from our secondary,
// and what it wrote is still canonical and sealed.
func TestCryptsetupRepairs(t *testing.T) {
	m, _ := formatted(t)
	copy(m.b[100:], "garbage in the primary header")
	dir := t.TempDir()
	img := filepath.Join(dir, "disk")
	m.save(t, img)
	write(t, filepath.Join(dir, "right"), []byte(testPass))
	if out, err := cryptsetup("open", "--test-passphrase", "--key-file", filepath.Join(dir, "right"), img); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if o, err := unlock(t, load(t, img), testPass, "data"); err != nil || !o.Fresh {
		t.Errorf("%+v, %v", o, err)
	}
}

func cryptsetup(args ...string) (string, error) {
	if _, err := exec.LookPath("cryptsetup"); err != nil {
		return "", errors.New("cryptsetup is missing: make deps")
	}
	out, err := exec.Command("timeout", append([]string{"-s", "KILL", "60", "cryptsetup"}, args...)...).CombinedOutput()
	return string(out), err
}

func write(t testing.TB, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}
