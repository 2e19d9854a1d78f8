package luks2

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
)

// reseat fixes the checksum of a header copy: the attacker can, too.
func reseat(b []byte) {
	clear(b[posChecksum:posEnd])
	sum := sha256.Sum256(b[:headerSize])
	copy(b[posChecksum:], sum[:])
}

// rewrite changes the JSON text of both copies.
func rewrite(t testing.TB, m *memory, change func(string) string) {
	t.Helper()
	for _, at := range []int{0, headerSize} {
		b := m.b[at : at+headerSize]
		text, _, _ := strings.Cut(string(b[binarySize:]), "\x00")
		changed := change(text)
		if changed == text || len(changed) > jsonSize {
			t.Fatal("the attack does not change the header")
		}
		clear(b[binarySize:])
		copy(b[binarySize:], changed)
		reseat(b)
	}
}

// foreignDisk is a header as cryptsetup's defaults would have it. Its key
// material opens nothing: the gate comes before that.
func foreignDisk(t testing.TB) *memory {
	t.Helper()
	m := &memory{b: make([]byte, dataOffset), size: 20 << 20}
	meta := &metadata{
		slots: []keyslot{
			{id: 0, area: region{32768, areaSize(false)}, afHash: "sha256", priority: -1, kdf: kdf{kind: "argon2id", cost: cheap, salt: random(saltSize)}},
			{id: 1, area: region{290816, areaSize(false)}, afHash: "sha256", priority: 1, kdf: kdf{kind: "pbkdf2", hash: "sha256", iterations: 2000, salt: random(saltSize)}},
		},
		dataOffset: 16 << 20, sectorSize: 512, keyslotsSize: 16744448,
		digest: digest{hash: "sha256", iterations: 1000, salt: random(saltSize), value: random(32)},
	}
	for _, second := range []bool{false, true} {
		h := header{secondary: second, uuid: newUUID(), seq: 3, meta: meta}
		at := 0
		if second {
			at = headerSize
		}
		copy(m.b[at:], h.encode())
	}
	return m
}

func swap(from, to string) func(string) string {
	return func(s string) string { return strings.ReplaceAll(s, from, to) }
}

// TestGateRefuses: the host writes a header; the gate lets none of these to
// the key derivation, with whatever passphrase.
func TestGateRefuses(t *testing.T) {
	const segment = `"iv_tweak":"0","encryption":"aes-xts-plain64"`
	tests := map[string]func(string) string{
		"null cipher":                     swap(segment, `"iv_tweak":"0","encryption":"cipher_null-ecb"`),
		"cipher with a device injected":   swap(segment, `"iv_tweak":"0","encryption":"cipher_null-ecb - 0 /dev/vdb 32768 1 x"`),
		"cipher through the kernel's API": swap(segment, `"iv_tweak":"0","encryption":"capi:xts(aes)-plain64"`),
		"ecb":                             swap(segment, `"iv_tweak":"0","encryption":"aes-ecb"`),
		"null cipher in a key slot":       swap(`"258048","encryption":"aes-xts-plain64"`, `"258048","encryption":"cipher_null-ecb"`),
		"empty digest":                    func(s string) string { return cutField(s, `"digest":"`, "") },
		"short digest":                    func(s string) string { return cutField(s, `"digest":"`, "AAAA") },
		"digest of another hash":          swap(`"segments":["0"],"hash":"sha256"`, `"segments":["0"],"hash":"sha1"`),
		"digest of no rounds":             swap(`"iterations":1000,`, `"iterations":0,`),
		"digest for another slot":         swap(`"keyslots":["0"`, `"keyslots":["7"`),
		"key size 0":                      swap(`"key_size":64,"af"`, `"key_size":0,"af"`),
		"key size 2^36":                   swap(`"key_size":64,"af"`, `"key_size":68719476736,"af"`),
		"key size 2^55 of the area":       swap(`"key_size":64},`, `"key_size":36028797018963968},`),
		"area of 1 TiB":                   swap(`"size":"258048"`, `"size":"1099511627776"`),
		"area over the header":            swap(`"offset":"32768"`, `"offset":"16384"`),
		"area beyond the data":            swap(`"offset":"32768"`, `"offset":"16777216"`),
		"area not aligned":                swap(`"offset":"32768"`, `"offset":"32769"`),
		"no time":                         swap(`"time":4`, `"time":0`),
		"time 2^32-1":                     swap(`"time":4`, `"time":4294967295`),
		"time that overflows 32 bits":     swap(`"time":4`, `"time":4294967300`),
		"memory 2^32-1":                   swap(`"memory":32768`, `"memory":4294967295`),
		"no memory":                       swap(`"memory":32768`, `"memory":0`),
		"256 lanes":                       swap(`"cpus":1`, `"cpus":256`),
		"no lanes":                        swap(`"cpus":1`, `"cpus":0`),
		"cost in product": func(s string) string {
			return swap(`"memory":32768`, `"memory":1048576`)(swap(`"time":4`, `"time":63`)(s))
		},
		"other KDF":                         swap(`"type":"argon2id"`, `"type":"argon2i"`),
		"stripes":                           swap(`"stripes":4000`, `"stripes":1`),
		"IV tweak":                          swap(`"iv_tweak":"0"`, `"iv_tweak":"1"`),
		"sector size 1024":                  swap(`"sector_size":`, `"sector_size":1024,"x":`),
		"sector size by another spelling":   swap(`"sector_size":`, `"Sector_Size":`),
		"fixed segment size":                swap(`"size":"dynamic"`, `"size":"4096"`),
		"segment at 0":                      swap(`"segments":{"0":{"type":"crypt","offset":"`, `"segments":{"0":{"type":"crypt","offset":"0","x":"`),
		"segment beyond the device":         swap(`"segments":{"0":{"type":"crypt","offset":"1`, `"segments":{"0":{"type":"crypt","offset":"91`),
		"linear segment":                    swap(`"type":"crypt"`, `"type":"linear"`),
		"integrity":                         swap(`"sector_size"`, `"integrity":{"type":"none","journal_encryption":"none","journal_integrity":"none"},"sector_size"`),
		"segment flags":                     swap(`"sector_size"`, `"flags":["in-reencryption"],"sector_size"`),
		"two segments":                      swap(`},"digests"`, `,"1":{"type":"linear","offset":"0","size":"dynamic"}},"digests"`),
		"discard flag":                      swap(`"config":{`, `"config":{"flags":["allow-discards"],`),
		"requirements":                      swap(`"config":{`, `"config":{"requirements":{"mandatory":["online-reencrypt-v2"]},`),
		"reencrypt key slot":                swap(`"type":"luks2"`, `"type":"reencrypt"`),
		"token":                             swap(`"tokens":{`, `"tokens":{"5":{"type":"systemd-tpm2","keyslots":["0"]},`),
		"JSON size":                         swap(`"json_size":"12288"`, `"json_size":"12289"`),
		"number with a sign":                swap(`"time":4`, `"time":+4`),
		"number as a fraction":              swap(`"time":4`, `"time":4.0`),
		"number with an exponent":           swap(`"time":4`, `"time":4e0`),
		"number with a leading zero":        swap(`"offset":"32768"`, `"offset":"032768"`),
		"doubled key":                       swap(`"config":{`, `"config":{"json_size":"12288",`),
		"doubled section":                   func(s string) string { return strings.TrimSuffix(s, "}") + `,"segments":{}}` },
		"section in other case":             swap(`"config":`, `"Config":`),
		"nesting":                           swap(`"tokens":{`, `"tokens":{"5":`+strings.Repeat("[", 900)+strings.Repeat("]", 900)+`,`),
		"nothing but an array":              func(string) string { return "[]" },
		"a second value":                    func(s string) string { return s + "{}" },
		"bytes behind the text":             func(s string) string { return s + "\x00x" },
		"text without an end":               func(s string) string { return s + strings.Repeat(" ", jsonSize-len(s)) },
		"text that is not ASCII":            swap(`"config":{`, `"config":{"é":1,`),
		"key slot 32":                       swap(`"keyslots":{"0":`, `"keyslots":{"32":`),
		"no key slots":                      func(s string) string { return `{"keyslots":{},` + s[strings.Index(s, `"tokens"`):] },
		"salt of another length":            func(s string) string { return cutField(s, `"salt":"`, "AAAA") },
		"salt in base64 with spare bits":    func(s string) string { return cutField(s, `"salt":"`, strings.Repeat("A", 42)+"B=") },
		"keyslots area larger than allowed": swap(`"keyslots_size":"`, `"keyslots_size":"9`+"99999999"),
	}
	ours, _ := formatted(t)
	for name, attack := range tests {
		for make, disk := range map[string]func(testing.TB) *memory{
			"ours":    func(testing.TB) *memory { return ours.clone() },
			"foreign": foreignDisk,
		} {
			t.Run(name+", "+make, func(t *testing.T) {
				m := disk(t)
				rewrite(t, m, attack)
				im, err := Read(m, m.size)
				if err != nil || im.Kind() != Refused || im.Reason() == nil {
					t.Fatalf("kind %s, %v", im.Kind(), err)
				}
				if _, err := im.Unlock(t.Context(), pass(testPass), "data"); err == nil {
					t.Error("a refused image unlocks")
				}
				if _, err := im.Foreign(); err == nil {
					t.Error("a refused image is given to the other reader")
				}
			})
		}
	}
}

// cutField puts another value in place of the last field of that name.
func cutField(s, name, value string) string {
	at := strings.LastIndex(s, name) + len(name)
	return s[:at] + value + s[at+strings.Index(s[at:], `"`):]
}

// An owner who enrolled another key is told what to do, wherever the token is.
func TestTokenIsNamed(t *testing.T) {
	for _, id := range []string{"0", "5"} {
		m := foreignDisk(t)
		rewrite(t, m, swap(`"tokens":{`, `"tokens":{"`+id+`":{"type":"systemd-tpm2","keyslots":["0"]}`))
		if im, err := Read(m, m.size); err != nil || !errors.Is(im.Reason(), errToken) {
			t.Errorf("token %s: %v, %v", id, im.Reason(), err)
		}
	}
}

func TestForeignAccepted(t *testing.T) {
	m := foreignDisk(t)
	im, err := Read(m, m.size)
	if err != nil || im.Kind() != ForeignLUKS {
		t.Fatalf("%s %v %v", im.Kind(), im.Reason(), err)
	}
	f, err := im.Foreign()
	if err != nil || fmt.Sprint(f.Slots) != "[{0 32768} {1 0}]" || f.DataOffset != 16<<20 || f.SectorSize != 512 || len(f.Sections) != 3 {
		t.Errorf("%+v, %v", f, err)
	}
}

func TestBinaryHeaderRefused(t *testing.T) {
	tests := map[string]func(b []byte){
		"version 3":                            func(b []byte) { binary.BigEndian.PutUint16(b[posVersion:], 3) },
		"4 MiB header":                         func(b []byte) { binary.BigEndian.PutUint64(b[posSize:], 4<<20) },
		"header size 0":                        func(b []byte) { binary.BigEndian.PutUint64(b[posSize:], 0) },
		"offset of the other":                  func(b []byte) { binary.BigEndian.PutUint64(b[posOffset:], headerSize) },
		"checksum by sha1":                     func(b []byte) { copy(b[posChecksumKind:], "sha1\x00\x00") },
		"text behind the name of the checksum": func(b []byte) { b[posChecksumKind+8] = 'x' },
		"UUID":                                 func(b []byte) { copy(b[posUUID:], "../../../etc/passwd") },
		"label":                                func(b []byte) { b[posLabel] = 'x' },
		"padding":                              func(b []byte) { b[posPad+7] = 1 },
		"padding behind the checksum":          func(b []byte) { b[posEnd+100] = 1 },
		"rest of the checksum field":           func(b []byte) { b[posChecksum+40] = 1 },
		"sequence id":                          func(b []byte) { b[posSeq+7]++ },
	}
	clean, _ := formatted(t)
	for name, attack := range tests {
		t.Run(name, func(t *testing.T) {
			m := clean.clone()
			attack(m.b)
			sumRest := m.b[posChecksum+40]
			reseat(m.b)
			m.b[posChecksum+40] = sumRest
			im, err := Read(m, testSize)
			if err != nil || im.Kind() != Refused {
				t.Errorf("kind %s, %v", im.Kind(), err)
			}
		})
	}
}

// TestEveryBit flips bits of header and key slot, mends the checksum as an
// attacker can, and demands: refused, or without effect (the same key, place
// and generation). The flips are a sample: in tier full all bits of both
// headers, else one in each byte (in each eighth under the race detector). The
// ends of the key slot's area stand for its middle, whose sectors are alike.
// Of those that the gate lets pass, one in 97 goes through the derivation.
func TestEveryBit(t *testing.T) {
	m, o := formatted(t)
	clean := bytes.Clone(m.b[:slotStart+int(slotsSize(false))])
	step, derived, harmless := 7, 0, 0
	switch {
	case os.Getenv("HPCR_TIER") == "full":
		step = 1
	case testing.Short() || raceEnabled:
		step = 61
	}
	for bit := 0; bit < (slotStart+int(slotsSize(false)))*8; bit += step {
		at := bit / 8
		if at >= slotStart+1024 && at < slotStart+int(areaSize(false))-1024 {
			continue // key material in its middle: the same for each sector
		}
		if at >= slotStart+int(areaSize(false))+1024 {
			break // the spare area is named by no header
		}
		m.b[at] ^= 1 << (bit % 8)
		start := at / headerSize * headerSize
		inHeader := start < slotStart
		if inHeader && (at-start < posChecksum || at-start >= posChecksum+32) {
			reseatKeeping(m.b[start:start+headerSize], at-start)
		}
		im, err := Read(m, testSize)
		if err != nil {
			t.Fatal(err)
		}
		if im.Kind() != Refused {
			if derived++; derived%97 == 1 {
				harmless += check(t, im, o, at)
			}
		}
		m.b[at] = clean[at]
		if inHeader {
			copy(m.b[start+posChecksum:start+posEnd], clean[start+posChecksum:])
		}
	}
	t.Logf("%d flips passed the gate, %d of the tried ones were harmless", derived, harmless)
	if derived == 0 || harmless == 0 {
		t.Error("the test flips nothing that reaches the derivation")
	}
}

func check(t *testing.T, im *Image, o *Opened, at int) int {
	t.Helper()
	got, err := im.Unlock(t.Context(), pass(testPass), "data")
	if errors.Is(err, ErrPassphrase) || errors.Is(err, ErrSeal) {
		return 0
	}
	if err != nil {
		t.Errorf("byte %d: %v", at, err)
		return 0
	}
	if !bytes.Equal(got.Key.Bytes(), o.Key.Bytes()) || got.Generation != 1 || got.DataOffset != o.DataOffset || got.SectorSize != o.SectorSize {
		t.Errorf("byte %d: opened with an effect: %+v", at, got)
	}
	return 1
}

// reseatKeeping mends the checksum but keeps a flip in the unused rest of
// the checksum field, which the checksum itself does not cover.
func reseatKeeping(b []byte, at int) {
	kept := b[at]
	reseat(b)
	if at >= posChecksum+32 && at < posEnd {
		b[at] = kept
	}
}

// TestPowerCut stops a format and a commit after each write, whole or torn:
// what is left opens, or says that there is no volume yet.
func TestPowerCut(t *testing.T) {
	for _, torn := range []int{0, 512, 4096 + 300} {
		for n := 1; ; n++ {
			m := &cutting{memory: *blankDisk(), left: n, torn: torn}
			err := Mark(m)
			var o *Opened
			if err == nil {
				o, err = Format(m, testSize, FormatOptions{Passphrase: pass(testPass), Name: "data", KDF: cheap})
			}
			formattedWhole := err == nil
			if err == nil {
				err = o.Commit(m, "data", Ready)
			}
			if err == nil {
				break // no write was cut: all have been
			}
			im, rerr := Read(&m.memory, testSize)
			if rerr != nil {
				t.Fatal(rerr)
			}
			if im.Kind() == Interrupted && im.Resumable() {
				if formattedWhole {
					t.Errorf("write %d, torn %d: a finished volume counts as none", n, torn)
				}
				continue
			}
			if n == 1 && torn == 0 {
				if im.Kind() != None {
					t.Errorf("before the first write: %s", im.Kind())
				}
				continue
			}
			got, uerr := im.Unlock(t.Context(), pass(testPass), "data")
			if uerr != nil {
				t.Errorf("write %d, torn %d: %s: %v", n, torn, im.Kind(), uerr)
				continue
			}
			if err := got.Repair(&m.memory, "data"); err != nil {
				t.Error(err)
			}
			again, uerr := unlock(t, &m.memory, testPass, "data")
			if uerr != nil || !again.Fresh || again.Generation != got.Generation {
				t.Errorf("write %d, torn %d, repaired: %+v, %v", n, torn, again, uerr)
			}
		}
	}
}

// cutting loses power in its left-th write, of which torn bytes still arrive.
type cutting struct {
	memory
	left, torn int
}

func (c *cutting) WriteAt(p []byte, at int64) (int, error) {
	if c.left--; c.left <= 0 {
		if c.left == 0 {
			copy(c.b[at:], p[:min(c.torn, len(p))])
		}
		return 0, errPower
	}
	return copy(c.b[at:], p), nil
}

func TestStrippedSealIsNoticed(t *testing.T) {
	m, o := formatted(t)
	rewrite(t, m, func(s string) string {
		from := strings.Index(s, `"tokens":{`) + len(`"tokens":{`)
		return s[:from] + s[strings.Index(s, `},"segments"`):]
	})
	im, err := Read(m, testSize)
	if err != nil || im.Kind() != ForeignLUKS {
		t.Fatalf("%s, %v", im.Kind(), err)
	}
	// The gate cannot know; whoever opens it must ask for the mark.
	if !Marked(o.Key.Bytes()) || Marked(random(keySize)) || Marked(nil) {
		t.Error("the mark does not tell our keys from others")
	}
}

func TestKDFBounds(t *testing.T) {
	for name, tt := range map[string]struct {
		k  KDF
		ok bool
	}{
		"default":           {KDF{262144, 4, 2}, true},
		"cheap":             {cheap, true},
		"largest":           {KDF{1 << 20, 16, 4}, true},
		"zero":              {KDF{}, false},
		"guessable":         {KDF{32 << 10, 3, 1}, false},
		"small memory":      {KDF{16 << 10, 64, 1}, false},
		"too much in all":   {KDF{1 << 20, 17, 4}, false},
		"lanes":             {KDF{262144, 4, 5}, false},
		"overflow":          {KDF{1 << 31, 1 << 31, 1}, false},
		"overflow of lanes": {KDF{262144, 4, 1 << 31}, false},
	} {
		t.Run(name, func(t *testing.T) {
			if err := tt.k.Check(); (err == nil) != tt.ok {
				t.Error(err)
			}
			if tt.ok {
				return
			}
			if _, err := Format(blankDisk(), testSize, FormatOptions{Passphrase: pass("x"), KDF: tt.k}); err == nil {
				t.Error("formatted")
			}
		})
	}
}
