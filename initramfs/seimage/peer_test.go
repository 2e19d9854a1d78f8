package seimage

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hpcr/initramfs/seimage/softuv"
)

// peerInput is what testdata/pvimg.img.gz was made of, by s390-tools 2.41:
//
//	pvimg create -i kernel -r initrd -p parmfile -k scalar2.crt --no-verify
//	  --no-component-check --x-bootloader-directory . -o pvimg.img
//
// The host key is the one of scalar 2. Loaders and kernel are placeholders:
// nobody's code is in it.
func peerInput(t *testing.T) (Input, []byte) {
	t.Helper()
	in := Input{
		Kernel: bytes.Repeat([]byte("kernel. "), 600), Initrd: bytes.Repeat([]byte("initrd. "), 513), CommandLine: "quiet rdinit=/init",
		Loader: Loader{
			Stage3a: append(bytes.Repeat([]byte("3a"), 0x1000), make([]byte, stage3aArgs)...),
			Stage3b: append(bytes.Repeat([]byte("3b"), 0x800), make([]byte, stage3bArgs)...),
		},
	}
	var err error
	if in.HostKeys, err = ReadHostKeys([]string{"testdata/scalar2.crt"}, Trust{None: true}); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open("testdata/pvimg.img.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	zr, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	image, err := io.ReadAll(zr)
	if err != nil {
		t.Fatal(err)
	}
	return in, image
}

// What our tests call an Ultravisor opens IBM's own image: so it may judge ours.
func TestTheTestUltravisorOpensIBMsImage(t *testing.T) {
	in, image := peerInput(t)
	g, err := softuv.Unpack(image, scalar(t, 2))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(g.Kernel, in.Kernel) || !bytes.Equal(g.Initrd, in.Initrd) || g.CommandLine != in.CommandLine {
		t.Error("not what went in")
	}
	h, err := ReadHeader(image)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("[3793552fca07928670968b22a59e1d59b5c46d4080de4b4ba1c1a96113f55950]", fmt.Sprintf("%x", h.HostKeys)); diff != "" {
		t.Error(diff)
	}
}

// Our image of the same input is IBM's, byte for byte, but for what is random
// and what follows from it.
func TestLayoutIsIBMs(t *testing.T) {
	in, theirs := peerInput(t)
	ours, _, err := in.write()
	if err != nil {
		t.Fatal(err)
	}
	if len(ours) != len(theirs) {
		t.Fatalf("%d bytes, IBM's has %d", len(ours), len(theirs))
	}
	unpacked := map[*byte][]byte{}
	for _, image := range [][]byte{ours, theirs} {
		g, err := softuv.Unpack(image, scalar(t, 2))
		if err != nil {
			t.Fatal(err)
		}
		header := g.Memory[headerAddress:]
		for _, random := range [][2]int{
			{offIV, 12}, {offCustomer, 2 * coordSize}, {offPLD, 64}, {offTLD, 64},
			{fixedSize + len(Hash{}), slotSize - len(Hash{}) + secretSize + tagSize},
		} {
			clear(header[random[0]:][:random[1]])
		}
		ipib := g.Memory[binary.BigEndian.Uint64(image[metaAddress+20:]):]
		for i := range 4 {
			clear(ipib[136+24*i+2:][:6]) // the tweaks' random part
		}
		unpacked[&image[0]] = g.Memory
	}
	a, b := unpacked[&ours[0]], unpacked[&theirs[0]]
	for i := range a {
		if a[i] != b[i] {
			at := i &^ 15
			t.Fatalf("differs at %#x:\nours  %s\nIBM's %s", i, hex.EncodeToString(a[at:at+16]), hex.EncodeToString(b[at:at+16]))
		}
	}
}
