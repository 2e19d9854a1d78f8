package seimage

import (
	"bytes"
	"crypto/aes"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/xts"

	"hpcr/initramfs/seimage/softuv"
)

// scalar is the host or customer key of a known answer.
func scalar(t *testing.T, d byte) *ecdh.PrivateKey {
	t.Helper()
	raw := make([]byte, 66)
	raw[65] = d
	key, err := ecdh.P521().NewPrivateKey(raw)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func hostKeyOf(key *ecdh.PrivateKey) *HostKey {
	return &HostKey{File: "test", Hash: HashOf(key.PublicKey()), public: key.PublicKey()}
}

// The answers were computed by another program, which IBM's pvattest accepts.
func TestKnownAnswersOfAKeySlot(t *testing.T) {
	host, customer := scalar(t, 2), scalar(t, 3)
	slot, err := keySlot(customer, host.PublicKey(), bytes.Repeat([]byte{0x17}, 32))
	if err != nil {
		t.Fatal(err)
	}
	want := "3793552fca07928670968b22a59e1d59b5c46d4080de4b4ba1c1a96113f55950" +
		"fd8bba915351fe71a677030a6c94f2f3fd3b9f296a1f327a60772d8c30e0240b" + "03a709a800e77b552b4ea95d1d31bc97"
	if diff := cmp.Diff(want, hex.EncodeToString(slot)); diff != "" {
		t.Error(diff)
	}
}

// x/crypto knows only sector numbers as tweaks; there both must agree.
func TestXTSAgreesWithAPeer(t *testing.T) {
	var key [64]byte
	rand.Read(key[:])
	ours, err := newPageCipher(&key)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := xts.NewCipher(aes.NewCipher, key[:])
	if err != nil {
		t.Fatal(err)
	}
	for _, sector := range []uint64{0, 1, 1<<63 + 12345, ^uint64(0)} {
		page := make([]byte, pageSize)
		rand.Read(page)
		want := make([]byte, pageSize)
		theirs.Encrypt(want, page, sector)
		var tweak [16]byte
		binary.LittleEndian.PutUint64(tweak[:], sector)
		ours.encrypt(page, tweak)
		if !bytes.Equal(page, want) {
			t.Errorf("sector %d differs", sector)
		}
	}
}

func testInput(hosts ...*HostKey) Input {
	kernel := bytes.Repeat([]byte("kernel. "), 0x3000)
	copy(kernel[0x10008:], "S390EP")
	binary.BigEndian.PutUint64(kernel[0x10430:], 4096)
	return Input{
		Kernel: kernel, Initrd: bytes.Repeat([]byte{0xab}, 3*pageSize), CommandLine: "quiet rdinit=/init",
		Loader: Loader{
			Stage3a: append(bytes.Repeat([]byte{0x3a}, 0x2b00), make([]byte, stage3aArgs)...),
			Stage3b: append(bytes.Repeat([]byte{0x3b}, 0x1500), make([]byte, stage3bArgs)...),
		},
		HostKeys: hosts,
	}
}

func newHost(t *testing.T) *ecdh.PrivateKey {
	t.Helper()
	key, err := ecdh.P521().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// Each machine that was named opens the image and finds what went in; no other
// does, and no byte of the input stands in it in clear.
func TestNamedMachinesOpenAnImage(t *testing.T) {
	one, two := newHost(t), newHost(t)
	in := testInput(hostKeyOf(one), hostKeyOf(two))
	image, header, err := Build(in)
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []*ecdh.PrivateKey{one, two} {
		g, err := softuv.Unpack(image, host)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(g.Kernel, in.Kernel) || !bytes.Equal(g.Initrd, in.Initrd) || g.CommandLine != in.CommandLine {
			t.Error("not what went in")
		}
		// Neither a dump by the host nor components in clear.
		if g.Flags != 0xe0 || header.Check() != nil {
			t.Errorf("plaintext control flags %#x", g.Flags)
		}
	}
	if _, err := softuv.Unpack(image, newHost(t)); err == nil {
		t.Error("a machine that was not named opened the image")
	}
	for name, text := range map[string][]byte{"kernel": in.Kernel[:16], "initrd": in.Initrd[:16], "command line": []byte(in.CommandLine), "stage3b": in.Loader.Stage3b[:16]} {
		if bytes.Contains(image, text) {
			t.Errorf("%s stands in clear", name)
		}
	}
	read, err := ReadHeader(image)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(header, read); diff != "" {
		t.Error(diff)
	}
	if want := []Hash{HashOf(one.PublicKey()), HashOf(two.PublicKey())}; !slices.Equal(read.HostKeys, want) {
		t.Errorf("key slots: %x", read.HostKeys)
	}
}

func TestAnImageOpenToItsHostIsRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		flags uint64
		want  string
	}{
		"ours":                    {0xe0, ""},
		"with HMAC, backup keys":  {0xf2, ""},
		"dumps":                   {0x200000e0, "dumps"},
		"no component encryption": {0x10000000, "not encrypted"},
	} {
		t.Run(name, func(t *testing.T) {
			err := (&Header{Flags: tc.flags}).Check()
			if (tc.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// Keys, tweaks and IV are new each time: equal pages of two images must not
// look equal.
func TestTwoImagesShareNothing(t *testing.T) {
	host := newHost(t)
	in := testInput(hostKeyOf(host))
	a, ha, err := Build(in)
	if err != nil {
		t.Fatal(err)
	}
	b, hb, err := Build(in)
	if err != nil {
		t.Fatal(err)
	}
	if ha.PLD == hb.PLD || ha.TLD == hb.TLD || ha.Tag == hb.Tag || bytes.Equal(a[0x15000:][:pageSize], b[0x15000:][:pageSize]) {
		t.Error("two images have keys or tweaks in common")
	}
	one, err := softuv.Unpack(a, host)
	if err != nil {
		t.Fatal(err)
	}
	two, err := softuv.Unpack(b, host)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{string(make([]byte, 32)): "zeros"}
	for _, g := range []*softuv.Guest{one, two} {
		for name, key := range g.Keys {
			if other, ok := seen[string(key)]; ok {
				t.Errorf("%s is the same as %s", name, other)
			}
			seen[string(key)] = name
		}
	}
	if ha.ALD != hb.ALD {
		t.Error("the layout differs")
	}
	if bytes.Equal(a[0x15000+len(in.Kernel):][:pageSize], a[0x15000+len(in.Kernel)+pageSize:][:pageSize]) {
		t.Error("equal pages of one image look equal")
	}
}

// Attack: the host changes the image. Claim: the Ultravisor notices, wherever
// it is, but for what is public and clear: the loader, which can only refuse.
func TestAFlippedBitIsFound(t *testing.T) {
	host := newHost(t)
	image, header, err := Build(testInput(hostKeyOf(host)))
	if err != nil {
		t.Fatal(err)
	}
	end := headerAddress + headerSize(1)
	ipib := int(binary.BigEndian.Uint64(image[metaAddress+20:]))
	for name, at := range map[string]int{
		"magic": headerAddress, "IV": headerAddress + offIV, "number of pages": headerAddress + offPages + 7,
		"control flags: dump": headerAddress + offFlags + 4, "customer key": headerAddress + offCustomer + 79,
		"PLD": headerAddress + offPLD, "ALD": headerAddress + offALD, "TLD": headerAddress + offTLD,
		"hash of the host key": headerAddress + fixedSize, "wrapped key": headerAddress + fixedSize + 40, "tag of the slot": headerAddress + fixedSize + 79,
		"encrypted part": end - tagSize - 1, "tag": end - 1,
		"first page": 0x15000, "a page": 0x15000 + int(header.Pages/2)*pageSize + 77, "last page": ipib - 1,
		"a tweak": ipib + 136 + 3, "an address": ipib + 136 + 8 + 6,
	} {
		t.Run(name, func(t *testing.T) {
			bad := bytes.Clone(image)
			bad[at] ^= 0x20
			if _, err := softuv.Unpack(bad, host); err == nil {
				t.Error("not noticed")
			}
		})
	}
}

func TestBuildRefusesWhatWouldNotBoot(t *testing.T) {
	host := hostKeyOf(newHost(t))
	for name, tc := range map[string]struct {
		change func(*Input)
		want   string
	}{
		"an ELF kernel":                    {func(in *Input) { copy(in.Kernel, "\x7fELF") }, "ELF"},
		"a kernel of amd64":                {func(in *Input) { in.Kernel[0x10008] = 0 }, "no raw s390x image"},
		"a short kernel":                   {func(in *Input) { in.Kernel = in.Kernel[:0x1000] }, "no raw s390x image"},
		"a long command line":              {func(in *Input) { in.CommandLine = strings.Repeat("a", 4096) }, "4097 bytes"},
		"a long one for an old kernel":     {func(in *Input) { clear(in.Kernel[0x10430:0x10438]); in.CommandLine = strings.Repeat("a", 896) }, "takes 896"},
		"NUL in the command line":          {func(in *Input) { in.CommandLine = "a\x00b" }, "NUL"},
		"no initrd":                        {func(in *Input) { in.Initrd = nil }, "empty"},
		"another loader":                   {func(in *Input) { in.Loader.Stage3b[len(in.Loader.Stage3b)-1] = 1 }, "stage3b"},
		"a loader that reaches the header": {func(in *Input) { in.Loader.Stage3a = make([]byte, 0x4001) }, "stage3a"},
		"no machine":                       {func(in *Input) { in.HostKeys = nil }, "1 to 95"},
		"too many machines":                {func(in *Input) { in.HostKeys = slices.Repeat([]*HostKey{host}, 96) }, "1 to 95"},
	} {
		t.Run(name, func(t *testing.T) {
			in := testInput(host)
			tc.change(&in)
			if _, _, err := Build(in); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
	// The limits themselves are within.
	in := testInput(slices.Repeat([]*HostKey{host}, 95)...)
	in.CommandLine = strings.Repeat("a", 4095)
	if _, _, err := Build(in); err != nil {
		t.Error(err)
	}
}

// FuzzReadHeader: an image, however damaged, gives a header or an error: no
// panic, and no more key slots than fit.
func FuzzReadHeader(f *testing.F) {
	raw := make([]byte, headerAddress+2*pageSize)
	copy(raw[metaAddress:], metaMagic)
	binary.BigEndian.PutUint64(raw[metaAddress+8:], headerAddress)
	copy(raw[headerAddress:], headerMagic)
	binary.BigEndian.PutUint32(raw[headerAddress+8:], headerVersion)
	binary.BigEndian.PutUint32(raw[headerAddress+offSize:], uint32(headerSize(1)))
	raw[headerAddress+offSlots+7] = 1
	if _, err := ReadHeader(raw); err != nil {
		f.Fatal(err)
	}
	// The mutator sees header and pointer; the rest of an image is too long for it.
	f.Add(uint64(headerAddress), raw[headerAddress:][:headerSize(1)])
	f.Add(^uint64(0), []byte{})
	f.Fuzz(func(t *testing.T, at uint64, header []byte) {
		image := bytes.Clone(raw[:headerAddress])
		binary.BigEndian.PutUint64(image[metaAddress+8:], at)
		h, err := ReadHeader(append(image, header...))
		if err == nil && len(h.HostKeys) > MaxHostKeys {
			t.Error("too many key slots")
		}
	})
}
