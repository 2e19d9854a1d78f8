package initramfs

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/klauspost/compress/zstd"
)

// decompress gives the archive of a base: one zstd frame and zeros up to the
// next 512 bytes, as compress wrote it.
func decompress(base []byte) ([]byte, error) {
	// Twice the largest image so far: a base of somebody else may be a bomb.
	zr, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(8<<20), zstd.WithDecoderMaxMemory(128<<20))
	if err != nil {
		return nil, err
	}
	defer zr.Close()
	// A frame may end in zeros itself: give them back one by one.
	end := len(bytes.TrimRight(base, "\x00"))
	if end > 0 && len(base)-end < 512 {
		for ; end <= len(base); end++ {
			raw, err := zr.DecodeAll(base[:end], nil)
			if err == nil {
				return raw, nil
			}
			if errors.Is(err, zstd.ErrDecoderSizeExceeded) {
				return nil, err
			}
		}
	}
	return nil, errors.New("the base is no zstd frame padded to 512 bytes")
}

// readTree reads an archive that Tree.Write made. Whatever else a newc reader
// might take is refused: the tree, written again, must give the same bytes, so
// that the kernel cannot see other files in it than we do.
func readTree(archive []byte) (*Tree, error) {
	t := NewTree()
	owners := map[uint64]*node{} // by inode number
	var mtime uint64
	for rest := archive; ; {
		if len(rest) < 110 || string(rest[:6]) != "070701" {
			return nil, errors.New("archive: no entry where one must be")
		}
		var field [13]uint64
		for i := range field {
			n, err := strconv.ParseUint(string(rest[6+8*i:14+8*i]), 16, 32)
			if err != nil {
				return nil, fmt.Errorf("archive: header: %w", err)
			}
			field[i] = n
		}
		ino, mode, nlink, size, namesize := field[0], uint32(field[1]), field[4], field[6], field[11]
		dataAt := align4(110 + namesize)
		if namesize == 0 || dataAt+align4(size) > uint64(len(rest)) {
			return nil, errors.New("archive: entry reaches past its end")
		}
		name := string(rest[110 : 110+namesize-1])
		data := rest[dataAt : dataAt+size]
		rest = rest[dataAt+align4(size):]
		if name == "TRAILER!!!" {
			break
		}
		mtime = field[5]
		n := &node{mode: mode, data: data}
		if first := owners[ino]; first != nil && mode&typeMask == typeFile {
			if n.target = first; nlink < 2 {
				return nil, errors.New("archive: one inode, several files")
			}
			if n.data = nil; len(data) > 0 {
				first.data = data // the last name has it
			}
		} else {
			owners[ino] = n
		}
		if name != clean(name) {
			return nil, errors.New("archive: a name that is no plain path")
		}
		t.nodes[name] = n
	}
	var again bytes.Buffer
	if err := t.Write(&again, time.Unix(int64(mtime), 0)); err != nil {
		return nil, err
	}
	if !bytes.Equal(again.Bytes(), archive) {
		return nil, errors.New("archive: not as hpcrctl writes one")
	}
	return t, nil
}

func align4(n uint64) uint64 { return (n + 3) &^ 3 }

// file gives the content of a regular file, under any of its names.
func (t *Tree) file(name string) ([]byte, error) {
	n := t.nodes[name]
	if n == nil || n.mode&typeMask != typeFile {
		return nil, fmt.Errorf("no file %q", name)
	}
	return owner(n).data, nil
}
