package initramfs

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hpcr/initramfs/seimage"
	"hpcr/initramfs/seimage/softuv"
)

// Attack: the manifest beside se.img speaks of other machines or of another
// image than the one that is there, or allows dumps. Claim: Verify names it.
func TestVerifyReadsTheHeaderOfASecureExecutionImage(t *testing.T) {
	_, document, err := softuv.Machine()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "host.crt")
	put(t, file, string(document))
	machines, err := seimage.ReadHostKeys([]string{file}, seimage.Trust{None: true})
	if err != nil {
		t.Fatal(err)
	}
	kernel := make([]byte, 0x11000)
	copy(kernel[0x10008:], "S390EP")
	image, header, err := seimage.Build(seimage.Input{
		Kernel: kernel, Initrd: []byte("initrd"), CommandLine: "quiet", HostKeys: machines,
		Loader: seimage.Loader{Stage3a: make([]byte, 64), Stage3b: make([]byte, 128)},
	})
	if err != nil {
		t.Fatal(err)
	}
	const flags = 0x14000 + 0x38 // in the header
	for name, tc := range map[string]struct {
		image    func(b []byte)
		manifest func(s *SecureExecution)
		initrd   bool
		want     string // "" = verifies
	}{
		"nothing":         {},
		"other tags":      {manifest: func(s *SecureExecution) { s.Tag = strings.Repeat("0", 32) }, want: "manifest's tag"},
		"another machine": {manifest: func(s *SecureExecution) { s.HostKeys = append(s.HostKeys, HostKey{PHKH: "f0"}) }, want: "manifest's host keys"},
		"dumps allowed":   {image: func(b []byte) { b[flags+4] |= 0x20 }, want: "dumps"},
		"backup keys":     {image: func(b []byte) { b[flags+7] |= 2 }, want: "manifest's flags"},
		"no header":       {image: func(b []byte) { b[0xc000] = 0 }, want: "not a Secure Execution image"},
		"an initrd too":   {initrd: true, want: "initrd is no part"},
	} {
		t.Run(name, func(t *testing.T) {
			m := &Manifest{Recipe: Recipe{CommandLine: "quiet"}, Parts: map[string]Part{}, SecureExecution: publicPart(header)}
			b := bytes.Clone(image)
			if tc.image != nil {
				tc.image(b)
			}
			if tc.manifest != nil {
				tc.manifest(m.SecureExecution)
			}
			files := map[string][]byte{KernelFile: kernel, ParmFile: []byte("quiet"), SecureImageFile: b}
			for name, data := range files {
				m.Parts[name] = Part{hashBytes(data), int64(len(data))}
			}
			var err error
			if m.Inputs, err = m.Recipe.hash(); err != nil {
				t.Fatal(err)
			}
			if tc.initrd {
				files[InitrdFile] = nil
			}
			dir := filepath.Join(t.TempDir(), "image")
			if err := replaceFolder(dir, files); err != nil {
				t.Fatal(err)
			}
			err = Verify(dir, m)
			if (tc.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
			if info, err := os.Stat(filepath.Join(dir, SecureImageFile)); err != nil || info.Mode().Perm() != 0o644 {
				t.Errorf("%v, %v: se.img is no secret", info, err)
			}
		})
	}
}
