//go:build vm

package disk

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hpcr/initramfs/qemu"
)

const (
	victim     = "victim" // the volume's name and the disk's serial
	victimSize = 128 * mib
	canary     = "CANARY-of-the-workload-"

	// A refusal before any derivation: the largest buffers are those of the
	// probe, a derivation of the base's cost has a matrix of 32 MiB.
	gateAlloc = 16 * mib
	// Of emulated processors that others use, too; a bomb takes hours.
	soon = 60 * time.Second
)

// attack is a disk of a hostile host, and what must come of it.
type attack struct {
	base     []byte              // laid on a disk of zeros
	head     func([]byte) []byte // changes its first 64 KiB, where the headers lie
	disk     func(*os.File)      // or: writes what it likes
	pass     string              // "" = the right one
	existing bool
	floor    uint64
	code     string // "" = opens
	mapped   int    // mappings that the guest makes, all of constants
	derives  bool   // a key derivation runs
}

// liveForm is the only table that any disk may bring about, and no key in it.
var liveForm = regexp.MustCompile(`^0 \d+ crypt aes-xts-plain64 :64:logon:hpcr:[0-9a-f]{16} 0 \d+:\d+ \d+( 1 sector_size:4096)?$`)

// TestHostileDisks is the threat model's list of attacks on a disk against the real code
// and a real block device in a guest. The oracles are the disk afterwards, byte
// for byte; the kernel's word for what the device mapper made, and its live
// table; what was allocated; and that nothing the guest wrote can be read on the
// disk.
func TestHostileDisks(t *testing.T) {
	for _, arch := range archs() {
		if beside(arch) { // of the machine, only its byte order matters here: luks2 has tests for that
			continue
		}
		t.Run(arch, func(t *testing.T) {
			t.Parallel()
			g := newGuest(t, arch)
			d := disks{t: t, dir: t.TempDir()}
			all := attacks(d)
			disk := d.blank(victim, victimSize)
			f, err := os.OpenFile(disk.File, os.O_RDWR, 0)
			must(t, err)
			defer f.Close()
			traitor, served := newTurncoat(t, turncoatName, vmSize)
			least := filesystems["ext4"].room(true)
			small := []qemu.Disk{d.blank("least", least), d.blank("less", least-mib)}
			g.serve(t, append(small, disk, served), func(ask func(*testing.T, command) answer) {
				for _, name := range slices.Sorted(maps.Keys(all)) {
					t.Run(name, func(t *testing.T) { all[name].run(t, f, ask) })
				}
				d.turn(traitor, ask)
				t.Run("the smallest disk for a volume with integrity", func(t *testing.T) { smallest(t, small, ask) })
			})
		})
	}
}

func (a attack) run(t *testing.T, f *os.File, ask func(*testing.T, command) answer) {
	must(t, f.Truncate(0))
	must(t, f.Truncate(victimSize))
	if a.base != nil {
		sparse(t, f, a.base, 0)
		if a.head != nil {
			h := bytes.Clone(a.base[:64<<10])
			changed := a.head(bytes.Clone(h))
			if bytes.Equal(h, changed) {
				t.Fatal("the attack changes nothing")
			}
			_, err := f.WriteAt(changed, 0)
			must(t, err)
		}
	}
	if a.disk != nil {
		a.disk(f)
	}
	pass := a.pass
	if pass == "" {
		pass = vmPass
	}
	before := take(t, f)
	got := ask(t, command{Name: victim, Passphrases: strings.Split(pass, ","), Existing: a.existing, MinGeneration: a.floor, Write: canary})
	after := take(t, f)
	t.Logf("%d ms, %d KiB, %d mappings, %s %s", got.Ms, got.Alloc>>10, got.Mappings, got.Kind, got.Error)
	if got.Code != a.code || got.Created || a.code == "" && (got.Error != "" || got.File != "from the host") {
		t.Errorf("got %+v, want code %q", got, a.code)
	}
	if got.Mappings != a.mapped {
		t.Errorf("%d mappings were made, want %d", got.Mappings, a.mapped)
	}
	for _, table := range got.Tables {
		if !liveForm.MatchString(table) {
			t.Errorf("live table %q", table)
		}
	}
	if !a.derives && got.Alloc > gateAlloc {
		t.Errorf("%d KiB allocated before the refusal: a derivation ran", got.Alloc>>10)
	}
	if got.Ms > soon.Milliseconds() {
		t.Errorf("took %d ms", got.Ms)
	}
	if a.code != "" && before.sum != after.sum {
		t.Error("the guest changed a disk that it refused")
	}
	if after.canary {
		t.Error("what the guest wrote can be read on the disk")
	}
}

// smallest: on the disk of just the size that is asked for, integrity leaves the
// file system the room that it needs; one of a mebibyte less is refused.
func smallest(t *testing.T, disks []qemu.Disk, ask func(*testing.T, command) answer) {
	c := command{Name: "least", Passphrases: []string{vmPass}, Integrity: true}
	a := ask(t, c)
	var sectors int64
	if len(a.Tables) == 1 {
		fmt.Sscanf(a.Tables[0], "0 %d crypt capi:authenc", &sectors)
	}
	if !a.Created || a.Code != "" || sectors*sector < filesystems["ext4"].minSize {
		t.Errorf("%+v", a)
	}
	before := sum(t, disks[1].File)
	c.Name = "less"
	if a := ask(t, c); a.Code != "HPL07003E" || sum(t, disks[1].File) != before {
		t.Errorf("a disk too small: %+v", a)
	}
}

// serve boots a guest that opens what it is asked to, while do runs.
func (g *guest) serve(t *testing.T, disks []qemu.Disk, do func(ask func(*testing.T, command) answer)) {
	t.Helper()
	vm, end := g.start(t, "^TestServe$", disks...)
	defer end()
	code := -1
	ask := func(t *testing.T, c command) (a answer) {
		t.Helper()
		must(t, vm.Send(c))
		for raw := range vm.Events() {
			var e struct {
				T, Line string
				Code    int
			}
			must(t, json.Unmarshal(raw, &e))
			text, ok := strings.CutPrefix(e.Line, answerMark)
			switch {
			case e.T == "end":
				code = e.Code
			case ok:
				must(t, json.Unmarshal([]byte(text), &a))
				return a
			default:
				t.Log(e.Line)
			}
		}
		if !c.Stop {
			text, err := os.ReadFile(vm.Console())
			t.Fatalf("the guest went off: %v %v\n%s", vm.Err(), err, text)
		}
		return a
	}
	do(ask)
	ask(t, command{Stop: true})
	<-vm.Done()
	if code != 0 {
		t.Errorf("the guest's own checks failed: status %d", code)
	}
}

// sparse writes what is not zero.
func sparse(t *testing.T, f *os.File, b []byte, at int64) {
	t.Helper()
	for chunk := range slices.Chunk(b, 64<<10) {
		if nonzero(chunk) {
			_, err := f.WriteAt(chunk, at)
			must(t, err)
		}
		at += int64(len(chunk))
	}
}

// snapshot is a disk's content, and whether what the guest wrote is in it.
type snapshot struct {
	sum    [sha256.Size]byte // over all that is not zero, with its place
	canary bool
}

func take(t *testing.T, f *os.File) (s snapshot) {
	t.Helper()
	h, buf := sha256.New(), make([]byte, 64<<10)
	for at := int64(0); at < victimSize; {
		data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // a hole to the end
			break
		}
		must(t, err)
		at = data / int64(len(buf)) * int64(len(buf))
		_, err = f.ReadAt(buf, at)
		must(t, err)
		if nonzero(buf) {
			fmt.Fprint(h, at)
			h.Write(buf)
			s.canary = s.canary || bytes.Contains(buf, []byte(canary))
		}
		at += int64(len(buf))
	}
	h.Sum(s.sum[:0])
	return s
}

// read leaves out the zeros at the end.
func read(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	must(t, err)
	return bytes.Clone(bytes.TrimRight(b, "\x00"))
}
