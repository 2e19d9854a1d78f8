package luks2

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
)

// Bounds of the gate. Foreign volumes get looser ones: what cryptsetup's
// defaults may have chosen on a large machine.
const (
	maxSlots          = 8
	maxDataOffset     = 64 << 20
	maxIterations     = 20_000_000 // pbkdf2: some 20 s
	minIterations     = 1000       // cryptsetup's own floor
	maxDigestRounds   = 10_000_000
	maxMemoryKiB      = 1 << 20 // cryptsetup's own ceiling: 1 GiB
	maxTime           = 64
	maxParallel       = 4
	maxCost           = 16 << 20 // KiB × passes
	minForeignMemory  = 32
	minOwnMemoryKiB   = 32 << 10
	minOwnCost        = 128 << 10 // KiB × passes
	foreignSlotsStart = 2 * headerSize
)

// errToken: a token makes other programs act, and may hold a key slot's key.
var errToken = errors.New("the header carries a token, as systemd-cryptenroll leaves them: remove it with cryptsetup token remove")

// What cryptsetup's own options leave in config.
var (
	errFlags        = errors.New("the header stores flags for opening (cryptsetup --persistent): take them off with cryptsetup refresh --persistent, without other options")
	errRequirements = errors.New("the header has requirements, as a reencryption leaves them until it ends: end it with cryptsetup reencrypt --resume-only")
)

// KDF is the cost of argon2id.
type KDF struct {
	MemoryKiB, Time, Parallel uint32
}

// Check says whether the profile allows this cost for a volume of our make.
func (k KDF) Check() error {
	if !k.bounded() || k.MemoryKiB < minOwnMemoryKiB || k.cost() < minOwnCost {
		return fmt.Errorf("argon2id cost outside the profile: memory %d…%d KiB, parallel 1…%d, memory × time %d…%d KiB",
			minOwnMemoryKiB, maxMemoryKiB, maxParallel, minOwnCost, maxCost)
	}
	return nil
}

func (k KDF) cost() uint64 { return uint64(k.MemoryKiB) * uint64(k.Time) }

func (k KDF) bounded() bool {
	return k.MemoryKiB >= minForeignMemory && k.MemoryKiB <= maxMemoryKiB && k.Time >= 1 && k.Time <= maxTime &&
		k.Parallel >= 1 && k.Parallel <= maxParallel && k.MemoryKiB >= 8*k.Parallel && k.cost() <= maxCost
}

var hashSizes = map[string]int{"sha1": 20, "sha256": 32, "sha512": 64}

// parseMeta is the gate for LUKS2: it takes one field after another, each
// with its exact value or fixed bounds, and refuses whatever is left over.
// size is that of the device.
func parseMeta(area []byte, size int64) (*metadata, error) {
	tree, err := parseTree(area)
	if err != nil {
		return nil, err
	}
	w := &walker{}
	top := node{w, "header", tree}
	m := &metadata{}

	config := top.object("config")
	config.numeral("json_size", jsonSize, jsonSize)
	m.keyslotsSize = int64(config.numeral("keyslots_size", 4096, maxDataOffset))
	switch {
	case w.err != nil:
	case config.has("requirements"):
		w.err = errRequirements
	case config.has("flags"):
		w.err = errFlags
	}
	config.done()

	segments := top.object("segments")
	segment := segments.object("0")
	segment.exact("type", "crypt")
	m.dataOffset = int64(segment.numeral("offset", foreignSlotsStart, maxDataOffset))
	segment.exact("size", "dynamic")
	segment.numeral("iv_tweak", 0, 0)
	segment.exact("encryption", cipherName)
	m.sectorSize = int(segment.number("sector_size", 512, 4096))
	if m.sectorSize != 512 && m.sectorSize != 4096 {
		w.want("header.segments.0.sector_size", "512 or 4096")
	}
	if m.dataOffset%4096 != 0 {
		w.want("header.segments.0.offset", "a multiple of 4096")
	}
	if segment.has("integrity") {
		m.integrity = true
		in := segment.object("integrity")
		in.exact("type", integrityName)
		in.exact("journal_encryption", "none")
		in.exact("journal_integrity", "none")
		in.done()
	}
	segment.done()
	segments.done()

	m.slots = parseSlots(top.object("keyslots"), m.integrity)
	slotsEnd := foreignSlotsStart + m.keyslotsSize
	if m.keyslotsSize%4096 != 0 || slotsEnd > m.dataOffset {
		w.want("header.config.keyslots_size", "whole blocks of 4096 before the data")
	}
	for i, s := range m.slots {
		if !s.area.within(foreignSlotsStart, slotsEnd) {
			w.want("header.keyslots.area", "inside the header's own")
		}
		for _, other := range m.slots[:i] {
			if s.area.overlaps(other.area) {
				w.want("header.keyslots.area", "apart from all others")
			}
		}
	}

	digests := top.object("digests")
	d := digests.object("0")
	d.exact("type", "pbkdf2")
	d.list("keyslots", m.slotIDs(), "those of all key slots, none of them unbound")
	d.list("segments", []string{"0"}, "the one segment")
	m.digest.hash = d.exact("hash", "sha256", "sha512")
	m.digest.iterations = uint32(d.number("iterations", minIterations, maxDigestRounds))
	m.digest.salt = d.bytes("salt", saltSize)
	m.digest.value = d.bytes("digest", hashSizes[m.digest.hash])
	d.done()
	digests.done()

	tokens := top.object("tokens")
	if t, ok := tokens.m["0"].(map[string]any); ok && t["type"] == sealType {
		m.seal = parseSeal(tokens.object("0"))
	}
	if len(tokens.m) > 0 && w.err == nil {
		w.err = errToken
	}
	top.done()
	if w.err != nil {
		return nil, w.err
	}
	if m.dataOffset >= size {
		return nil, errors.New("the data would start beyond the device's end")
	}
	return m, nil
}

func parseSlots(n node, integrity bool) []keyslot {
	if len(n.m) == 0 || len(n.m) > maxSlots {
		n.w.want(n.path, fmt.Sprintf("1 to %d key slots", maxSlots))
		return nil
	}
	var slots []keyslot
	for id := range 32 { // LUKS2 has 32 slots: ids beyond stay unknown fields
		key := strconv.Itoa(id)
		if !n.has(key) {
			continue
		}
		o := n.object(key)
		o.path = n.path + "." + key
		s := keyslot{id: id, priority: -1}
		o.exact("type", "luks2")
		o.exactNumber("key_size", uint64(volumeKeySize(integrity)))
		if o.has("priority") {
			s.priority = int(o.number("priority", 0, 2))
		}

		af := o.object("af")
		af.exact("type", "luks1")
		af.exactNumber("stripes", afStripes)
		s.afHash = af.exact("hash", "sha256", "sha512")
		af.done()

		area := o.object("area")
		area.exact("type", "raw")
		s.area.offset = int64(area.numeral("offset", foreignSlotsStart, maxDataOffset))
		s.area.size = int64(area.numeral("size", uint64(areaSize(integrity)), uint64(areaSize(integrity))))
		area.exact("encryption", cipherName)
		area.exactNumber("key_size", keySize)
		if s.area.offset%4096 != 0 {
			n.w.want(area.path+".offset", "a multiple of 4096")
		}
		area.done()

		s.kdf = parseKDF(o.object("kdf"))
		o.done()
		slots = append(slots, s)
	}
	n.done()
	return slots
}

func parseKDF(n node) kdf {
	k := kdf{kind: n.exact("type", "argon2id", "pbkdf2"), salt: n.bytes("salt", saltSize)}
	if k.kind == "pbkdf2" {
		k.hash = n.exact("hash", "sha256", "sha512")
		k.iterations = uint32(n.number("iterations", minIterations, maxIterations))
	} else {
		k.cost = KDF{
			MemoryKiB: uint32(n.number("memory", minForeignMemory, maxMemoryKiB)),
			Time:      uint32(n.number("time", 1, maxTime)),
			Parallel:  uint32(n.number("cpus", 1, maxParallel)),
		}
		if !k.cost.bounded() {
			n.w.want(n.path, fmt.Sprintf("of at least 8 KiB for each lane, and at most %d KiB by passes", maxCost))
		}
	}
	n.done()
	return k
}

func parseSeal(n node) *seal {
	s := &seal{}
	n.exact("type", sealType)
	n.list("keyslots", nil, "empty")
	n.exactNumber("profile", profileVersion)
	s.generation = n.numeral("generation", 1, 1<<63)
	s.state = State(n.exact("state", string(Formatting), string(Ready)))
	s.mac = n.bytes("mac", sealSize)
	n.done()
	return s
}

// checkProfile holds a sealed header against the profile of our make, which
// is narrower than what the gate allows to others. What is not named here is
// held by the comparison with the canonical form.
func checkProfile(m *metadata) error {
	if len(m.slots) != 1 || m.dataOffset != dataOffset || m.sectorSize != sectorSize || m.keyslotsSize != slotsSize(m.integrity) ||
		m.digest.hash != "sha256" || m.digest.iterations != digestRounds {
		return errors.New("the header is not of our profile")
	}
	s := m.slots[0]
	at := slices.Index([]int64{slotStart, slotStart + areaSize(m.integrity)}, s.area.offset)
	if at < 0 || s.id != at || s.afHash != "sha256" || s.priority >= 0 || s.kdf.kind != "argon2id" {
		return errors.New("the key slot is not of our profile")
	}
	return s.kdf.cost.Check()
}
