package disk

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"hpcr/agent/secret"
)

const (
	cipher  = "aes-xts-plain64"
	keySize = 64
	sector  = 512 // unit of the device mapper, whatever the disk's own

	// With integrity: as cryptsetup names the same in the kernel's terms.
	integrityCipher = "capi:authenc(hmac(sha256),xts(aes))-plain64"
	integrityKey    = 96
	tagSize         = 32
)

// table is a dm-crypt table. Every text in it is ours.
type table struct {
	sectors      uint64 // length
	key          string // ":64:logon:…", or hex where luks.go made the table
	major, minor uint32
	start        uint64 // in sectors, where the encrypted data begins
	sectorSize   int
	integrity    bool
}

// params is the target's parameter line; the kernel prints the same back.
func (t table) params() string {
	name, options := cipher, []string{}
	if t.integrity {
		name, options = integrityCipher, append(options, fmt.Sprintf("integrity:%d:aead", tagSize))
	}
	if t.sectorSize != sector {
		options = append(options, fmt.Sprintf("sector_size:%d", t.sectorSize))
	}
	s := fmt.Sprintf("%s %s 0 %d:%d %d", name, t.key, t.major, t.minor, t.start)
	if len(options) > 0 {
		s += fmt.Sprintf(" %d %s", len(options), strings.Join(options, " "))
	}
	return s
}

// place is where a volume's encrypted data lies.
type place struct {
	major, minor uint32
	start, size  int64 // bytes
	sectorSize   int
	integrity    bool
}

func (p place) table() (table, error) {
	unit := int64(p.sectorSize)
	if p.start%4096 != 0 || p.size < unit {
		return table{}, errors.New("the data area is misplaced or empty")
	}
	return table{
		sectors: uint64(p.size / unit * unit / sector), start: uint64(p.start / sector),
		major: p.major, minor: p.minor, sectorSize: p.sectorSize, integrity: p.integrity,
	}, nil
}

// mapVolume makes the mapping "name" over p and compares what the kernel
// then shows with what was asked for.
func mapVolume(name string, p place, key *secret.Secret) (*mapping, table, error) {
	t, err := p.table()
	if err != nil {
		return nil, t, err
	}
	id := make([]byte, 8)
	rand.Read(id)
	description := "hpcr:" + hex.EncodeToString(id)
	t.key = fmt.Sprintf(":%d:logon:%s", key.Len(), description)
	var m *mapping
	err = withKernelKey(description, key.Bytes(), func() error {
		var err error
		m, err = createMapping(name, "crypt", t.sectors, t.params())
		return err
	})
	if err != nil {
		return nil, t, err
	}
	sectors, target, params, err := liveTable(name)
	if err == nil && (sectors != t.sectors || target != "crypt" || string(params) != t.params()) {
		err = errors.New("the live table is not the one that was loaded")
	}
	if err != nil {
		return nil, t, errors.Join(err, removeMapping(name))
	}
	return m, t, nil
}

// liftKey takes the key out of a live table that luks.go loaded for p, after
// comparing all the rest of it.
func liftKey(name string, p place) (*secret.Secret, error) {
	t, err := p.table()
	if err != nil {
		return nil, err
	}
	sectors, target, params, err := liveTable(name)
	if err != nil {
		return nil, err
	}
	defer clear(params)
	return keyFromTable(t, sectors, target, params)
}

func keyFromTable(t table, sectors uint64, target string, params []byte) (*secret.Secret, error) {
	const hole = "?"
	t.key = hole
	before, after, _ := strings.Cut(t.params(), hole)
	digits, ok := bytes.CutPrefix(params, []byte(before))
	if ok {
		digits, ok = bytes.CutSuffix(digits, []byte(after))
	}
	if !ok || sectors != t.sectors || target != "crypt" || len(digits) != 2*keySize {
		return nil, errors.New("the live table is not the one that was asked for")
	}
	key := make([]byte, keySize)
	if _, err := hex.Decode(key, digits); err != nil {
		clear(key)
		return nil, errors.New("the live table holds no key")
	}
	return secret.New(key), nil
}
