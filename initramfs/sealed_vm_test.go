//go:build vm

package initramfs

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hpcr/initramfs/seimage"
	"hpcr/initramfs/seimage/softuv"
)

// Attack: somebody reads the builder's files during the build or later: the
// image folder, what lies beside it for a moment, the cache. Claim: the private
// keys are in none; the machine that was named finds them, in the same initrd
// that an image without host keys has.
func TestImageIsWholeAndSealed(t *testing.T) {
	if !slices.Contains(archs(), "s390x") {
		t.Skip("s390x only")
	}
	keys := handMade(t)
	host, document, err := softuv.Machine()
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "image")
	needles := keyBytes(t, keys)
	start := time.Now()
	o := BuildOptions{
		Arch: "s390x", Keys: []string{keys}, Dev: true, Agent: "./initramfs/testdata/init", Log: os.Stderr, Out: out,
	}
	plain, err := Build(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	if found := search(t, filepath.Dir(out), needles, start); !slices.Contains(found, filepath.Join(out, InitrdFile)) {
		t.Fatalf("the search does not find keys: %v", found)
	}
	kernel, err := os.ReadFile(filepath.Join(out, KernelFile))
	if err != nil {
		t.Fatal(err)
	}
	initrd := readPart(t, out)
	if err := os.WriteFile(filepath.Join(out, InitrdFile), nil, 0o600); err != nil { // for the search; it has to go
		t.Fatal(err)
	}

	file := filepath.Join(t.TempDir(), "host.crt")
	if err := os.WriteFile(file, document, 0o644); err != nil {
		t.Fatal(err)
	}
	o.HostKeyDocuments, o.HostKeyTrust = []string{file}, seimage.Trust{None: true}
	done, watched := make(chan struct{}), make(chan []string)
	go func() { // what lies beside the folder while it is made
		var found []string
		for {
			found = append(found, search(t, filepath.Dir(out), needles, start)...)
			select {
			case <-done:
				watched <- found
				return
			case <-time.After(time.Millisecond):
			}
		}
	}()
	m, err := Build(context.Background(), o)
	close(done)
	found := <-watched
	if err != nil {
		t.Fatal(err)
	}
	cache, err := CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	if found = append(found, search(t, cache, needles, start)...); len(found) > 0 {
		t.Errorf("private keys in %v", found)
	}
	if err := Verify(out, m); err != nil {
		t.Error(err)
	}
	if exists(filepath.Join(out, InitrdFile)) {
		t.Error("an initrd lies beside se.img")
	}
	if m.Base != plain.Base || m.Inputs != plain.Inputs || m.SecureExecution.Initrd != plain.Parts[InitrdFile] {
		t.Error("the manifest names another base, input or initrd than without host keys")
	}

	image, err := os.ReadFile(filepath.Join(out, SecureImageFile))
	if err != nil {
		t.Fatal(err)
	}
	g, err := softuv.Unpack(image, host)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(g.Kernel, kernel) || !bytes.Equal(g.Initrd, initrd) || g.CommandLine != m.CommandLine {
		t.Error("se.img holds other parts")
	}
	h, err := seimage.ReadHeader(image)
	if err != nil {
		t.Fatal(err)
	}
	tags := []string{hex.EncodeToString(h.PLD[:]), hex.EncodeToString(h.ALD[:]), hex.EncodeToString(h.TLD[:]), hex.EncodeToString(h.Tag[:]), hex.EncodeToString(h.HostKeys[0][:])}
	s := m.SecureExecution
	if diff := cmp.Diff(tags, []string{s.PLD, s.ALD, s.TLD, s.Tag, s.HostKeys[0].PHKH}); diff != "" {
		t.Error(diff)
	}
}

// keyBytes are what a private key is known by: its factors, and lines of PEM.
func keyBytes(t *testing.T, dir string) (needles [][]byte) {
	t.Helper()
	for _, name := range []string{"contract.key", "attestation.key"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		key, err := parseKey(text)
		if err != nil {
			t.Fatal(err)
		}
		rsaKey := key.(*rsa.PrivateKey)
		for _, p := range rsaKey.Primes {
			needles = append(needles, p.Bytes())
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		lines := bytes.Split(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), []byte("\n"))
		needles = append(needles, rsaKey.D.Bytes(), lines[len(lines)/2], lines[len(lines)*3/4])
	}
	return needles
}

// search gives the files under dir, changed since start, in which a needle is.
func search(t *testing.T, dir string, needles [][]byte, start time.Time) (found []string) {
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // renamed meanwhile
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		if info, err := d.Info(); err != nil || info.ModTime().Before(start.Add(-time.Second)) {
			return nil
		}
		data, err := os.ReadFile(name)
		if err != nil {
			return nil
		}
		if slices.ContainsFunc(needles, func(n []byte) bool { return bytes.Contains(data, n) }) {
			found = append(found, name)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return found
}
