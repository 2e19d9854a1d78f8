package luks2

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

const (
	sealType = "hpcr-seal"
	sealSize = sha256.Size
	markText = "hpcr sealed v1"
	markAt   = keySize - 8
)

// State is how far a volume's creation has come.
type State string

const (
	Formatting State = "formatting" // LUKS2 is there, the file system may not be
	Ready      State = "ready"
)

// seal is the LUKS2 token that binds header, key material, generation and
// volume name to the volume key. cryptsetup ignores tokens of unknown type.
type seal struct {
	generation uint64
	state      State
	mac        []byte
}

// sealMAC computes the seal of a header with the key material of its slots.
// Its key comes from the volume key: one from the seeds would let the host
// guess seeds without paying for argon2id.
func sealMAC(volumeKey []byte, name string, h *header, areas map[region][]byte) ([]byte, error) {
	key, err := hkdf.Key(sha256.New, volumeKey, nil, "hpcr luks2 seal v1", sealSize)
	if err != nil {
		return nil, fmt.Errorf("seal key: %w", err)
	}
	defer clear(key)
	mac := hmac.New(sha256.New, key)
	number := func(n uint64) { mac.Write(binary.BigEndian.AppendUint64(nil, n)) }
	mac.Write([]byte("hpcr luks2 seal v1\x00"))
	number(uint64(len(name)))
	mac.Write([]byte(name))
	number(h.meta.seal.generation)
	mac.Write(h.normal())
	for _, s := range h.meta.slots {
		number(uint64(s.area.offset))
		number(uint64(s.area.size))
		mac.Write(areas[s.area])
	}
	return mac.Sum(nil), nil
}

// mark writes into a fresh volume key the sign that it belongs to a sealed
// volume. The host, which does not know the key, can take the seal away but
// not this; XTS loses 64 of its 512 key bits, all of the tweak key.
func mark(key []byte) { copy(key[markAt:keySize], markOf(key)) }

// Marked says whether a volume key belongs to a sealed volume.
func Marked(key []byte) bool {
	return (len(key) == keySize || len(key) == keySize+macKeySize) && hmac.Equal(key[markAt:keySize], markOf(key))
}

func markOf(key []byte) []byte {
	mac := hmac.New(sha256.New, key[:markAt])
	mac.Write([]byte(markText))
	return mac.Sum(nil)[:keySize-markAt]
}
