//go:build vm

package disk

import (
	"bytes"
	"os"
	"regexp"
	"strings"
	"testing"
)

// turned is a disk that the host changes between two reads of it.
type turned struct {
	first, then []byte
	mapped      int // mappings that come of then alone: it is refused
	judged      int // reads of a block that differs, by a guest that sees then alone
	reads       int // at most, by one that saw first, and opens
}

const (
	turncoatName = "turncoat"
	always       = 1 << 30
)

// turns are changes that are refused where they are seen.
func turns(d disks) map[string]turned {
	foreign := read(d.t, d.stock("stock-tc", false, cheapPBKDF...).File)
	parted := read(d.t, d.stock("stock-tp", true, cheapPBKDF...).File)
	ours, _ := d.sealed(turncoatName)
	change := func(base []byte, do func([]byte) []byte) []byte {
		return append(do(bytes.Clone(base[:64<<10])), base[64<<10:]...)
	}
	table := d.blank("moved", vmSize)
	run(d.t, "sgdisk", "-n", "1:0:+100M", "-n", "2:120M:+96M", table.File)
	head, err := os.ReadFile(table.File)
	must(d.t, err)
	moved := bytes.Clone(parted)
	copy(moved, head[:34*512])
	copy(moved[vmSize-33*512:], head[vmSize-33*512:])
	// A header is read for the gate and, when all is mapped, for the hourly check:
	// what it compares with, and once to compare.
	// What the gate refuses is looked at once more, for the label of a cidata disk;
	// a table that grows keeps the MBR in front of it.
	const header, tables, label = 3, 2, 2
	return map[string]turned{
		"F, null cipher":               {foreign, change(foreign, rewrite(swap(segmentCipher, nullSegment))), 0, label, header},
		"F, a device in the cipher":    {foreign, change(foreign, rewrite(swap(segmentCipher, injected))), 0, label, header},
		"F, endless derivation":        {foreign, change(foreign, rewrite(swap(`"iterations":1000,"salt"`, `"iterations":4294967295,"salt"`))), 0, label, header},
		"O, the seal taken away":       {ours, change(ours, rewrite(noTokens)), 1, 1, header},
		"O, generation raised":         {ours, change(ours, raised), 0, 1, header},
		"the volume's partition moved": {parted, moved, 0, label, tables},
	}
}

var keyName = regexp.MustCompile(`hpcr:[0-9a-f]{16}`)

// turn shows each change to the guest three times: never, from the first read
// of a block on, from the second. All is read once before anything is mapped,
// so the last must come out as the first: the same live table, the same
// content, and no more reads.
func (d disks) turn(disk *turncoat, ask func(*testing.T, command) answer) {
	for name, tt := range turns(d) {
		d.t.Run("11 changed after it was read: "+name, func(t *testing.T) {
			show := func(turn int) (a answer, reads, writes int) {
				disk.set(tt.first, tt.then, turn)
				a = ask(t, command{Name: turncoatName, Passphrases: []string{vmPass}, Write: canary})
				reads, writes = disk.counts(differ(tt.first, tt.then))
				t.Logf("%d ms, %d mappings, %d reads, %d writes, %s", a.Ms, a.Mappings, reads, writes, a.Error)
				if disk.holds(canary) {
					t.Error("what the guest wrote can be read on the disk")
				}
				return a, reads, writes
			}
			still, _, _ := show(always)
			if still.Error != "" || still.File != "from the host" || len(still.Tables) != 1 || !liveForm.MatchString(still.Tables[0]) {
				t.Fatalf("before the change: %+v", still)
			}
			if got, reads, writes := show(0); got.Code != "HPL02003E" || got.Mappings != tt.mapped || reads != tt.judged || writes != 0 {
				t.Errorf("changed before it was read: %+v, %d reads, %d writes", got, reads, writes)
			}
			got, reads, writes := show(1)
			plain := func(a answer) string { return keyName.ReplaceAllString(strings.Join(a.Tables, ","), "") }
			if got.Error != "" || got.File != still.File || got.Mappings != still.Mappings || plain(got) != plain(still) {
				t.Errorf("changed after it was read: %+v, want %+v", got, still)
			}
			if reads > tt.reads || writes == 0 {
				t.Errorf("%d reads of a block, want %d at most; %d writes", reads, tt.reads, writes)
			}
		})
	}
}

// differ lists the blocks in which two contents differ.
func differ(a, b []byte) []int {
	var blocks []int
	for i := range len(a) / turnBlock {
		if !bytes.Equal(a[i*turnBlock:][:turnBlock], b[i*turnBlock:][:turnBlock]) {
			blocks = append(blocks, i)
		}
	}
	return blocks
}
