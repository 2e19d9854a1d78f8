package seimage

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// Addresses of an image, which are also its file offsets. The header's is the
// first at which older tools look for it.
const (
	pageSize      = 4096
	metaAddress   = 0xc000 // where stage3a has its bss: overwritten once it runs
	loaderAddress = 0x10000
	loaderEntry   = 0x11000
	headerAddress = 0x14000
	kernelEntry   = 0x10000 // where stage3b moves the kernel to

	metaSize = 28
	pswMask  = 0x180000000 // 64-bit addressing
	shortPSW = 0x0008000000000000

	stage3aArgs = 24 // header: offset, size; IPIB: offset
	stage3bArgs = 64 // address and size of kernel, command line, initrd; PSW
)

var metaMagic = []byte("SeImgLnx")

// Kinds of components, the first two bytes of their tweaks.
const (
	kindKernel      = 40
	kindInitrd      = 50
	kindCommandLine = 60
	kindStage3b     = 70
)

// Loader is s390-tools' pair of boot loaders: stage3a.bin and
// stage3b_reloc.bin. Both end in room for their arguments.
type Loader struct{ Stage3a, Stage3b []byte }

// Input is what goes into an image. The caller keeps, and wipes, all of it.
type Input struct {
	Kernel      []byte // raw s390x image, not ELF
	Initrd      []byte
	CommandLine string
	Loader      Loader
	HostKeys    []*HostKey
}

// component is one encrypted part.
type component struct {
	address, size uint64 // size: whole pages
	prefix        [8]byte
}

// writer collects an image and its digests.
type writer struct {
	image    []byte // up to the next free address
	cipher   *pageCipher
	ald, tld []byte // of each page
	parts    []component
}

// Build writes an image that only the machines with these host keys can open.
func Build(in Input) ([]byte, *Header, error) {
	if err := in.check(); err != nil {
		return nil, nil, err
	}
	return in.write()
}

func (in *Input) write() ([]byte, *Header, error) {
	var keys secrets
	defer keys.wipe()
	keys.random()
	cipher, err := newPageCipher(&keys.pages)
	if err != nil {
		return nil, nil, err
	}
	line := append([]byte(in.CommandLine), 0)
	stage3b := bytes.Clone(in.Loader.Stage3b)

	first := headerAddress + roundUp(headerSize(len(in.HostKeys)))
	total := first + roundUp(len(in.Kernel)) + roundUp(len(in.Initrd)) + roundUp(len(line)) + roundUp(len(stage3b)) + pageSize
	w := &writer{image: make([]byte, first, total), cipher: cipher}
	kernel := w.add(kindKernel, in.Kernel)
	initrd := w.add(kindInitrd, in.Initrd)
	cmdline := w.add(kindCommandLine, line)
	fill(stage3b, kernel, uint64(len(in.Kernel)), cmdline, uint64(len(line)), initrd, uint64(len(in.Initrd)), pswMask, kernelEntry)
	entry := w.add(kindStage3b, stage3b)

	h := &Header{Flags: flagsOurs, Pages: uint64(len(w.image)-first) / pageSize}
	h.PLD, h.ALD, h.TLD = sha512.Sum512(w.image[first:]), sha512.Sum512(w.ald), sha512.Sum512(w.tld)
	var hosts []*ecdh.PublicKey
	for _, k := range in.HostKeys {
		hosts = append(hosts, k.public)
	}
	header, err := h.seal(&keys, hosts, entry)
	if err != nil {
		return nil, nil, err
	}
	copy(w.image[headerAddress:], header)

	ipib := uint64(len(w.image))
	w.image = append(w.image, parameterBlock(w.parts, len(header))...)
	stage3a := w.image[loaderAddress:][:len(in.Loader.Stage3a)]
	copy(stage3a, in.Loader.Stage3a)
	args := loaderAddress + uint64(len(stage3a)) - stage3aArgs // offsets count from here
	fill(stage3a, headerAddress-args, uint64(len(header)), ipib-args)

	be := binary.BigEndian
	be.PutUint64(w.image, shortPSW|pswMask|loaderEntry)
	meta := w.image[metaAddress:]
	copy(meta, metaMagic)
	be.PutUint64(meta[8:], headerAddress)
	be.PutUint32(meta[16:], 1) // version
	be.PutUint64(meta[20:], ipib)
	return w.image, h, nil
}

// check refuses what would build and not boot.
func (in *Input) check() error {
	const magicAt, maxLineAt = 0x10008, 0x10430
	switch {
	case bytes.HasPrefix(in.Kernel, []byte("\x7fELF")):
		return errors.New("the kernel is an ELF file; a Secure Execution image takes the raw s390x image")
	case len(in.Kernel) < maxLineAt+8 || string(in.Kernel[magicAt:magicAt+6]) != "S390EP":
		return errors.New("the kernel is no raw s390x image")
	case len(in.Initrd) == 0:
		return errors.New("the initrd is empty")
	case strings.Contains(in.CommandLine, "\x00"):
		return errors.New("the command line holds a NUL")
	}
	limit := binary.BigEndian.Uint64(in.Kernel[maxLineAt:])
	if limit == 0 {
		limit = 896 // kernels before 5.13 do not say
	}
	if n := uint64(len(in.CommandLine)) + 1; n > limit {
		return fmt.Errorf("the command line has %d bytes with its NUL, the kernel takes %d", n, limit)
	}
	for name, l := range map[string]struct {
		code      []byte
		args, max int
	}{
		"stage3a": {in.Loader.Stage3a, stage3aArgs, headerAddress - loaderAddress},
		"stage3b": {in.Loader.Stage3b, stage3bArgs, 1 << 20},
	} {
		if len(l.code) <= l.args || len(l.code) > l.max || len(bytes.Trim(l.code[len(l.code)-l.args:], "\x00")) > 0 {
			return fmt.Errorf("%s is not the loader that this writer knows", name)
		}
	}
	if n := len(in.HostKeys); n == 0 || n > MaxHostKeys {
		return fmt.Errorf("%d host keys; an image takes 1 to %d", n, MaxHostKeys)
	}
	return nil
}

// add encrypts data, padded to whole pages, at the next address.
func (w *writer) add(kind uint16, data []byte) (address uint64) {
	c := component{address: uint64(len(w.image)), size: uint64(roundUp(len(data)))}
	binary.BigEndian.PutUint16(c.prefix[:], kind)
	rand.Read(c.prefix[2:])
	w.image = append(w.image, data...)
	w.image = append(w.image, make([]byte, int(c.size)-len(data))...)
	for off := uint64(0); off < c.size; off += pageSize {
		var tweak [16]byte
		copy(tweak[:], c.prefix[:])
		binary.BigEndian.PutUint64(tweak[8:], off)
		w.cipher.encrypt(w.image[c.address+off:][:pageSize], tweak)
		w.ald = binary.BigEndian.AppendUint64(w.ald, c.address+off)
		w.tld = append(w.tld, tweak[:]...)
	}
	w.parts = append(w.parts, c)
	return c.address
}

// parameterBlock is the IPIB (struct ipl_parameter_block with a PV part in
// Linux' asm/ipl.h): what diagnose 308 hands to the Ultravisor.
func parameterBlock(parts []component, headerLen int) []byte {
	const list, pv = 8, 128
	be := binary.BigEndian
	b := make([]byte, list+pv)
	be.PutUint32(b, uint32(list+pv+24*len(parts)))
	b[7] = 1 // version
	p := b[list:]
	be.PutUint32(p, uint32(pv+24*len(parts)))
	p[4] = 5   // protected virtualization
	p[103] = 1 // version
	be.PutUint32(p[108:], uint32(len(parts)))
	be.PutUint64(p[112:], headerAddress)
	be.PutUint64(p[120:], uint64(headerLen))
	for _, c := range parts {
		b = append(b, c.prefix[:]...)
		b = be.AppendUint64(b, c.address)
		b = be.AppendUint64(b, c.size)
	}
	return b
}

// fill writes a loader's arguments, which are its last bytes.
func fill(loader []byte, args ...uint64) {
	tail := loader[len(loader)-8*len(args):]
	for i, v := range args {
		binary.BigEndian.PutUint64(tail[8*i:], v)
	}
}

func roundUp(n int) int { return (n + pageSize - 1) &^ (pageSize - 1) }
