package initramfs

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
)

// ReadManifest reads a manifest file.
func ReadManifest(file string) (*Manifest, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrEnvironment, err)
	}
	var m Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return &m, nil
}

// Verify compares an image folder with a manifest: its files as they are, and
// what the initrd holds. It proves that this is the image the manifest speaks
// of, not that the manifest is true; for that, compare it with one of somebody
// you trust (SameBase). The inside of a Secure Execution image stays unseen.
func Verify(dir string, m *Manifest) error {
	var errs []error
	names := []string{KernelFile, InitrdFile, ParmFile}
	if m.SecureExecution != nil {
		names[1] = SecureImageFile
	}
	for name := range m.Parts {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		want, ok := m.Parts[name]
		if !ok {
			errs = append(errs, fmt.Errorf("%s: the manifest does not name it", name))
			continue
		}
		if filepath.Base(name) != name {
			errs = append(errs, fmt.Errorf("the manifest names a part outside of the folder: %q", name))
			continue
		}
		sum, size, err := hashFile(filepath.Join(dir, name))
		if err != nil {
			errs = append(errs, err)
		} else if sum != want.SHA256 || size != want.Size {
			errs = append(errs, fmt.Errorf("%s: sha256 is %s (%d bytes), the manifest says %s (%d bytes)", name, sum, size, want.SHA256, want.Size))
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	if sum := hashBytes([]byte(m.CommandLine)); sum != m.Parts[ParmFile].SHA256 {
		errs = append(errs, errors.New("parmfile is not the manifest's command line"))
	}
	if inputs, err := m.Recipe.hash(); err != nil || inputs != m.Inputs {
		errs = append(errs, errors.Join(err, errors.New("inputs is not the hash of the manifest's recipe")))
	}
	if m.SecureExecution != nil {
		return errors.Join(append(errs, m.SecureExecution.verify(dir))...)
	}
	initrd, err := os.ReadFile(filepath.Join(dir, InitrdFile))
	if err != nil {
		return err
	}
	defer clear(initrd) // the keys are in it
	if m.Base.Size <= 0 || m.Base.Size > int64(len(initrd)) {
		return fmt.Errorf("the manifest's base has %d bytes, the initrd %d", m.Base.Size, len(initrd))
	}
	if err := verifyBase(initrd[:m.Base.Size], m); err != nil {
		errs = append(errs, fmt.Errorf("base: %w", err))
	}
	if err := verifyKeys(initrd[m.Base.Size:], m); err != nil {
		errs = append(errs, fmt.Errorf("keys: %w", err))
	}
	return errors.Join(errs...)
}

// verifyBase recomputes what the manifest says of the keyless part.
func verifyBase(base []byte, m *Manifest) error {
	if sum := hashBytes(base); sum != m.Base.SHA256 {
		return fmt.Errorf("sha256 is %s, the manifest says %s", sum, m.Base.SHA256)
	}
	raw, err := decompress(base)
	if err != nil {
		return err
	}
	t, err := readTree(raw)
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range []struct {
		name  string
		links []string
		want  Part
	}{{"init", initLinks, m.Init}, {"agent", applets, m.Agent}, {"disk", diskLinks, m.Disk}, {"runc", []string{"bin/runc"}, m.Runc}, {"policy", []string{policyFile}, m.PolicyFile}} {
		for _, link := range p.links {
			data, err := t.file(link)
			if err != nil {
				errs = append(errs, err)
			} else if got := (Part{hashBytes(data), int64(len(data))}); got != p.want {
				errs = append(errs, fmt.Errorf("%s: sha256 of %s is %s, the manifest says %s", p.name, link, got.SHA256, p.want.SHA256))
			}
		}
	}
	for name, want := range map[string]any{policyFile: m.Policy, imageFile: imageFacts(m)} {
		text, err := json.Marshal(want)
		if err != nil {
			return err
		}
		if data, err := t.file(name); err != nil || !bytes.Equal(data, text) {
			errs = append(errs, errors.Join(err, fmt.Errorf("%s says something else than the manifest", name)))
		}
	}
	var modules []string
	for _, name := range t.Names() {
		if strings.HasPrefix(name, "keys") {
			errs = append(errs, fmt.Errorf("holds %q, and must hold no keys", name))
		}
		if t.nodes[name].mode&typeMask == typeFile && partOf(name) == "modules" {
			modules = append(modules, moduleName(name))
		}
	}
	slices.Sort(modules)
	if !slices.Equal(modules, m.Modules) {
		errs = append(errs, errors.New("holds other modules than the manifest names"))
	}
	return errors.Join(errs...)
}

// verifyKeys checks that nothing stands behind the base but the keys that the
// manifest names: the kernel unpacks what comes later over what came first, so
// an init hidden here would replace the one in the base.
func verifyKeys(archive []byte, m *Manifest) error {
	t, err := readTree(archive)
	if err != nil {
		return err
	}
	want := map[string]string{"keys/attestation.key": m.PublicKeys.Attestation, "keys/contract.crt": "", "keys/attestation.crt": "", "keys": ""}
	for i, public := range m.PublicKeys.Contract {
		dir := fmt.Sprintf("keys/%d", i)
		want[dir], want[dir+"/contract.key"] = "", public
	}
	var errs []error
	for _, name := range t.Names() {
		public, ok := want[name]
		delete(want, name)
		if !ok {
			errs = append(errs, fmt.Errorf("%q does not belong behind the base", name))
			continue
		}
		if public == "" {
			continue
		}
		got, err := publicHalf(t.nodes[name].data)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		} else if got != public {
			errs = append(errs, fmt.Errorf("%s is not the key whose public half the manifest names", name))
		}
	}
	for name := range want {
		errs = append(errs, fmt.Errorf("%s is missing", name))
	}
	return errors.Join(errs...)
}

func publicHalf(key []byte) (string, error) {
	private, err := parseKey(key)
	if err != nil {
		return "", err
	}
	signer, ok := private.(crypto.Signer)
	if !ok {
		return "", errors.New("no key pair")
	}
	spki, err := x509.MarshalPKIXPublicKey(signer.Public())
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki})), err
}

// SameBase says whether two builders made the same image but for the keys:
// kernel, command line and keyless base. With the same keys the initrds must be
// equal too. Where they are not, it names the inputs that differ.
func SameBase(m, other *Manifest) error {
	var errs []error
	same := func(what string, a, b any) {
		if !reflect.DeepEqual(a, b) {
			errs = append(errs, fmt.Errorf("%s differs: %v, the other manifest says %v", what, a, b))
		}
	}
	same("kernel", m.Parts[KernelFile], other.Parts[KernelFile])
	same("command line", m.CommandLine, other.CommandLine)
	same("parmfile", m.Parts[ParmFile], other.Parts[ParmFile])
	same("base", m.Base, other.Base)
	same("init", m.Init, other.Init)
	same("agent", m.Agent, other.Agent)
	same("disk", m.Disk, other.Disk)
	same("runc", m.Runc, other.Runc)
	same("policy", m.Policy, other.Policy)
	if reflect.DeepEqual(m.PublicKeys, other.PublicKeys) {
		same("initrd", m.Parts[InitrdFile], other.Parts[InitrdFile])
	}
	if len(errs) == 0 {
		return nil
	}
	same("version", m.Version, other.Version)
	same("architecture", m.Arch, other.Arch)
	same("flavour", m.Flavour, other.Flavour)
	same("build time", m.BuildTime, other.BuildTime)
	same("source", m.Source, other.Source)
	a, b := &Lock{}, &Lock{}
	a.add(m.Arch, m.Toolchain, m.Packages)
	b.add(m.Arch, other.Toolchain, other.Packages)
	for _, c := range b.Changes(a) {
		errs = append(errs, fmt.Errorf("input (other manifest → this image): %s", c))
	}
	return errors.Join(errs...)
}
