package luks2

import (
	"fmt"

	"hpcr/agent/secret"
)

// newSlot makes a key slot that opens key with passphrase, and the content of
// its area. The caller writes the area before any header names it.
func newSlot(id int, at int64, key, passphrase *secret.Secret, cost KDF) (keyslot, []byte, error) {
	size := areaSize(key.Len() > keySize)
	s := keyslot{id: id, area: region{at, size}, afHash: "sha256", priority: -1,
		kdf: kdf{kind: "argon2id", cost: cost, salt: random(saltSize)}}
	slotKey, err := s.kdf.slotKey(passphrase.Bytes())
	if err != nil {
		return s, nil, fmt.Errorf("derive: %w", err)
	}
	defer clear(slotKey)
	area := make([]byte, size)
	stripes := afSplit(key.Bytes(), hashes[s.afHash])
	copy(area, stripes)
	clear(stripes)
	return s, area, cryptArea(slotKey, area[:key.Len()*afStripes], true)
}

// wipeArea overwrites key material that no header names any more. What is zeros
// already is not written.
func wipeArea(dev Device, a region) error {
	buf := make([]byte, min(a.size, 1<<20))
	for at := a.offset; at < a.end(); at += int64(len(buf)) {
		b := buf[:min(int64(len(buf)), a.end()-at)]
		if _, err := dev.ReadAt(b, at); err != nil {
			return fmt.Errorf("read key slot: %w", err)
		}
		if zero(b) {
			continue
		}
		clear(b)
		if err := writeSync(dev, b, at); err != nil {
			return fmt.Errorf("wipe key slot: %w", err)
		}
	}
	return nil
}
