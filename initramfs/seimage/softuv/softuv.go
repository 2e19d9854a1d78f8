// Package softuv does with a Secure Execution image what a machine's
// Ultravisor does: it unwraps the key slot of a host key, opens the header,
// proves every page and decrypts it. For tests only: real host keys never
// leave their machine.
//
// It is written from the layout, not from the writer, and shares no code with
// it, so that a mistake in one is not repeated in the other.
package softuv

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
)

// Guest is an unpacked image.
type Guest struct {
	Memory      []byte // the image with its pages in clear
	Entry       uint64 // where the guest starts: stage3b
	Flags       uint64 // plaintext control flags
	Kernel      []byte
	Initrd      []byte
	CommandLine string
	Keys        map[string][]byte // what the image was sealed with
}

var be = binary.BigEndian

// Unpack opens an image with a machine's host key.
func Unpack(image []byte, host *ecdh.PrivateKey) (*Guest, error) {
	if len(image) < 0x15000 || string(image[0xc000:0xc008]) != "SeImgLnx" || be.Uint32(image[0xc010:]) != 1 {
		return nil, errors.New("no image metadata")
	}
	header, err := slice(image, be.Uint64(image[0xc008:]), 0x1a0)
	if err != nil {
		return nil, err
	}
	size := uint64(be.Uint32(header[0x0c:]))
	if string(header[:8]) != "IBMSecEx" || be.Uint32(header[8:]) != 0x100 {
		return nil, errors.New("no SE header")
	}
	if header, err = slice(image, be.Uint64(image[0xc008:]), size); err != nil {
		return nil, err
	}
	slots, secret := be.Uint64(header[0x20:]), be.Uint64(header[0x28:])
	if slots > 200 || secret != 128 || size != 0x1a0+80*slots+secret+16 {
		return nil, errors.New("SE header: sizes do not add up")
	}

	key, err := unwrap(header, slots, host)
	if err != nil {
		return nil, err
	}
	aad, sealed := header[:size-secret-16], header[size-secret-16:]
	plain, err := open(key, header[0x10:0x1c], sealed, aad)
	if err != nil {
		return nil, errors.New("SE header: tag mismatch")
	}
	mask, entry := be.Uint64(plain[0x60:]), be.Uint64(plain[0x68:])
	if mask != 0x180000000 {
		return nil, fmt.Errorf("PSW mask %#x", mask)
	}
	g := &Guest{Memory: bytes.Clone(image), Entry: entry, Flags: be.Uint64(header[0x38:])}
	g.Keys = map[string][]byte{
		"header": key, "CCK": plain[:32], "pages": plain[32:64], "tweaks": plain[64:96], "IV": header[0x10:0x1c], "customer": header[0x40:0xe0],
	}
	parts, err := parameterBlock(image)
	if err != nil {
		return nil, err
	}
	if err := g.decrypt(parts, plain[32:96], header); err != nil {
		return nil, err
	}
	return g, g.arguments(parts)
}

// Start is the memory image with its initial PSW at the entry, as the guest
// finds it: a machine without Secure Execution can start it.
func (g *Guest) Start() []byte {
	b := bytes.Clone(g.Memory)
	be.PutUint64(b, 0x0008000180000000|g.Entry)
	return b
}

// unwrap finds the slot of this host key.
func unwrap(header []byte, slots uint64, host *ecdh.PrivateKey) ([]byte, error) {
	point := host.PublicKey().Bytes()[1:]
	padded := make([]byte, 160)
	copy(padded[14:80], point[:66])
	copy(padded[94:], point[66:])
	hash := sha256.Sum256(padded)

	customer, err := ecdh.P521().NewPublicKey(bytes.Join([][]byte{{4}, header[0x40+14 : 0x40+80], header[0x40+94 : 0x40+160]}, nil))
	if err != nil {
		return nil, fmt.Errorf("customer key: %w", err)
	}
	for i := range slots {
		slot := header[0x1a0+80*i:][:80]
		if !bytes.Equal(slot[:32], hash[:]) {
			continue
		}
		z, err := host.ECDH(customer)
		if err != nil {
			return nil, err
		}
		kek := sha256.Sum256(append(z, 0, 0, 0, 1))
		return open(kek[:], make([]byte, 12), slot[32:], nil)
	}
	return nil, errors.New("no key slot for this host key")
}

func open(key, iv, sealed, aad []byte) ([]byte, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	return gcm.Open(nil, iv, sealed, aad)
}

type part struct {
	tweak         [8]byte
	address, size uint64
}

// parameterBlock reads the list of components.
func parameterBlock(image []byte) ([]part, error) {
	off := be.Uint64(image[0xc014:])
	b, err := slice(image, off, 136)
	if err != nil {
		return nil, err
	}
	n := uint64(be.Uint32(b[8+108:]))
	if n > 16 || uint64(be.Uint32(b)) != 136+24*n || uint64(be.Uint32(b[8:])) != 128+24*n || b[7] != 1 || b[12] != 5 || b[8+103] != 1 {
		return nil, errors.New("IPIB is damaged")
	}
	if b, err = slice(image, off, 136+24*n); err != nil {
		return nil, err
	}
	var parts []part
	for b = b[136:]; len(b) > 0; b = b[24:] {
		parts = append(parts, part{[8]byte(b[:8]), be.Uint64(b[8:]), be.Uint64(b[16:])})
	}
	return parts, nil
}

// decrypt proves and opens all pages.
func (g *Guest) decrypt(parts []part, keys, header []byte) error {
	data, err := aes.NewCipher(keys[:32])
	if err != nil {
		return err
	}
	tweaks, err := aes.NewCipher(keys[32:])
	if err != nil {
		return err
	}
	pld, ald, tld := sha512.New(), sha512.New(), sha512.New()
	pages := uint64(0)
	for _, p := range parts {
		b, err := slice(g.Memory, p.address, p.size)
		if err != nil || p.address%4096 != 0 || p.size%4096 != 0 {
			return fmt.Errorf("component at %#x: %w", p.address, errors.Join(err, errors.New("no whole pages")))
		}
		for off := uint64(0); off < p.size; off += 4096 {
			page := b[off:][:4096]
			tweak := be.AppendUint64(p.tweak[:8:8], off)
			pld.Write(page)
			ald.Write(be.AppendUint64(nil, p.address+off))
			tld.Write(tweak)
			pages++
			tweaks.Encrypt(tweak, tweak)
			for ; len(page) > 0; page = page[16:] {
				for i := range tweak {
					page[i] ^= tweak[i]
				}
				data.Decrypt(page[:16], page[:16])
				carry := byte(0)
				for i := range tweak {
					page[i] ^= tweak[i]
					tweak[i], carry = tweak[i]<<1|carry, tweak[i]>>7
				}
				tweak[0] ^= carry * 0x87
			}
		}
	}
	for name, ok := range map[string]bool{
		"PLD": bytes.Equal(pld.Sum(nil), header[0xe0:0x120]), "ALD": bytes.Equal(ald.Sum(nil), header[0x120:0x160]),
		"TLD": bytes.Equal(tld.Sum(nil), header[0x160:0x1a0]), "number of pages": pages == be.Uint64(header[0x30:]),
	} {
		if !ok {
			return errors.New(name + " mismatch")
		}
	}
	return nil
}

// arguments follows stage3b's: where kernel, command line and initrd are.
func (g *Guest) arguments(parts []part) error {
	var args []byte
	for _, p := range parts {
		if p.address == g.Entry {
			// Before the padding; the last of them is 0x10000, which ends in two zeros.
			args = bytes.TrimRight(g.Memory[p.address:p.address+p.size], "\x00")
			args = args[:min(len(args)+2, cap(args))]
		}
	}
	if len(args) < 64 {
		return errors.New("no stage3b at the entry")
	}
	args = args[len(args)-64:]
	if be.Uint64(args[48:]) != 0x180000000 || be.Uint64(args[56:]) != 0x10000 {
		return errors.New("stage3b does not start the kernel")
	}
	var out [3][]byte
	for i := range out {
		var err error
		if out[i], err = slice(g.Memory, be.Uint64(args[16*i:]), be.Uint64(args[16*i+8:])); err != nil {
			return err
		}
	}
	line, ok := bytes.CutSuffix(out[1], []byte{0})
	if !ok {
		return errors.New("the command line does not end in NUL")
	}
	g.Kernel, g.CommandLine, g.Initrd = out[0], string(line), out[2]
	return nil
}

func slice(b []byte, off, n uint64) ([]byte, error) {
	if off > uint64(len(b)) || n > uint64(len(b))-off {
		return nil, fmt.Errorf("%d bytes at %#x lie outside of the image", n, off)
	}
	return b[off : off+n], nil
}
