package seimage

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
)

// Plaintext control flags, bit 0 being the leftmost. Of a guest made here the
// host may neither take a dump (bit 34) nor see components in clear (bit 35).
const (
	flagDump  = 1 << (63 - 34)
	flagClear = 1 << (63 - 35)
	flagsOurs = 1<<(63-56) | 1<<(63-57) | 1<<(63-58) // protected keys: (T)DEA, AES, ECC
)

// Offsets in the SE header, version 1; integers are big-endian.
const (
	offSize     = 0x0c
	offIV       = 0x10
	offSlots    = 0x20
	offSecret   = 0x28
	offPages    = 0x30
	offFlags    = 0x38
	offCustomer = 0x40
	offPLD      = 0xe0
	offALD      = 0x120
	offTLD      = 0x160
	fixedSize   = 0x1a0

	slotSize   = 80  // hash of the host key, wrapped key, tag
	secretSize = 128 // CCK, page key, PSW, flags, no optional items
	tagSize    = 16
	headerMax  = 2 * pageSize

	headerVersion = 0x100
)

// MaxHostKeys is how many machines fit into one header.
const MaxHostKeys = (headerMax - fixedSize - secretSize - tagSize) / slotSize

var headerMagic = []byte("IBMSecEx")

// Header is the public part of an SE header. PLD, ALD, TLD and Tag are what
// attestation and add-secret requests name an image by.
type Header struct {
	Flags         uint64
	Pages         uint64
	PLD, ALD, TLD [64]byte // SHA-512 of all encrypted pages, addresses, tweaks
	Tag           [tagSize]byte
	HostKeys      []Hash
}

func headerSize(slots int) int { return fixedSize + slots*slotSize + secretSize + tagSize }

// secrets are the keys of one image.
type secrets struct {
	header [32]byte // opens the header; wrapped in each key slot
	cck    [32]byte // customer communication key; nobody keeps it, so it opens nothing
	pages  [64]byte
}

func (s *secrets) random() {
	for _, b := range [][]byte{s.header[:], s.cck[:], s.pages[:]} {
		rand.Read(b) // never fails: the process ends instead
	}
}

func (s *secrets) wipe() { *s = secrets{} }

// seal builds the header for the machines with these host keys. entry is where
// the guest starts once it is unpacked.
func (h *Header) seal(s *secrets, hosts []*ecdh.PublicKey, entry uint64) ([]byte, error) {
	customer, err := ecdh.P521().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	b := make([]byte, fixedSize, headerSize(len(hosts)))
	copy(b, headerMagic)
	be := binary.BigEndian
	be.PutUint32(b[8:], headerVersion)
	be.PutUint32(b[offSize:], uint32(cap(b)))
	iv := b[offIV : offIV+12]
	rand.Read(iv)
	be.PutUint64(b[offSlots:], uint64(len(hosts)))
	be.PutUint64(b[offSecret:], secretSize)
	be.PutUint64(b[offPages:], h.Pages)
	be.PutUint64(b[offFlags:], h.Flags)
	point := coordinates(customer.PublicKey())
	copy(b[offCustomer:], point[:])
	copy(b[offPLD:], h.PLD[:])
	copy(b[offALD:], h.ALD[:])
	copy(b[offTLD:], h.TLD[:])
	for _, host := range hosts {
		slot, err := keySlot(customer, host, s.header[:])
		if err != nil {
			return nil, fmt.Errorf("key slot: %w", err)
		}
		b = append(b, slot...)
		h.HostKeys = append(h.HostKeys, HashOf(host))
	}

	plain := make([]byte, 0, secretSize)
	defer func() { clear(plain[:secretSize]) }()
	plain = append(plain, s.cck[:]...)
	plain = append(plain, s.pages[:]...)
	plain = be.AppendUint64(plain, pswMask)
	plain = be.AppendUint64(plain, entry)
	plain = append(plain, make([]byte, 16)...) // secret control flags, optional items, reserved
	block, err := aes.NewCipher(s.header[:])
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	b = aead.Seal(b, iv, plain, b)
	copy(h.Tag[:], b[len(b)-tagSize:])
	return b, nil
}

// Check refuses an image that lets the host look into its guest.
func (h *Header) Check() error {
	switch {
	case h.Flags&flagDump != 0:
		return errors.New("the host may take dumps of the guest")
	case h.Flags&flagClear != 0:
		return errors.New("its parts are not encrypted")
	}
	return nil
}

// ReadHeader reads the public part of an image's header. It proves nothing:
// only the machine can open the rest.
func ReadHeader(image []byte) (*Header, error) {
	if len(image) < metaAddress+metaSize || !bytes.Equal(image[metaAddress:][:8], metaMagic) {
		return nil, errors.New("not a Secure Execution image")
	}
	be := binary.BigEndian
	off := be.Uint64(image[metaAddress+8:])
	if off > uint64(len(image)) || uint64(len(image))-off < fixedSize {
		return nil, errors.New("the SE header lies outside of the image")
	}
	b := image[off:]
	size, slots := be.Uint32(b[offSize:]), be.Uint64(b[offSlots:])
	if !bytes.Equal(b[:8], headerMagic) || be.Uint32(b[8:]) != headerVersion ||
		slots > MaxHostKeys || uint64(size) < fixedSize+slots*slotSize+tagSize || size > headerMax || int(size) > len(b) {
		return nil, errors.New("the SE header is damaged or of another version")
	}
	h := &Header{Flags: be.Uint64(b[offFlags:]), Pages: be.Uint64(b[offPages:])}
	copy(h.PLD[:], b[offPLD:])
	copy(h.ALD[:], b[offALD:])
	copy(h.TLD[:], b[offTLD:])
	copy(h.Tag[:], b[size-tagSize:])
	for i := range slots {
		h.HostKeys = append(h.HostKeys, Hash(b[fixedSize+i*slotSize:][:len(Hash{})]))
	}
	return h, nil
}
