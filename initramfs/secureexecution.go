package initramfs

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"hpcr/initramfs/seimage"
)

// SecureExecution is what the manifest says of se.img. Attestation and
// add-secret requests name an image by the four tags.
type SecureExecution struct {
	PLD      string          `json:"pld"`
	ALD      string          `json:"ald"`
	TLD      string          `json:"tld"`
	Tag      string          `json:"tag"`
	Flags    string          `json:"plaintextControlFlags"`
	HostKeys []HostKey       `json:"hostKeys"`
	Verified bool            `json:"hostKeysVerified"`
	Loader   map[string]Part `json:"loader"`
	Package  Package         `json:"loaderPackage"`
	// Initrd is the keyed initrd inside, which nobody can read.
	Initrd Part `json:"initrd"`
}

// HostKey is a machine that may run the image.
type HostKey struct {
	Document string `json:"document"` // base name
	PHKH     string `json:"phkh"`     // SHA-256 of the host key's coordinates
}

// readHostKeys is called before anything is fetched or built.
func (o BuildOptions) readHostKeys() ([]*seimage.HostKey, error) {
	if len(o.HostKeyDocuments) == 0 {
		return nil, nil
	}
	if o.Arch != "s390x" {
		return nil, fmt.Errorf("host key documents make a Secure Execution image, which only s390x machines can run: this is an image for %s", o.Arch)
	}
	keys, err := seimage.ReadHostKeys(o.HostKeyDocuments, o.HostKeyTrust)
	if path := (*fs.PathError)(nil); errors.As(err, &path) {
		return nil, fmt.Errorf("%w: %w", ErrEnvironment, err)
	}
	return keys, err
}

// seal replaces the keyed initrd among an image's files by se.img: so the keys
// never reach a file in clear, not even a temporary one.
func (m *Manifest) seal(ctx context.Context, o BuildOptions, src *Source, files map[string][]byte, keys []*seimage.HostKey) error {
	loader, pkg, err := fetchLoader(ctx, o, src)
	if err != nil {
		return err
	}
	initrd := files[InitrdFile]
	delete(files, InitrdFile)
	image, header, err := seimage.Build(seimage.Input{
		Kernel: files[KernelFile], Initrd: initrd, CommandLine: m.CommandLine, Loader: loader, HostKeys: keys,
	})
	if err != nil {
		return fmt.Errorf("%s: %w", SecureImageFile, err)
	}
	files[SecureImageFile] = image
	s := publicPart(header)
	for i, k := range keys {
		s.HostKeys[i].Document = filepath.Base(k.File)
	}
	s.Verified, s.Package, s.Initrd = !o.HostKeyTrust.None, pkg, Part{hashBytes(initrd), int64(len(initrd))}
	s.Loader = map[string]Part{
		stage3a: {hashBytes(loader.Stage3a), int64(len(loader.Stage3a))},
		stage3b: {hashBytes(loader.Stage3b), int64(len(loader.Stage3b))},
	}
	m.SecureExecution = s
	return nil
}

// publicPart is what anybody can read in an image.
func publicPart(h *seimage.Header) *SecureExecution {
	s := &SecureExecution{
		PLD: hex.EncodeToString(h.PLD[:]), ALD: hex.EncodeToString(h.ALD[:]), TLD: hex.EncodeToString(h.TLD[:]),
		Tag: hex.EncodeToString(h.Tag[:]), Flags: fmt.Sprintf("%#x", h.Flags),
	}
	for _, hash := range h.HostKeys {
		s.HostKeys = append(s.HostKeys, HostKey{PHKH: hex.EncodeToString(hash[:])})
	}
	return s
}

// verify compares se.img's public part with the manifest: tags, machines and
// flags. What is inside only those machines can read.
func (s *SecureExecution) verify(dir string) error {
	if exists(filepath.Join(dir, InitrdFile)) {
		return fmt.Errorf("%s is no part of a Secure Execution image: one with keys would open every contract", InitrdFile)
	}
	image, err := os.ReadFile(filepath.Join(dir, SecureImageFile))
	if err != nil {
		return err
	}
	h, err := seimage.ReadHeader(image)
	if err != nil {
		return fmt.Errorf("%s: %w", SecureImageFile, err)
	}
	if err := h.Check(); err != nil {
		return fmt.Errorf("%s: %w", SecureImageFile, err)
	}
	got := publicPart(h)
	keys := func(s *SecureExecution) (hashes []string) {
		for _, k := range s.HostKeys {
			hashes = append(hashes, k.PHKH)
		}
		return hashes
	}
	for _, c := range []struct {
		what string
		same bool
	}{
		{"PLD", got.PLD == s.PLD}, {"ALD", got.ALD == s.ALD}, {"TLD", got.TLD == s.TLD}, {"tag", got.Tag == s.Tag},
		{"flags", got.Flags == s.Flags}, {"host keys", slices.Equal(keys(got), keys(s))},
	} {
		if !c.same {
			err = errors.Join(err, fmt.Errorf("%s: the manifest's %s are others than its header's", SecureImageFile, c.what))
		}
	}
	return err
}

// The boot loaders of a Secure Execution image, in s390-tools' package.
const (
	stage3a = "stage3a.bin"
	stage3b = "stage3b_reloc.bin"
)

var loaderPackages = []Want{{Name: "s390-tools"}}

// fetchLoader takes the loaders from the first Debian release that has them, or
// as the lock says.
func fetchLoader(ctx context.Context, o BuildOptions, src *Source) (l seimage.Loader, p Package, err error) {
	deb, err := newLoaderDebian(o.Log)
	if err != nil {
		return l, p, err
	}
	var pkgs []Package
	if o.Locked {
		lock, err := ReadLock(src.Root)
		if err != nil {
			return l, p, err
		}
		pkgs, err = deb.FetchPinned(ctx, loaderPackages, lock.Loader)
		if err != nil {
			return l, p, err
		}
	} else if pkgs, err = deb.Fetch(ctx, "loader", loaderPackages); err != nil {
		return l, p, err
	}
	dir, err := deb.Unpack(ctx, pkgs[0])
	if err != nil {
		return l, p, err
	}
	dir = filepath.Join(dir, "usr/share/s390-tools/pvimg")
	if l.Stage3a, err = os.ReadFile(filepath.Join(dir, stage3a)); err != nil {
		return l, p, err
	}
	l.Stage3b, err = os.ReadFile(filepath.Join(dir, stage3b))
	return l, pkgs[0], err
}
