//go:build vm

package test

import (
	"crypto/rand"
	"os"
	"testing"
	"time"

	"hpcr/test/scenario"
)

const diskSize = 300 << 20

var volumeScenarios = []scenario.Scenario{
	foreign("a disk with somebody's file system is refused and left as it is", scenario.Core, "HPL02003E", func(t *testing.T, lab *scenario.Lab, disk string) {
		lab.Command(t, "mkfs.ext4", "-q", "-L", "somebody", disk)
	}),
	foreign("a disk with one partition is refused and left as it is", scenario.Core, "HPL07006E", func(t *testing.T, lab *scenario.Lab, disk string) {
		lab.Command(t, "sh", "-c", "echo 'label: gpt\nsize=100M, name=metadata' | sfdisk -q '"+disk+"'")
	}),
	foreign("a disk with three partitions is refused and left as it is", scenario.Full, "HPL07006E", func(t *testing.T, lab *scenario.Lab, disk string) {
		lab.Command(t, "sh", "-c", "echo 'label: gpt\nsize=50M\nsize=50M\nsize=50M' | sfdisk -q '"+disk+"'")
	}),
	foreign("a disk that holds noise is refused and left as it is", scenario.Full, "HPL02003E", func(t *testing.T, lab *scenario.Lab, disk string) {
		noise := make([]byte, 4<<20)
		if _, err := rand.Read(noise); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(disk, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(noise); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}),
	foreign("a disk that somebody else encrypted is refused and left as it is", scenario.Full, "HPL02003E", func(t *testing.T, lab *scenario.Lab, disk string) {
		key := lab.File(t, "key", []byte("somebody's passphrase"))
		lab.Command(t, "timeout", "-s", "KILL", "120", "cryptsetup", "luksFormat", "-q", "--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", key, disk)
	}),
	{
		Name:     "a disk that is missing is refused when its wait is over",
		Attacker: "a host that withholds the disk",
		Claim:    "The guest waits 900 s as HPCR does, then powers off in order.",
		Tier:     scenario.Full,
		Archs:    []string{scenario.AMD64},
		Cost:     960 * time.Second,
		Run: func(t *testing.T, lab *scenario.Lab) {
			c := lab.Contract(t)
			r := lab.Boot(t, scenario.Boot{UserData: lab.Encrypt(t, c), Limit: 20 * time.Minute})
			if r.Verdict != "failed" || !r.StoppedInOrder {
				t.Errorf("verdict %s, in order %v, want failed and true: %s", r.Verdict, r.StoppedInOrder, r.Message)
			}
			if r.Took < 900*time.Second {
				t.Errorf("the guest gave up after %s, want 900 s", r.Took)
			}
		},
	},
}

// foreign is a scenario with a disk that is not ours: prepared, offered to the
// guest under the volume's own name, refused, compared.
func foreign(name string, tier scenario.Tier, code string, prepare func(*testing.T, *scenario.Lab, string)) scenario.Scenario {
	return scenario.Scenario{
		Name:     name,
		Attacker: "a host, or a careless operator, that attaches the wrong disk under the volume's name",
		Claim:    code + " and not one changed byte: only a blank disk is ever formatted.",
		Tier:     tier,
		Archs:    []string{scenario.AMD64},
		Cost:     10 * time.Second,
		Run: func(t *testing.T, lab *scenario.Lab) {
			disk := sparse(t, lab, "foreign.img", diskSize)
			prepare(t, lab, disk)
			before := sum(t, disk)
			lab.Boot(t, scenario.Boot{UserData: lab.Encrypt(t, lab.Contract(t)), Disks: []string{scenario.Volume + "=" + disk}}).Failed(t, code)
			if after := sum(t, disk); after != before {
				t.Error("the disk's content changed")
			}
		},
	}
}
