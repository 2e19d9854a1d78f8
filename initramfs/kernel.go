package initramfs

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// kernelWant names the meta package of the kernel. 6.12 on both architectures:
// virtio's core, PCI and console are built in, so the guest can speak to its
// host before it has loaded a module, and s390x has uvdevice.
func kernelWant(arch string) (Want, error) {
	switch arch {
	case "amd64":
		return Want{"linux-image-cloud-amd64", backports}, nil
	case "s390x":
		return Want{"linux-image-s390x", backports}, nil
	}
	return Want{}, fmt.Errorf("architecture %q: want amd64 or s390x", arch)
}

// imageWants lists an image's packages: the kernel, the userland, and what
// runc is built with.
func imageWants(arch string) ([]Want, error) {
	kernel, err := kernelWant(arch)
	return slices.Concat([]Want{kernel}, userlandPackages, seccompPackages), err
}

// kernel is an unpacked kernel package with depmod's tables.
type kernel struct {
	release string
	image   []byte
	modules *moduleIndex
}

func openKernel(ctx context.Context, d *Debian, p Package) (*kernel, error) {
	src, err := d.Unpack(ctx, p)
	if err != nil {
		return nil, err
	}
	release := strings.TrimPrefix(p.Name, "linux-image-")
	// depmod writes beside the modules; it does so once, in a copy made of links.
	dir := filepath.Join(d.dir, "depmod", p.Name+"_"+p.SHA256[:16])
	err = once(dir, func(tmp string) error {
		mods := filepath.Join(tmp, "lib", "modules", release)
		if err := os.MkdirAll(mods, 0o755); err != nil {
			return err
		}
		from := filepath.Join(src, "lib", "modules", release)
		if !exists(from) {
			from = filepath.Join(src, "usr", "lib", "modules", release)
		}
		if err := os.Symlink(filepath.Join(from, "kernel"), filepath.Join(mods, "kernel")); err != nil {
			return err
		}
		for _, name := range []string{"modules.order", "modules.builtin", "modules.builtin.modinfo"} {
			data, err := os.ReadFile(filepath.Join(from, name))
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(mods, name), data, 0o644); err != nil {
				return err
			}
		}
		if err := Have("depmod"); err != nil {
			return err
		}
		_, err := output(ctx, "", nil, tool("depmod"), "-b", tmp, release)
		return err
	})
	if err != nil {
		return nil, err
	}
	index, err := readModuleIndex(filepath.Join(dir, "lib", "modules", release))
	if err != nil {
		return nil, err
	}
	image, err := os.ReadFile(filepath.Join(src, "boot", "vmlinuz-"+release))
	if err != nil {
		return nil, err
	}
	if d.arch == "amd64" {
		if image, err = extractVmlinux(image); err != nil {
			return nil, fmt.Errorf("kernel %s: %w", release, err)
		}
	}
	return &kernel{release, image, index}, nil
}

// extractVmlinux takes the ELF kernel out of an x86 bzImage: QEMU starts it by
// PVH, which saves the kernel's own decompression, a second under emulation.
// Layout: Documentation/arch/x86/boot.rst, setup_sects, payload_offset and
// payload_length. Sections are cut off; only segments are loaded.
func extractVmlinux(image []byte) ([]byte, error) {
	if len(image) < 0x250 || string(image[0x202:0x206]) != "HdrS" {
		return nil, errors.New("not a bzImage")
	}
	sects := int(image[0x1f1])
	if sects == 0 {
		sects = 4
	}
	off := uint64(sects+1)*512 + uint64(binary.LittleEndian.Uint32(image[0x248:]))
	length := uint64(binary.LittleEndian.Uint32(image[0x24c:]))
	if length < 8 || off+length > uint64(len(image)) {
		return nil, errors.New("bzImage: payload lies outside of the file")
	}
	payload := image[off : off+length-4] // the last four bytes are the unpacked size
	var r io.Reader
	switch {
	case bytes.HasPrefix(payload, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		zr, err := zstd.NewReader(bytes.NewReader(payload), zstd.WithDecoderMaxWindow(1<<31))
		if err != nil {
			return nil, err
		}
		defer zr.Close()
		r = zr
	case bytes.HasPrefix(payload, []byte{0x02, 0x21, 0x4c, 0x18}):
		r = lz4.NewReader(bytes.NewReader(payload))
	default:
		return nil, fmt.Errorf("bzImage: payload compressed in an unknown way (%x)", payload[:4])
	}
	var out bytes.Buffer
	if _, err := out.ReadFrom(io.LimitReader(r, 256<<20)); err != nil {
		return nil, err
	}
	return stripSections(out.Bytes())
}

// stripSections cuts an ELF file behind its last loaded byte.
func stripSections(b []byte) ([]byte, error) {
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	end, pvh := uint64(0), false
	for _, p := range f.Progs {
		end = max(end, p.Off+p.Filesz)
		pvh = pvh || p.Type == elf.PT_NOTE
	}
	if !pvh || f.Class != elf.ELFCLASS64 || end > uint64(len(b)) {
		return nil, errors.New("the kernel has no PVH entry note")
	}
	out := bytes.Clone(b[:end])
	clear(out[0x28:0x30]) // e_shoff
	clear(out[0x3c:0x40]) // e_shnum, e_shstrndx
	return out, nil
}
