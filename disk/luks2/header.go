package luks2

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"regexp"
)

// The profile. Sizes in bytes.
const (
	headerSize = 16384
	binarySize = 4096
	jsonSize   = headerSize - binarySize

	keySize    = 64 // two AES-256 keys for XTS
	macKeySize = 32 // behind it in a volume with integrity, for HMAC-SHA256
	saltSize   = 32
	afStripes  = 4000
	cipherName = "aes-xts-plain64"

	integrityName = "hmac(sha256)"

	slotStart    = 2 * headerSize
	dataOffset   = 1 << 20 // beyond both areas, aligned for any disk
	sectorSize   = 4096
	digestRounds = 1000 // over 448 random bits there is nothing to slow down

	profileVersion = 1
)

// volumeKeySize is the length of a volume's key in bytes.
func volumeKeySize(integrity bool) int {
	if integrity {
		return keySize + macKeySize
	}
	return keySize
}

// areaSize is what one key slot takes: the key in afStripes stripes, on whole
// 4 KiB.
func areaSize(integrity bool) int64 {
	return int64((volumeKeySize(integrity)*afStripes + 4095) &^ 4095)
}

// slotsSize has room for two: a roll writes the other slot before it drops the
// first.
func slotsSize(integrity bool) int64 { return 2 * areaSize(integrity) }

var (
	magicPrimary   = []byte("LUKS\xba\xbe")
	magicSecondary = []byte("SKUL\xba\xbe")
	uuidForm       = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
)

// Byte positions in the binary header (LUKS2 on-disk format, section 2.1).
const (
	posMagic, posVersion, posSize, posSeq = 0, 6, 8, 16
	posLabel, posChecksumKind, posSalt    = 24, 72, 104
	posUUID, posSubsystem, posOffset      = 168, 208, 256
	posPad, posChecksum, posEnd           = 264, 448, 512
)

// header is one of a volume's two header copies.
type header struct {
	secondary bool
	salt      [64]byte
	uuid      string
	seq       uint64
	meta      *metadata
	binary    []byte // a foreign header's, whose label and subsystem are its owner's
}

// encode writes the copy in full, checksum included.
func (h *header) encode() []byte {
	b := make([]byte, headerSize)
	copy(b, h.binary)
	magic, at := magicPrimary, uint64(0)
	if h.secondary {
		magic, at = magicSecondary, headerSize
	}
	copy(b[posMagic:], magic)
	binary.BigEndian.PutUint16(b[posVersion:], 2)
	binary.BigEndian.PutUint64(b[posSize:], headerSize)
	binary.BigEndian.PutUint64(b[posSeq:], h.seq)
	copy(b[posChecksumKind:], "sha256")
	copy(b[posSalt:], h.salt[:])
	copy(b[posUUID:], h.uuid)
	clear(b[posChecksum:posEnd])
	binary.BigEndian.PutUint64(b[posOffset:], at)
	copy(b[binarySize:], h.meta.encode())
	sum := sha256.Sum256(b)
	copy(b[posChecksum:], sum[:])
	return b
}

// errTorn marks a copy that is not a header at all: no magic or a checksum
// that does not fit, as a power cut leaves it. Any other error of
// parseHeader is a header that somebody wrote so.
var errTorn = errors.New("no header, or a torn one")

// parseHeader reads one copy of exactly headerSize bytes. A sealed one must be
// in our profile's canonical form.
func parseHeader(b []byte, secondary bool, size int64) (*header, error) {
	h, err := gateHeader(b, secondary, size)
	if err != nil {
		return nil, err
	}
	if h.meta.seal == nil {
		if h.meta.integrity {
			return nil, errors.New("integrity of another make is not supported")
		}
		return h, nil
	}
	if err := checkProfile(h.meta); err != nil {
		return nil, err
	}
	h.binary = nil
	if h.seq != h.meta.seal.generation || subtle.ConstantTimeCompare(h.encode(), b) != 1 {
		return nil, fmt.Errorf("the header is not in our profile's canonical form")
	}
	return h, nil
}

// gateHeader reads one copy and holds it against what any header must be.
func gateHeader(b []byte, secondary bool, size int64) (*header, error) {
	h := &header{secondary: secondary}
	magic, at := magicPrimary, uint64(0)
	if secondary {
		magic, at = magicSecondary, headerSize
	}
	if len(b) != headerSize || !bytes.HasPrefix(b, magic) {
		return nil, errTorn
	}
	if binary.BigEndian.Uint64(b[posSize:]) != headerSize {
		return nil, errors.New("the header's size must be 16 KiB, cryptsetup's own choice (without --luks2-metadata-size)")
	}
	if binary.BigEndian.Uint16(b[posVersion:]) != 2 ||
		binary.BigEndian.Uint64(b[posOffset:]) != at || !padded(b[posChecksumKind:posSalt], "sha256") {
		return nil, errors.New("the header's version must be 2, its offset that of its place, its checksum sha256")
	}
	whole := bytes.Clone(b)
	clear(whole[posChecksum:posEnd])
	sum := sha256.Sum256(whole)
	if !bytes.Equal(b[posChecksum:posChecksum+len(sum)], sum[:]) {
		return nil, errTorn
	}
	copy(h.salt[:], b[posSalt:])
	h.uuid = string(bytes.TrimRight(b[posUUID:posSubsystem], "\x00"))
	if !uuidForm.MatchString(h.uuid) {
		return nil, errors.New("the header's UUID must be one in lower case")
	}
	h.seq = binary.BigEndian.Uint64(b[posSeq:])
	meta, err := parseMeta(b[binarySize:], size)
	if err != nil {
		return nil, err
	}
	h.meta, h.binary = meta, bytes.Clone(b[:binarySize])
	return h, nil
}

// padded says whether field holds text and then only NUL.
func padded(field []byte, text string) bool {
	return string(bytes.TrimRight(field, "\x00")) == text
}

// normal is the copy without what differs between the two copies, and
// without what the seal cannot cover: itself and the checksum over it.
func (h *header) normal() []byte {
	m := *h.meta
	s := *m.seal
	s.mac = make([]byte, sealSize)
	m.seal = &s
	n := header{uuid: h.uuid, seq: h.seq, meta: &m}
	b := n.encode()
	clear(b[posMagic:posVersion])
	clear(b[posChecksum:posEnd])
	return b
}
