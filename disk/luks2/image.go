package luks2

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"

	"hpcr/agent/secret"
)

// Kind is what a device's first bytes are.
type Kind string

const (
	None        Kind = "none"         // no trace of LUKS; says nothing about what else it may be
	Ours        Kind = "ours"         // our profile, seal not yet checked
	ForeignLUKS Kind = "foreign-luks" // accepted by the gate, made by somebody else
	Interrupted Kind = "interrupted"  // the format marker, or our secondary header alone
	Refused     Kind = "refused"      // LUKS that the gate does not let through
)

// Image is a volume's header copies and key material, read once.
type Image struct {
	kind   Kind
	reason error // of Refused
	marked bool  // Interrupted by the marker: there is no volume yet
	fresh  bool  // both copies are valid and say the same

	candidates []*header // ours: what may open, newest first
	foreign    *header   // LUKS2
	luks1      *luks1
	areas      map[region][]byte
}

// Kind is what was found.
func (im *Image) Kind() Kind { return im.kind }

// Reason says why a Refused image was refused, without a byte of it.
func (im *Image) Reason() error { return im.reason }

// Resumable says that creation was cut off before there was a volume:
// formatting anew loses nothing.
func (im *Image) Resumable() bool { return im.marked }

// Generation is that of the newest header of an image of ours: the host's
// word until Unlock has checked the seal.
func (im *Image) Generation() uint64 {
	if len(im.candidates) == 0 {
		return 0
	}
	return im.candidates[0].meta.seal.generation
}

// Profile is the version of our profile that the header has; 0 = not ours.
func (im *Image) Profile() int {
	if len(im.candidates) == 0 {
		return 0
	}
	return profileVersion
}

// Fresh: both header copies of a LUKS2 volume hold, and say the same.
func (im *Image) Fresh() bool { return im.fresh }

// Opens says whether a guest opens this foreign volume with the passphrase:
// not if a key slot's owner asked not to use it, nor if the key says that the
// volume was sealed (ErrSeal). It finds the key, and forgets it.
func (im *Image) Opens(passphrase *secret.Secret) error {
	var h header
	switch {
	case im.luks1 != nil:
		h.meta = im.luks1.meta
	case im.foreign != nil:
		meta := *im.foreign.meta
		meta.slots = slices.DeleteFunc(slices.Clone(meta.slots), keyslot.unused)
		h.meta = &meta
	default:
		return fmt.Errorf("no volume of another make: %s", im.kind)
	}
	key, err := openSlot(&h, im.areas, passphrase.Bytes())
	if err != nil {
		return err
	}
	defer key.Wipe()
	if Marked(key.Bytes()) {
		return ErrSeal
	}
	return nil
}

// MaxMemoryKiB is what the dearest key slot needs.
func (im *Image) MaxMemoryKiB() uint32 {
	var most uint32
	headers := im.candidates
	if im.foreign != nil {
		headers = []*header{im.foreign}
	}
	for _, h := range headers {
		for _, s := range h.meta.slots {
			most = max(most, s.kdf.cost.MemoryKiB)
		}
	}
	return most
}

// marker stands where the primary header will be while a volume is being
// created. A host that writes it achieves what it can by blanking the disk.
var marker = func() []byte {
	sector := make([]byte, 512)
	copy(sector, "hpcr: volume creation in progress, format 1\n")
	return sector
}()

// Read takes in the headers of a device of size bytes. Its error is an I/O
// error; what the gate thinks is in the Kind.
func Read(r io.ReaderAt, size int64) (*Image, error) {
	im := &Image{kind: None, areas: map[region][]byte{}}
	if size < dataOffset+4096 {
		return im, nil
	}
	head := make([]byte, 2*headerSize)
	if _, err := r.ReadAt(head, 0); err != nil {
		return nil, fmt.Errorf("read header: %w", err)
	}
	wanted := im.judge(head, size)
	for _, a := range wanted {
		if _, double := im.areas[a]; double {
			continue
		}
		b := make([]byte, a.size)
		if _, err := r.ReadAt(b, a.offset); err != nil {
			return nil, fmt.Errorf("read key slot: %w", err)
		}
		im.areas[a] = b
	}
	return im, nil
}

func (im *Image) refuse(err error) []region {
	im.kind, im.reason = Refused, err
	return nil
}

// judge decides the kind and returns the areas to read.
func (im *Image) judge(head []byte, size int64) []region {
	first, second := head[:headerSize], head[headerSize:]
	if isLUKS1(first) {
		l, err := parseLUKS1(first, size)
		if err != nil {
			return im.refuse(err)
		}
		im.kind, im.luks1 = ForeignLUKS, l
		return l.regions()
	}
	if bytes.HasPrefix(first, marker) && zero(first[len(marker):]) {
		im.kind, im.marked = Interrupted, true
		return nil
	}
	p, perr := parseHeader(first, false, size)
	s, serr := parseHeader(second, true, size)
	for _, err := range []error{perr, serr} {
		if err != nil && !errors.Is(err, errTorn) {
			return im.refuse(err)
		}
	}
	switch {
	case p == nil && s == nil:
		if bytes.HasPrefix(first, magicPrimary) || bytes.HasPrefix(second, magicSecondary) {
			return im.refuse(errors.New("both copies of the LUKS header are damaged"))
		}
		return nil
	case p == nil && s.meta.seal == nil && !bytes.HasPrefix(first, magicPrimary):
		return im.refuse(errors.New("the primary LUKS header is missing"))
	case p != nil && s != nil && (p.meta.seal == nil) != (s.meta.seal == nil):
		return im.refuse(errors.New("the two LUKS headers are of different makes"))
	case p != nil && p.meta.seal == nil || p == nil && s.meta.seal == nil:
		// As cryptsetup does: the newer copy, or the one that holds.
		im.kind, im.foreign = ForeignLUKS, p
		if p == nil || s != nil && s.seq > p.seq {
			im.foreign = s
		}
		im.fresh = p != nil && s != nil && p.seq == s.seq && p.uuid == s.uuid && bytes.Equal(p.meta.encode(), s.meta.encode())
		return im.foreign.regions()
	}
	im.kind = Ours
	if p == nil && zero(first) {
		im.kind = Interrupted
	}
	for _, h := range []*header{p, s} {
		if h != nil {
			im.candidates = append(im.candidates, h)
		}
	}
	if len(im.candidates) == 2 && bytes.Equal(p.encodeMeta(), s.encodeMeta()) {
		im.candidates, im.fresh = im.candidates[:1], true
	}
	slices.SortStableFunc(im.candidates, func(a, b *header) int {
		return int(min(max(int64(b.seq-a.seq), -1), 1))
	})
	var want []region
	for _, h := range im.candidates {
		want = append(want, h.regions()...)
	}
	return want
}

// encodeMeta is all of a copy but salt, seal's own value included.
func (h *header) encodeMeta() []byte {
	return append(h.normal(), h.meta.encode()...)
}

func (h *header) regions() []region {
	var all []region
	for _, s := range h.meta.slots {
		all = append(all, s.area)
	}
	return all
}

func zero(b []byte) bool { return bytes.Count(b, []byte{0}) == len(b) }
