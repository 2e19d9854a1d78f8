//go:build vm

package test

import (
	"bytes"
	"crypto/sha256"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hpcr/agent/secret"
	"hpcr/disk/luks2"
	"hpcr/test/peers"
	"hpcr/test/scenario"
)

const (
	plainSegment = `"iv_tweak":"0","encryption":"aes-xts-plain64"`
	nullSegment  = `"iv_tweak":"0","encryption":"cipher_null-ecb"`
)

// headerScenarios show forged headers to the whole agent. disk's own tests show
// it each attack on the list; here is that nothing of the agent comes before
// disk's gate, or goes around it.
var headerScenarios = []scenario.Scenario{
	forged("a LUKS2 header with a null cipher is refused although the seeds are right", scenario.Core, stockVolume,
		func(s string) string { return strings.ReplaceAll(s, plainSegment, nullSegment) }),
	forged("a LUKS2 header with a device injected into its cipher is refused although the seeds are right", scenario.Full, stockVolume,
		func(s string) string {
			return strings.ReplaceAll(s, plainSegment, `"iv_tweak":"0","encryption":"cipher_null-ecb - 0 /dev/vda 32768 1 x"`)
		}),
	forged("a LUKS2 header with an empty digest is refused", scenario.Full, stockVolume,
		func(s string) string {
			at := strings.LastIndex(s, `"digest":"`) + len(`"digest":"`)
			return s[:at] + s[at+strings.Index(s[at:], `"`):]
		}),
	forged("a LUKS2 header whose key derivation would never end is refused at once", scenario.Full, stockVolume,
		func(s string) string {
			return strings.ReplaceAll(s, `"iterations":1000,"salt"`, `"iterations":4294967295,"salt"`)
		}),
	forged("a sealed volume without its seal is refused although the seeds are right", scenario.Full, sealedVolume,
		func(s string) string {
			from, to := strings.Index(s, `"tokens":{`)+len(`"tokens":{`), strings.Index(s, `},"segments"`)
			return s[:from] + s[to:]
		}),
}

// forged is a scenario with a volume whose passphrase is right, without a file
// system, and whose header the host has changed.
func forged(name string, tier scenario.Tier, prepare func(*testing.T, *scenario.Lab, string, string), change func(string) string) scenario.Scenario {
	return scenario.Scenario{
		Name:     name,
		Attacker: "a host that rewrites the header of the volume's disk, checksums included",
		Claim: "HPL02003E, not one changed byte, and no word of the workload on the disk. With the header as it was the same disk comes further, " +
			"to the missing file system: so it is the header that was refused.",
		Tier:  tier,
		Archs: []string{scenario.AMD64},
		Cost:  25 * time.Second,
		Run: func(t *testing.T, lab *scenario.Lab) {
			disk := sparse(t, lab, "forged.img", 160<<20)
			c := lab.Contract(t)
			passphrase := string(lab.Hpcrctl(t, "volume", "passphrase", "--contract", lab.Sign(t, c), "--key", filepath.Join(lab.Keys, "contract.key"), "--volume", scenario.Volume))
			prepare(t, lab, disk, passphrase)
			refusedUnchanged(t, lab, c, disk, "HPL02007E")
			f, err := os.OpenFile(disk, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			head := make([]byte, 32<<10)
			if _, err := f.ReadAt(head, 0); err != nil {
				t.Fatal(err)
			}
			for _, h := range [][]byte{head[:16<<10], head[16<<10:]} {
				forge(t, h, change)
			}
			if _, err := f.WriteAt(head, 0); err != nil {
				t.Fatal(err)
			}
			refusedUnchanged(t, lab, c, disk, "HPL02003E")
		},
	}
}

func refusedUnchanged(t *testing.T, lab *scenario.Lab, c peers.Contract, disk, code string) {
	t.Helper()
	before := sum(t, disk)
	lab.Boot(t, scenario.Boot{UserData: lab.Encrypt(t, c), Disks: []string{scenario.Volume + "=" + disk}}).Failed(t, code)
	after, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	if sum(t, disk) != before {
		t.Error("the guest changed the disk")
	}
	if bytes.Contains(after, []byte(scenario.Canary)) {
		t.Error("a word of the workload is on the disk")
	}
}

// forge rewrites the JSON of a header copy, and its checksum.
func forge(t *testing.T, h []byte, change func(string) string) {
	t.Helper()
	text, _, _ := strings.Cut(string(h[4096:]), "\x00")
	changed := change(text)
	if changed == text {
		t.Fatal("the header did not change")
	}
	clear(h[4096:])
	copy(h[4096:], changed)
	clear(h[448:512])
	s := sha256.Sum256(h)
	copy(h[448:], s[:])
}

func stockVolume(t *testing.T, lab *scenario.Lab, disk, passphrase string) {
	t.Helper()
	lab.Command(t, "timeout", "-s", "KILL", "120", "cryptsetup", "luksFormat", "-q", "--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000",
		"--key-file", lab.File(t, "passphrase", []byte(passphrase)), disk)
}

func sealedVolume(t *testing.T, _ *scenario.Lab, disk, passphrase string) {
	t.Helper()
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	o, err := luks2.Format(f, 160<<20, luks2.FormatOptions{Passphrase: secret.FromString(passphrase), Name: scenario.Volume, KDF: luks2.KDF{MemoryKiB: 32 << 10, Time: 4, Parallel: 1}})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Key.Wipe()
	if err := o.Commit(f, scenario.Volume, luks2.Ready); err != nil {
		t.Fatal(err)
	}
}
