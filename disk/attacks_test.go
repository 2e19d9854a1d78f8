//go:build vm

package disk

import (
	"crypto/aes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/xts"

	"hpcr/agent/secret"
	"hpcr/disk/luks2"
)

// cheapPBKDF makes a volume whose data begin at 512 KiB.
var cheapPBKDF = []string{"--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--luks2-keyslots-size", "256k", "--offset", "1024"}

const (
	segmentCipher = `"iv_tweak":"0","encryption":"aes-xts-plain64"`
	nullSegment   = `"iv_tweak":"0","encryption":"cipher_null-ecb"`
	injected      = `"iv_tweak":"0","encryption":"cipher_null-ecb - 0 /dev/vda 32768 1 x"`
)

func swap(from, to string) func(string) string {
	return func(s string) string { return strings.ReplaceAll(s, from, to) }
}

// field gives the last field of that name another value.
func field(name, value string) func(string) string {
	return func(s string) string {
		at := strings.LastIndex(s, `"`+name+`":"`) + len(name) + 4
		return s[:at] + value + s[at+strings.Index(s[at:], `"`):]
	}
}

// rewrite changes the JSON of both LUKS2 headers and mends their checksums, as
// the host can.
func rewrite(change func(string) string) func([]byte) []byte {
	return func(b []byte) []byte {
		for _, at := range []int{0, 16384} {
			h := b[at : at+16384]
			text, _, _ := strings.Cut(string(h[4096:]), "\x00")
			clear(h[4096:])
			copy(h[4096:], change(text))
			mend(h)
		}
		return b
	}
}

func mend(h []byte) {
	clear(h[448:512])
	s := sha256.Sum256(h[:16384])
	copy(h[448:], s[:])
}

// binaryPart changes both binary headers.
func binaryPart(change func(h []byte)) func([]byte) []byte {
	return func(b []byte) []byte {
		for _, at := range []int{0, 16384} {
			change(b[at : at+16384])
			mend(b[at : at+16384])
		}
		return b
	}
}

func luks1Number(at int, v uint32) func([]byte) []byte {
	return func(b []byte) []byte { binary.BigEndian.PutUint32(b[at:], v); return b }
}

func luks1Text(at int, text string) func([]byte) []byte {
	return func(b []byte) []byte { copy(b[at:], text+"\x00"); return b }
}

// attacks lists them; a number groups those of one kind. F is a volume by cryptsetup, O one of
// ours.
func attacks(d disks) map[string]attack {
	t := d.t
	t.Helper()
	argon := []string{"--type", "luks2", "--pbkdf", "argon2id", "--pbkdf-memory", "32768", "--pbkdf-parallel", "1", "--pbkdf-force-iterations", "4", "--sector-size", "4096"}
	foreign := read(t, d.stock("stock-aa", false, argon...).File)
	pbkdf2 := read(t, d.stock("stock-pb", false, cheapPBKDF...).File)
	luks1 := read(t, d.stock("stock-l1", false, "--type", "luks1", "--pbkdf-force-iterations", "1000").File)
	ours, newer := d.sealed(victim)
	other, _ := d.sealed("other")
	zero := strings.Repeat("0", 64)

	all := map[string]attack{
		"00 control: F opens":                          {base: foreign, mapped: 2, derives: true},
		"00 control: F of pbkdf2 opens":                {base: pbkdf2, mapped: 2, derives: true},
		"00 control: F of LUKS1 opens":                 {base: luks1, mapped: 2, derives: true},
		"00 control: O opens":                          {base: ours, mapped: 1, derives: true},
		"12 O under the name of another":               {base: other, code: "HPL02003E", derives: true},
		"12 O of before the contract's floor":          {base: ours, floor: 3, code: "HPL02003E", derives: true},
		"12 O, the floor itself":                       {base: newer, floor: 3, mapped: 1, derives: true},
		"12 O, old header, no floor: not detected":     {base: ours, mapped: 1, derives: true},
		"12 F where there is a floor":                  {base: foreign, floor: 1, code: "HPL02003E"},
		"13 nothing where there must be a volume":      {existing: true, code: "HPL02003E"},
		"15 wrong seed, F":                             {base: foreign, pass: zero, code: "HPL02003E", derives: true},
		"15 wrong seed, O":                             {base: ours, pass: zero, code: "HPL02003E", derives: true},
		"15 wrong seed, LUKS1":                         {base: luks1, pass: zero, code: "HPL02003E", derives: true},
		"15 the other order of seeds, F":               {base: foreign, pass: zero + "," + vmPass, mapped: 2, derives: true},
		"15 the other order of seeds, O":               {base: ours, pass: zero + "," + vmPass, mapped: 1, derives: true},
		"12 O, the seal taken away":                    {base: ours, head: rewrite(noTokens), code: "HPL02003E", mapped: 1, derives: true},
		"12 O, seal of a volume with equal seeds":      {base: ours, head: rewrite(field("mac", macOf(other))), code: "HPL02003E", derives: true},
		"12 O, generation raised":                      {base: ours, head: raised, code: "HPL02003E", derives: true},
		"07 F, data offset moved: noise":               {base: foreign, head: rewrite(field("offset", "20971520")), code: "HPL02007E", mapped: 2, derives: true},
		"07 F, sector size changed: noise":             {base: foreign, head: rewrite(swap(`"sector_size":4096`, `"sector_size":512`)), code: "HPL02007E", mapped: 2, derives: true},
		"13 the secondary header alone, F":             {base: foreign, head: func(b []byte) []byte { clear(b[:16384]); return b }, code: "HPL02003E"},
		"13 the secondary header alone, O: it is ours": {base: ours, head: func(b []byte) []byte { clear(b[:16384]); return b }, mapped: 1, derives: true},
	}
	// Of both makes, in JSON.
	for name, change := range map[string]func(string) string{
		"01 null cipher":                     swap(segmentCipher, nullSegment),
		"02 cipher with a device injected":   swap(segmentCipher, injected),
		"02 cipher through the kernel's API": swap(segmentCipher, `"iv_tweak":"0","encryption":"capi:xts(aes)-plain64"`),
		"03 empty digest":                    field("digest", ""),
		"03 digest of one byte":              field("digest", "AA=="),
		"03 digest too long":                 field("digest", strings.Repeat("AAAA", 16)),
		"03 digest by another hash":          swap(`"segments":["0"],"hash":"sha256"`, `"segments":["0"],"hash":"sha1"`),
		"04 null cipher in the key slot":     swap(`"size":"258048","encryption":"aes-xts-plain64"`, `"size":"258048","encryption":"cipher_null-ecb"`),
		"05 key size 0":                      swap(`"key_size":64`, `"key_size":0`),
		"05 key size 2^36":                   swap(`"key_size":64`, `"key_size":68719476736`),
		"05 key size 2^55":                   swap(`"key_size":64`, `"key_size":36028797018963968`),
		"05 area of 2^40":                    swap(`"size":"258048"`, `"size":"1099511627776"`),
		"06 memory 0":                        swap(`"memory":32768`, `"memory":0`),
		"06 memory 2^32-1":                   swap(`"memory":32768`, `"memory":4294967295`),
		"06 memory 2^64":                     swap(`"memory":32768`, `"memory":18446744073709551616`),
		"06 time 0":                          swap(`"time":4`, `"time":0`),
		"06 time 2^32-1":                     swap(`"time":4`, `"time":4294967295`),
		"06 time 2^32+4":                     swap(`"time":4`, `"time":4294967300`),
		"06 cpus 0":                          swap(`"cpus":1`, `"cpus":0`),
		"06 cpus 256":                        swap(`"cpus":1`, `"cpus":256`),
		"06 memory and time at their bounds": func(s string) string {
			return swap(`"memory":32768`, `"memory":1048576`)(swap(`"time":4`, `"time":64`)(s))
		},
		"06 digest of 0 rounds":             swap(`"hash":"sha256","iterations":`, `"hash":"sha256","iterations":0,"x":`),
		"06 digest of 9e12 rounds":          swap(`"hash":"sha256","iterations":`, `"hash":"sha256","iterations":9000000000000,"x":`),
		"07 ecb":                            swap(segmentCipher, `"iv_tweak":"0","encryption":"aes-ecb"`),
		"07 another IV":                     swap(segmentCipher, `"iv_tweak":"0","encryption":"aes-xts-plain"`),
		"07 IV tweak":                       swap(`"iv_tweak":"0"`, `"iv_tweak":"8"`),
		"07 data over the header":           field("offset", "0"),
		"07 data beyond the disk":           field("offset", "1099511627776"),
		"07 segment of a fixed size":        swap(`"size":"dynamic"`, `"size":"1048576"`),
		"07 sector size 1024":               swap(`"sector_size":`, `"sector_size":1024,"x":`),
		"08 JSON without an end":            func(s string) string { return s + strings.Repeat(" ", 12288-len(s)) },
		"08 doubled key":                    swap(`"config":{`, `"config":{"json_size":"12288",`),
		"08 keys in other case":             swap(`"config":`, `"Config":`),
		"08 deep nesting":                   swap(`"tokens":{`, `"tokens":{"9":`+strings.Repeat("[", 3000)+strings.Repeat("]", 3000)+`,`),
		"08 bytes behind the text":          func(s string) string { return s + "\x00x" },
		"08 a ninth key slot and more":      swap(`"keyslots":{"0":`, `"keyslots":{"40":{},"41":{},"0":`),
		"09 reencryption":                   swap(`"type":"luks2"`, `"type":"reencrypt"`),
		"09 requirements":                   swap(`"config":{`, `"config":{"requirements":{"mandatory":["online-reencrypt-v2"]},`),
		"09 linear segment":                 swap(`"type":"crypt"`, `"type":"linear"`),
		"09 a second, linear segment":       swap(`},"digests"`, `,"1":{"type":"linear","offset":"0","size":"dynamic"}},"digests"`),
		"09 segment flags":                  swap(`"sector_size"`, `"flags":["in-reencryption"],"sector_size"`),
		"09 integrity by another algorithm": swap(`"sector_size"`, `"integrity":{"type":"none","journal_encryption":"none","journal_integrity":"none"},"sector_size"`),
		"09 discards":                       swap(`"config":{`, `"config":{"flags":["allow-discards"],`),
		"09 a token":                        swap(`"tokens":{`, `"tokens":{"7":{"type":"systemd-tpm2","keyslots":["0"]},`),
	} {
		for base, b := range map[string][]byte{"F": foreign, "O": ours} {
			all[name+", "+base] = attack{base: b, head: rewrite(change), code: "HPL02003E"}
		}
	}
	all["02 cipher with a device injected, wrong passphrase, F"] = attack{base: foreign, head: rewrite(swap(segmentCipher, injected)), pass: zero, code: "HPL02003E"}
	all["03 empty digest, wrong passphrase, F"] = attack{base: foreign, head: rewrite(field("digest", "")), pass: zero, code: "HPL02003E"}
	for name, change := range map[string]func(string) string{
		"06 pbkdf2 of 0 rounds":    swap(`"iterations":1000,"salt"`, `"iterations":0,"salt"`),
		"06 pbkdf2 of 2^32-1":      swap(`"iterations":1000,"salt"`, `"iterations":4294967295,"salt"`),
		"06 pbkdf2 of 9e12 rounds": swap(`"iterations":1000,"salt"`, `"iterations":9000000000000,"salt"`),
	} {
		all[name] = attack{base: pbkdf2, head: rewrite(change), code: "HPL02003E"}
	}
	for name, change := range map[string]func(h []byte){
		"08 version 3":               func(h []byte) { binary.BigEndian.PutUint16(h[6:], 3) },
		"08 header of 4 MiB":         func(h []byte) { binary.BigEndian.PutUint64(h[8:], 4<<20) },
		"08 checksum by sha1":        func(h []byte) { copy(h[72:], "sha1\x00\x00") },
		"08 header at a wrong place": func(h []byte) { binary.BigEndian.PutUint64(h[256:], 1<<20) },
	} {
		all[name] = attack{base: foreign, head: binaryPart(change), code: "HPL02003E"}
	}
	for name, change := range map[string]func([]byte) []byte{
		"01 LUKS1, null cipher":               luks1Text(8, "cipher_null"),
		"02 LUKS1, cipher with a device":      luks1Text(40, "ecb - 0 /dev/vda 0"),
		"05 LUKS1, key of 2^32-1 bytes":       luks1Number(108, 1<<32-1),
		"06 LUKS1, key slot of 2^32-1 rounds": luks1Number(208+4, 1<<32-1),
		"06 LUKS1, digest of 2^32-1 rounds":   luks1Number(164, 1<<32-1),
		"07 LUKS1, ecb":                       luks1Text(40, "ecb"),
		"07 LUKS1, data at 0":                 luks1Number(104, 0),
		"07 LUKS1, data beyond the disk":      luks1Number(104, 1<<32-1),
		"05 LUKS1, stripes":                   luks1Number(208+44, 1<<32-1),
	} {
		all[name] = attack{base: luks1, head: change, code: "HPL02003E"}
	}
	// Bits of our headers, spread over all fields; luks2's own tests take more.
	bits := 2
	if full() {
		bits = 16
	}
	for i := range bits {
		bit := 4099 + i*(128_016/bits)
		all[fmt.Sprintf("10 bit %d flipped", bit)] = attack{base: ours, code: "HPL02003E", derives: true, head: func(b []byte) []byte {
			at := bit / 8
			b[at] ^= 1 << (bit % 8)
			mend(b[at/16384*16384:][:16384])
			return b
		}}
	}
	// cryptsetup's own suite.
	unpack(t, filepath.Join("luks2", "testdata", "cryptsetup-suite.tar.xz"), 1<<20, func(name string, image []byte) {
		if strings.HasPrefix(name, "F/") || strings.HasPrefix(name, "evil/") || strings.HasPrefix(name, "luks2_header_requirements/") {
			all["cryptsetup's suite, "+name] = attack{base: image, code: "HPL02003E"}
		}
	})
	// Disks that hold something else.
	maps.Copy(all, d.others())
	return all
}

// others are disks of other makes: never formatted.
func (d disks) others() map[string]attack {
	t := d.t
	all := map[string]attack{}
	made := func(name, code string, args ...string) {
		img := d.blank("img", victimSize).File
		run(t, args[0], append(args[1:], img)...)
		all["13 "+name] = attack{base: read(t, img), code: code}
	}
	made("ext4", "HPL02003E", "mke2fs", "-q", "-F", "-t", "ext4")
	made("btrfs", "HPL02003E", "mkfs.btrfs", "-q")
	made("FAT", "HPL02003E", "mkfs.vfat")
	made("swap", "HPL02003E", "mkswap", "-q")
	made("GPT with one partition", "HPL07006E", "sgdisk", "-n", "1:0:+20M")
	made("GPT with three partitions", "HPL07006E", "sgdisk", "-n", "1:0:+20M", "-n", "2:0:+20M", "-n", "3:0:+20M")
	made("GPT without a partition", "HPL07006E", "sgdisk", "-o")
	made("GPT with two partitions, no LUKS", "HPL02003E", "sgdisk", "-n", "1:0:+20M", "-n", "2:0:+20M")
	signatures(t, victimSize, func(name string, image []byte) {
		for _, want := range []string{"lvm2", "mdraid", "zfs", "ntfs", "xfs-v5", "vmfs_volume", "bcache-B", "isw-raid", "promise-raid", "drbd-v09", "iso", "f2fs", "luks1"} {
			if strings.TrimPrefix(name, "fs/") == want {
				at := int64(0)
				if strings.HasSuffix(want, "raid") { // found from the end
					at = victimSize - int64(len(image))
				}
				all["13 libblkid's image "+want] = attack{code: "HPL02003E", disk: func(f *os.File) { sparse(d.t, f, image, at) }}
			}
		}
	})
	return all
}

// sealed is a volume of our make with a file in it, and the same with its
// header written once more.
func (d disks) sealed(name string) (generation2, generation3 []byte) {
	t := d.t
	t.Helper()
	f := d.blank("sealed", victimSize)
	d.edit(f, func(f *os.File) {
		dev := part{f, 0, victimSize}
		o, err := luks2.Format(dev, victimSize, luks2.FormatOptions{Passphrase: secret.FromString(vmPass), Name: name, KDF: luks2.KDF{MemoryKiB: 32 << 10, Time: 4, Parallel: 1}})
		must(t, err)
		key, err := xts.NewCipher(aes.NewCipher, o.Key.Bytes())
		must(t, err)
		plain := d.filesystem("sealed")
		for at := 0; at < len(plain); at += o.SectorSize {
			s := plain[at : at+o.SectorSize]
			key.Encrypt(s, s, uint64(at/512))
		}
		_, err = f.WriteAt(plain, o.DataOffset)
		must(t, err)
		must(t, o.Commit(dev, name, luks2.Ready))
		generation2 = read(t, f.Name())
		must(t, o.Commit(dev, name, luks2.Ready))
		generation3 = read(t, f.Name())
	})
	return generation2, generation3
}

func noTokens(text string) string {
	from, to := strings.Index(text, `"tokens":{`)+len(`"tokens":{`), strings.Index(text, `},"segments"`)
	return text[:from] + text[to:]
}

func macOf(image []byte) string {
	_, text, _ := strings.Cut(string(image[4096:16384]), `"mac":"`)
	mac, _, _ := strings.Cut(text, `"`)
	return mac
}

// raised claims a generation that the seal does not cover.
func raised(b []byte) []byte {
	b = binaryPart(func(h []byte) { binary.BigEndian.PutUint64(h[16:], 9) })(b)
	return rewrite(swap(`"generation":"2"`, `"generation":"9"`))(b)
}
