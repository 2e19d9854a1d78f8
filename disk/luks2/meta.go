package luks2

import (
	"encoding/base64"
	"fmt"
	"strings"
)

var b64 = base64.StdEncoding.Strict()

// metadata is what the JSON area of an accepted header says.
type metadata struct {
	slots        []keyslot // by id
	dataOffset   int64     // bytes, where the segment starts
	sectorSize   int       // 512 or 4096
	integrity    bool      // each sector has a tag, HMAC-SHA256
	digest       digest
	keyslotsSize int64
	seal         *seal // nil: not of our make
}

type keyslot struct {
	id       int
	area     region
	afHash   string
	priority int // -1 when absent
	kdf      kdf
}

// unused: its owner asked not to use it (priority 0, "ignore").
func (s keyslot) unused() bool { return s.priority == 0 }

type region struct{ offset, size int64 }

func (r region) end() int64                  { return r.offset + r.size }
func (r region) overlaps(o region) bool      { return r.offset < o.end() && o.offset < r.end() }
func (r region) within(low, high int64) bool { return r.offset >= low && r.end() <= high }

type kdf struct {
	kind       string // argon2id, pbkdf2
	cost       KDF    // argon2id
	hash       string // pbkdf2
	iterations uint32 // pbkdf2
	salt       []byte // 32 bytes
}

type digest struct {
	hash       string
	iterations uint32
	salt       []byte // 32 bytes
	value      []byte // as long as the hash
}

// encode is the one form in which we write a header's JSON. A header of our
// profile must have exactly this form; a foreign one is given to luks.go in
// this form, so that two parsers cannot disagree on it.
func (m *metadata) encode() []byte {
	var b strings.Builder
	b.WriteString(`{"keyslots":{`)
	for i, s := range m.slots {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `"%d":{"type":"luks2","key_size":%d,`, s.id, volumeKeySize(m.integrity))
		fmt.Fprintf(&b, `"af":{"type":"luks1","stripes":%d,"hash":"%s"},`, afStripes, s.afHash)
		fmt.Fprintf(&b, `"area":{"type":"raw","offset":"%d","size":"%d","encryption":"%s","key_size":%d},`,
			s.area.offset, s.area.size, cipherName, keySize)
		if s.kdf.kind == "pbkdf2" {
			fmt.Fprintf(&b, `"kdf":{"type":"pbkdf2","hash":"%s","iterations":%d,"salt":"%s"}`,
				s.kdf.hash, s.kdf.iterations, b64.EncodeToString(s.kdf.salt))
		} else {
			fmt.Fprintf(&b, `"kdf":{"type":"argon2id","time":%d,"memory":%d,"cpus":%d,"salt":"%s"}`,
				s.kdf.cost.Time, s.kdf.cost.MemoryKiB, s.kdf.cost.Parallel, b64.EncodeToString(s.kdf.salt))
		}
		if s.priority >= 0 {
			fmt.Fprintf(&b, `,"priority":%d`, s.priority)
		}
		b.WriteByte('}')
	}
	b.WriteString(`},"tokens":{`)
	if m.seal != nil {
		fmt.Fprintf(&b, `"0":{"type":"%s","keyslots":[],"profile":%d,"generation":"%d","state":"%s","mac":"%s"}`,
			sealType, profileVersion, m.seal.generation, m.seal.state, b64.EncodeToString(m.seal.mac))
	}
	fmt.Fprintf(&b, `},"segments":{"0":{"type":"crypt","offset":"%d","size":"dynamic","iv_tweak":"0","encryption":"%s","sector_size":%d`,
		m.dataOffset, cipherName, m.sectorSize)
	if m.integrity {
		fmt.Fprintf(&b, `,"integrity":{"type":"%s","journal_encryption":"none","journal_integrity":"none"}`, integrityName)
	}
	b.WriteString(`}},`)
	fmt.Fprintf(&b, `"digests":{"0":{"type":"pbkdf2","keyslots":[%s],"segments":["0"],"hash":"%s","iterations":%d,"salt":"%s","digest":"%s"}},`,
		`"`+strings.Join(m.slotIDs(), `","`)+`"`, m.digest.hash, m.digest.iterations, b64.EncodeToString(m.digest.salt), b64.EncodeToString(m.digest.value))
	fmt.Fprintf(&b, `"config":{"json_size":"%d","keyslots_size":"%d"}}`, jsonSize, m.keyslotsSize)
	return []byte(b.String())
}
