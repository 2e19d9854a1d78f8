package initramfs

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"hpcr/contract"
	"hpcr/disk/luks2"
	"hpcr/initramfs/seimage"
)

// BuildOptions say what image to build.
type BuildOptions struct {
	Arch   string   // "amd64" or "s390x"
	Keys   []string // keys folders; the first signs
	Dev    bool
	Locked bool   // build from what LockFile names, or not at all
	Policy string // policy file; "" = defaults
	Out    string // image folder; replaced as a whole
	Source string // source tree; "" = found
	Agent  string // package of the guest's binary, PID 1 included; "" = ./cmd/hpcr, ./cmd/hpcr-init and ./cmd/hpcr-disk
	Log    io.Writer

	// With documents of machines' host keys, se.img takes the place of the initrd.
	HostKeyDocuments []string
	HostKeyTrust     seimage.Trust
}

// Part is one file of an image, or a range of one.
type Part struct {
	SHA256 string `json:"sha256"`
	Size   int64  `json:"size"`
}

// Manifest is what an auditor compares an image with.
type Manifest struct {
	Schema int `json:"schema"`
	Recipe
	Kernel string          `json:"kernel"`
	Parts  map[string]Part `json:"parts"`
	// Base is the keyless part: the first Size bytes of initrd.
	Base       Part       `json:"base"`
	Init       Part       `json:"init"`
	Agent      Part       `json:"agent"`
	Disk       Part       `json:"disk"`
	Runc       Part       `json:"runc"`
	Sizes      []Size     `json:"sizes"`
	PublicKeys PublicKeys `json:"publicKeys"`
	PolicyFile Part       `json:"policyFile"` // as the guest has it: the record's policy line
	Modules    []string   `json:"modules"`
	Inputs     string     `json:"inputs"` // hash over the recipe: equal inputs, equal base

	SecureExecution *SecureExecution `json:"secureExecution,omitempty"`
}

// PublicKeys are the PEM public keys whose private halves the image holds.
type PublicKeys struct {
	Contract    []string `json:"contract"`
	Attestation string   `json:"attestation"`
}

// Names of an image folder's files.
const (
	KernelFile   = "kernel"
	InitrdFile   = "initrd"
	ParmFile     = "parmfile"
	ManifestFile = "manifest.json"
	SBOMFile     = "sbom.spdx.json"

	// SecureImageFile stands in the place of InitrdFile.
	SecureImageFile = "se.img"
)

// Files of the guest that the build writes and the agent reads.
const (
	caFile      = "etc/ssl/certs/ca-certificates.crt"
	imageFile   = "etc/hpcr/image.json"
	modulesFile = "etc/hpcr/modules.json"
	policyFile  = "etc/hpcr/policy.json"
)

// The hard links of the guest's three binaries; the first owns the bytes.
var (
	initLinks = []string{"init"}
	diskLinks = []string{"bin/disk-open", "bin/disk-check", "bin/disk-images", "bin/disk-close"}
	applets   = []string{"bin/agent", "bin/contract", "bin/signer", "bin/containerd", "bin/containerd-shim-runc-v2"}
)

// Build makes an image folder.
func Build(ctx context.Context, o BuildOptions) (*Manifest, error) {
	if o.Log == nil {
		o.Log = io.Discard
	}
	flavour := FlavourRelease
	if o.Dev {
		flavour = FlavourDev
	}
	wants, err := imageWants(o.Arch)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrEnvironment, err)
	}
	line := commandLine(o.Arch)
	if err := checkCommandLine(line); err != nil {
		return nil, err
	}
	if len(o.Keys) == 0 {
		return nil, fmt.Errorf("%w: an image needs a keys folder (hpcrctl keys new)", ErrEnvironment)
	}
	if len(o.Keys) > MaxKeys {
		return nil, fmt.Errorf("%d keys folders: a guest takes at most %d", len(o.Keys), MaxKeys)
	}
	var keys []*Keys
	defer func() {
		for _, k := range keys {
			k.Wipe()
		}
	}()
	for _, dir := range o.Keys {
		k, err := ReadKeys(dir)
		if err != nil {
			return nil, err
		}
		keys = append(keys, k)
		if k.Flavour != flavour {
			return nil, fmt.Errorf("keys in %s are for %s images, this is a %s image: a release key must not enter an image that anyone can read, nor a dev key one that others trust", dir, k.Flavour, flavour)
		}
	}
	if err := sameKeys(keys); err != nil {
		return nil, err
	}
	policy, err := readPolicy(o.Policy, o.Dev)
	if err != nil {
		return nil, err
	}
	machines, err := o.readHostKeys()
	if err != nil {
		return nil, err
	}
	src, err := FindSource(ctx, o.Source)
	if err != nil {
		return nil, err
	}

	deb, err := NewDebian(o.Arch, o.Log)
	if err != nil {
		return nil, err
	}
	tools, err := src.toolchain(ctx, o.Arch)
	if err != nil {
		return nil, err
	}
	pkgs, err := fetchImage(ctx, o, src, deb, wants, tools)
	if err != nil {
		return nil, err
	}
	if err := checkFloors(tools, pkgs[0]); err != nil {
		return nil, err
	}
	user := pkgs[1 : 1+len(userlandPackages)]
	roots, err := unpackAll(ctx, deb, user)
	if err != nil {
		return nil, err
	}
	seccomp, err := unpackAll(ctx, deb, pkgs[1+len(userlandPackages):])
	if err != nil {
		return nil, err
	}
	krn, err := openKernel(ctx, deb, pkgs[0])
	if err != nil {
		return nil, err
	}
	agentPkg, initPkg, diskPkg := cmp.Or(o.Agent, "./cmd/hpcr"), cmp.Or(o.Agent, "./cmd/hpcr-init"), cmp.Or(o.Agent, "./cmd/hpcr-disk")
	agent, err := src.buildAgent(ctx, o.Arch, agentPkg, o.Dev, o.Log)
	if err != nil {
		return nil, err
	}
	pid1, err := src.buildAgent(ctx, o.Arch, initPkg, o.Dev, o.Log)
	if err != nil {
		return nil, err
	}
	disks, err := src.buildAgent(ctx, o.Arch, diskPkg, o.Dev, o.Log)
	if err != nil {
		return nil, err
	}
	runc, err := src.buildRunc(ctx, o.Arch, tools, seccomp, o.Log)
	if err != nil {
		return nil, err
	}
	tree, err := src.treeHash(ctx, o.Arch, o.Dev, agentPkg, initPkg, diskPkg, "./cmd/hpcrctl")
	if err != nil {
		return nil, err
	}

	m := &Manifest{
		Schema: 1, Kernel: krn.release, Parts: map[string]Part{},
		Recipe: Recipe{
			Version: src.Version, Arch: o.Arch, Flavour: flavour, BuildTime: src.Time.Unix(), CommandLine: line,
			Policy: policy, Source: tree, Toolchain: tools, Packages: pkgs,
		},
	}
	slices.SortFunc(m.Packages, func(a, b Package) int { return strings.Compare(a.Name, b.Name) })
	if m.Inputs, err = m.Recipe.hash(); err != nil {
		return nil, err
	}
	for _, k := range keys {
		m.PublicKeys.Contract = append(m.PublicKeys.Contract, string(k.ContractPublic))
	}
	m.PublicKeys.Attestation = string(keys[0].AttestationPublic)

	base, err := baseTree(m, src, krn, roots, pid1, agent, disks, runc)
	if err != nil {
		return nil, err
	}
	profile, err := compileProfile(ctx)
	if err != nil {
		return nil, err
	}
	base.File(profileFile, 0o644, profile)
	var raw, rawKeys bytes.Buffer
	if err := base.Write(&raw, src.Time); err != nil {
		return nil, err
	}
	if err := keysTree(keys).Write(&rawKeys, src.Time); err != nil {
		return nil, err
	}
	defer clear(rawKeys.Bytes())
	packed, err := compress(raw.Bytes())
	if err != nil {
		return nil, err
	}
	m.Base = Part{hashBytes(packed), int64(len(packed))}
	initrd := slices.Concat(packed, rawKeys.Bytes())
	defer clear(initrd)
	if m.Sizes, err = base.sizes(); err != nil {
		return nil, err
	}
	m.Sizes = append(m.Sizes,
		Size{"base", int64(raw.Len()), m.Base.Size}, Size{"keys", int64(rawKeys.Len()), int64(rawKeys.Len())},
		Size{"initrd", int64(raw.Len() + rawKeys.Len()), int64(len(initrd))}, Size{"kernel", int64(len(krn.image)), int64(len(krn.image))})
	files := map[string][]byte{
		KernelFile: krn.image,
		InitrdFile: initrd,
		ParmFile:   []byte(m.CommandLine),
	}
	if len(machines) > 0 {
		if err := m.seal(ctx, o, src, files, machines); err != nil {
			return nil, err
		}
	}
	if files[SBOMFile], err = m.sbom(agent, disks, runc); err != nil {
		return nil, err
	}
	for name, data := range files {
		m.Parts[name] = Part{hashBytes(data), int64(len(data))}
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, err
	}
	files[ManifestFile] = append(text, '\n')
	return m, replaceFolder(o.Out, files)
}

func readPolicy(file string, dev bool) (contract.Policy, error) {
	var text []byte
	if file != "" {
		var err error
		if text, err = os.ReadFile(file); err != nil {
			return contract.Policy{}, fmt.Errorf("%w: %w", ErrEnvironment, err)
		}
	}
	p, err := contract.ParsePolicy(text, dev)
	if err != nil {
		return p, err
	}
	return p, affordable(p)
}

// affordable refuses a policy with which no guest could make a volume: a cost
// outside of the disks' profile, or one that would not fit into the smallest
// guest beside its other half.
func affordable(p contract.Policy) error {
	if err := luks2.KDF(p.KDF).Check(); err != nil {
		return fmt.Errorf("policy: kdf: %w", err)
	}
	if need := int(p.KDF.MemoryKiB>>10) * 2; need > p.MinMemoryMiB {
		return fmt.Errorf("policy: kdf: %d KiB do not fit into a guest of %d MiB: raise minMemoryMiB to %d, or lower kdf.memoryKiB", p.KDF.MemoryKiB, p.MinMemoryMiB, need)
	}
	return nil
}

func unpackAll(ctx context.Context, d *Debian, pkgs []Package) ([]string, error) {
	var dirs []string
	for _, p := range pkgs {
		dir, err := d.Unpack(ctx, p)
		if err != nil {
			return nil, err
		}
		dirs = append(dirs, dir)
	}
	return dirs, nil
}

// baseTree is the keyless part of the initrd. It fills in what the manifest
// says of it.
func baseTree(m *Manifest, src *Source, krn *kernel, roots []string, pid1, agent, disks, runc string) (*Tree, error) {
	t := NewTree()
	for _, dir := range []string{"dev", "proc", "sys", "tmp", "run", "newroot", "etc/hpcr", "var/lib/containerd", "var/hyperprotect", "data1", "mnt"} {
		t.Dir(dir, 0o755)
	}
	t.Dir("tmp", 0o1777)

	for _, p := range []struct {
		file  string
		links []string
		part  *Part
	}{{pid1, initLinks, &m.Init}, {agent, applets, &m.Agent}, {disks, diskLinks, &m.Disk}, {runc, []string{"bin/runc"}, &m.Runc}} {
		bin, err := os.ReadFile(p.file)
		if err != nil {
			return nil, err
		}
		*p.part = Part{hashBytes(bin), int64(len(bin))}
		t.File(p.links[0], 0o755, bin)
		for _, name := range p.links[1:] {
			if err := t.Link(name, p.links[0]); err != nil {
				return nil, err
			}
		}
	}

	if err := addPrograms(t, roots, m.Arch); err != nil {
		return nil, err
	}
	bundle, err := caBundle(roots)
	if err != nil {
		return nil, err
	}
	t.File(caFile, 0o644, bundle)
	t.Symlink("etc/mtab", "/proc/self/mounts")

	groups := map[string][]string{}
	for name, modules := range ModuleGroups(m.Arch) {
		files, err := krn.modules.closure(modules)
		if err != nil {
			return nil, fmt.Errorf("module group %s: %w", name, err)
		}
		groups[name] = []string{}
		for _, file := range files {
			to := "lib/modules/" + krn.release + "/" + strings.TrimSuffix(file, ".xz")
			groups[name] = append(groups[name], "/"+to)
			if t.Has(to) {
				continue
			}
			data, err := krn.modules.readModule(file)
			if err != nil {
				return nil, err
			}
			t.File(to, 0o644, data)
			m.Modules = append(m.Modules, moduleName(file))
		}
	}
	slices.Sort(m.Modules)
	for name, v := range map[string]any{modulesFile: map[string]any{"groups": groups}, policyFile: m.Policy, imageFile: imageFacts(m)} {
		data, err := json.Marshal(v)
		if err != nil {
			return nil, err
		}
		t.File(name, 0o644, data)
		if name == policyFile {
			m.PolicyFile = Part{hashBytes(data), int64(len(data))}
		}
	}
	return t, nil
}

// imageFacts is what the guest learns of its own image (agent/boot.Image).
func imageFacts(m *Manifest) map[string]any {
	return map[string]any{"version": m.Version, "arch": m.Arch, "flavour": m.Flavour, "buildTime": m.BuildTime, "kernel": m.Kernel}
}

// replaceFolder writes a folder beside the old one and swaps them, so that a
// reader sees one image or the other and an interrupted build harms neither.
func replaceFolder(dir string, files map[string][]byte) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fmt.Errorf("%w: %w", ErrEnvironment, err)
	}
	if err := ownFolder(dir); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), ".image-")
	if err != nil {
		return fmt.Errorf("%w: %w", ErrEnvironment, err)
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	for name, data := range files {
		mode := os.FileMode(0o644)
		if name == InitrdFile {
			mode = 0o600 // the keys are in it
		}
		if err := os.WriteFile(filepath.Join(tmp, name), data, mode); err != nil {
			return err
		}
	}
	old := tmp + "-old"
	defer os.RemoveAll(old)
	if err := os.Rename(dir, old); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.Rename(tmp, dir)
}

// ownFolder refuses to replace a folder that holds anything but an image.
func ownFolder(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrEnvironment, err)
	}
	known := []string{KernelFile, InitrdFile, ParmFile, ManifestFile, SBOMFile, SecureImageFile}
	for _, e := range entries {
		if !slices.Contains(known, e.Name()) {
			return fmt.Errorf("%w: %s holds %s, which is no part of an image: name another folder", ErrEnvironment, dir, e.Name())
		}
	}
	return nil
}
