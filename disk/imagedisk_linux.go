package disk

import (
	"errors"
	"io"
	"os"
	"slices"

	"hpcr/agent/hpl"
	"hpcr/disk/images"
)

// ImagesSerial names the disk that the host means to carry images.
const ImagesSerial = "images"

// Attached says whether disks bear the serials of a scratch disk and of one
// with images. It reads no disk's content, but asks each for its serial, and so
// may hang with it.
func Attached(exclude []string) (scratch, withImages bool, err error) {
	disks, err := scan(exclude)
	has := func(serial string) bool {
		return slices.ContainsFunc(disks, func(d blockDevice) bool { return d.serial == serial })
	}
	return has(ScratchSerial), has(ImagesSerial), err
}

// Images is a disk with images, open for reading only.
type Images struct {
	*images.Layout
	f *os.File
}

var errNoBlob = errors.New("the disk has no such blob, or none so long")

// OpenImages opens the disk with the serial ImagesSerial. Its errors are
// *hpl.Error. It may hang with the disk.
func OpenImages(exclude []string) (*Images, error) {
	disks, err := scan(exclude)
	if err != nil {
		return nil, hpl.Wrap(err, "HPL02120E", "", "the guest cannot list its disks")
	}
	disks = slices.DeleteFunc(disks, func(d blockDevice) bool { return d.serial != ImagesSerial })
	switch len(disks) {
	case 0:
		return nil, hpl.New("HPL02122E", "", "the disk with the serial images is gone")
	case 1:
	default:
		return nil, hpl.New("HPL02121E", "", "more than one disk has the serial images: put all images on one")
	}
	f, err := os.Open(disks[0].node())
	if err != nil {
		return nil, hpl.Wrap(err, "HPL02120E", "", "the disk "+disks[0].name+" cannot be opened: check it on the host")
	}
	i, err := readImages(f, disks[0].size)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return i, nil
}

func readImages(f *os.File, size int64) (*Images, error) {
	l, err := images.Read(f, size)
	var wrong *images.Error
	switch {
	case errors.As(err, &wrong):
		return nil, hpl.Wrap(err, "HPL06004E", "", "the disk with the serial images is not usable, and was left as it is: "+wrong.Detail)
	case err != nil:
		return nil, hpl.Wrap(err, "HPL02120E", "", "the disk with the serial images cannot be read: check it on the host")
	}
	return &Images{l, f}, nil
}

// ReadBlob fills p from a blob's offset at. The bytes are the host's: the
// reader hashes what it uses.
func (i *Images) ReadBlob(key string, p []byte, at int64) error {
	s, ok := i.Blobs[key]
	if !ok || at < 0 || at > s.Size || int64(len(p)) > s.Size-at {
		return errNoBlob
	}
	n, err := i.f.ReadAt(p, s.Start+at)
	if n == len(p) {
		return nil
	}
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// Close closes the disk.
func (i *Images) Close() error { return i.f.Close() }
