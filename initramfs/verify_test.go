package initramfs

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// small is an image with everything but size: what Verify looks at.
type small struct {
	m       *Manifest
	base    *Tree
	keys    *Tree
	kernel  []byte
	command string
}

func newSmall(t *testing.T, keysDir string) *small {
	t.Helper()
	k, err := ReadKeys(keysDir)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Wipe()
	s := &small{base: NewTree(), keys: keysTree([]*Keys{k}), kernel: []byte("kernel"), command: "quiet"}
	s.keys.File("keys/0/contract.key", 0o400, slices.Clone(k.ContractKey.Bytes()))
	s.keys.File("keys/attestation.key", 0o400, slices.Clone(k.AttestationKey.Bytes()))
	s.m = &Manifest{Schema: 1, Kernel: "6.12", Parts: map[string]Part{}, Modules: []string{"dm_crypt"}}
	s.m.Recipe = Recipe{Arch: "amd64", Flavour: FlavourDev, Version: "v1", CommandLine: s.command, Source: "tree", Toolchain: Toolchain{Go: "go1.26.8"}}
	s.m.PublicKeys = PublicKeys{[]string{string(k.ContractPublic)}, string(k.AttestationPublic)}
	for i, links := range [][]string{initLinks, applets, {"bin/runc"}, diskLinks} {
		data := []byte{'b', byte('0' + i)}
		*[]*Part{&s.m.Init, &s.m.Agent, &s.m.Runc, &s.m.Disk}[i] = Part{hashBytes(data), 2}
		s.base.File(links[0], 0o755, data)
		for _, l := range links[1:] {
			if err := s.base.Link(l, links[0]); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.base.File("lib/modules/6.12/kernel/dm-crypt.ko", 0o644, []byte("module"))
	for name, v := range map[string]any{policyFile: s.m.Policy, imageFile: imageFacts(s.m)} {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		s.base.File(name, 0o644, text)
		if name == policyFile {
			s.m.PolicyFile = Part{hashBytes(text), int64(len(text))}
		}
	}
	return s
}

// write makes the folder; its manifest says of files what is true of them, and
// of the inside what m says.
func (s *small) write(t *testing.T) string {
	t.Helper()
	var base, keys bytes.Buffer
	if err := s.base.Write(&base, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if err := s.keys.Write(&keys, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	packed, err := compress(base.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	s.m.Base = Part{hashBytes(packed), int64(len(packed))}
	return s.folder(t, slices.Concat(packed, keys.Bytes()))
}

func (s *small) folder(t *testing.T, initrd []byte) string {
	t.Helper()
	files := map[string][]byte{KernelFile: s.kernel, InitrdFile: initrd, ParmFile: []byte(s.command)}
	for name, data := range files {
		s.m.Parts[name] = Part{hashBytes(data), int64(len(data))}
	}
	var err error
	if s.m.Inputs, err = s.m.Recipe.hash(); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "image")
	if err := replaceFolder(dir, files); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Attack: an image is not what its manifest says, or hides something from who
// only compares hashes of files. Claim: Verify names it.
func TestVerifySeesEveryChange(t *testing.T) {
	keys, others := handMade(t), handMade(t)
	for name, tc := range map[string]struct {
		change func(t *testing.T, s *small)             // before the folder is written, hashes fit
		after  func(t *testing.T, s *small, dir string) // behind the manifest's back
		want   string                                   // "" = verifies
	}{
		"nothing": {},
		"a byte of a file": {
			after: func(t *testing.T, _ *small, dir string) { put(t, filepath.Join(dir, ParmFile), "debug") }, want: ParmFile},
		"a part is gone": {
			after: func(t *testing.T, _ *small, dir string) { remove(t, filepath.Join(dir, KernelFile)) }, want: KernelFile},
		"a part that is not named": {
			after: func(_ *testing.T, s *small, _ string) { delete(s.m.Parts, InitrdFile) }, want: "does not name it"},
		"a Secure Execution image without its se.img": {
			after: func(_ *testing.T, s *small, _ string) { s.m.SecureExecution = &SecureExecution{} }, want: SecureImageFile + ": the manifest does not name it"},
		"a part outside of the folder": {
			after: func(_ *testing.T, s *small, _ string) { s.m.Parts["../escape"] = Part{} }, want: "outside"},
		"another init in the base": {
			change: func(_ *testing.T, s *small) { s.base.File("init", 0o755, []byte("spy")) }, want: "init: sha256"},
		"an applet that is another program": {
			change: func(_ *testing.T, s *small) { s.base.File("bin/signer", 0o755, []byte("spy")) }, want: "bin/signer"},
		"another runc": {
			change: func(_ *testing.T, s *small) { s.base.File("bin/runc", 0o755, []byte("spy")) }, want: "runc: sha256"},
		"no agent": {
			change: func(_ *testing.T, s *small) { delete(s.base.nodes, "bin/contract") }, want: `no file "bin/contract"`},
		"a policy that is not the manifest's": {
			change: func(_ *testing.T, s *small) { s.m.Policy.RequireSignature = true }, want: "policy.json"},
		"a version that is not the manifest's": {
			change: func(_ *testing.T, s *small) { s.m.Version = "v2" }, want: "image.json"},
		"a module that the manifest hides": {
			change: func(_ *testing.T, s *small) { s.base.File("lib/modules/6.12/kernel/usb.ko", 0o644, nil) }, want: "other modules"},
		"a key in the base": {
			change: func(_ *testing.T, s *small) { s.base.File("keys/1/contract.key", 0o400, nil) }, want: "must hold no keys"},
		"another command line": {
			change: func(_ *testing.T, s *small) { s.command = "debug" }, want: "command line"},
		"inputs that are not the recipe's hash": {
			after: func(_ *testing.T, s *small, _ string) { s.m.Go = "go1.27" }, want: "inputs"},
		"an init behind the base, which the kernel would take": {
			change: func(_ *testing.T, s *small) { s.keys.File("init", 0o755, []byte("spy")) }, want: `"init" does not belong`},
		"a second contract key": {
			change: func(_ *testing.T, s *small) { s.keys.File("keys/1/contract.key", 0o400, nil) }, want: "keys/1"},
		"no contract key": {
			change: func(_ *testing.T, s *small) { delete(s.keys.nodes, "keys/0/contract.key") }, want: "missing"},
		"another contract key": {
			change: func(t *testing.T, s *small) { s.keys = newSmall(t, others).keys }, want: "public half"},
		"a third archive": {
			after: func(t *testing.T, s *small, dir string) { s.more(t, dir, archive(t, sampleTree(t, []string{"file"}))) }, want: "not as hpcrctl writes"},
		"bytes behind the end": {
			after: func(t *testing.T, s *small, dir string) { s.more(t, dir, make([]byte, 512)) }, want: "not as hpcrctl writes"},
		"a base cut elsewhere": {
			after: func(_ *testing.T, s *small, _ string) { s.m.Base.Size -= 512 }, want: "base"},
		"a base larger than the initrd": {
			after: func(_ *testing.T, s *small, _ string) { s.m.Base.Size = 1 << 40 }, want: "base"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSmall(t, keys)
			if tc.change != nil {
				tc.change(t, s)
			}
			dir := s.write(t)
			if tc.after != nil {
				tc.after(t, s, dir)
			}
			err := Verify(dir, s.m)
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

// more appends to the initrd, as a builder would who writes the manifest too.
func (s *small) more(t *testing.T, dir string, data []byte) {
	t.Helper()
	file := filepath.Join(dir, InitrdFile)
	old, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	put(t, file, string(old)+string(data))
	s.m.Parts[InitrdFile] = Part{hashBytes(append(old, data...)), int64(len(old) + len(data))}
}

func put(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, file string) {
	t.Helper()
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
}

// Whoever has keys of their own still proves to have built what others have.
func TestAnotherBuildersManifestProvesTheBase(t *testing.T) {
	keys, others := handMade(t), handMade(t)
	theirs := newSmall(t, others)
	theirs.write(t)
	for name, tc := range map[string]struct {
		keys   string
		change func(s *small)
		want   []string
	}{
		"other keys":                    {others, func(*small) {}, nil},
		"the same keys":                 {keys, func(*small) {}, nil},
		"another base":                  {keys, func(s *small) { s.base.File("bin/spy", 0o755, nil) }, []string{"base differs"}},
		"another kernel":                {keys, func(s *small) { s.kernel = []byte("other") }, []string{"kernel differs"}},
		"another command line":          {keys, func(s *small) { s.command, s.m.CommandLine = "debug", "debug" }, []string{"command line differs"}},
		"the same keys, initrd differs": {others, func(s *small) { s.keys.File("keys/contract.crt", 0o444, []byte("other")) }, []string{"initrd differs"}},
		"another Go, which shows in the base": {keys, func(s *small) { s.m.Go = "go1.27"; s.base.File("init", 0o755, []byte("x")) },
			[]string{"base differs", "go: go1.26.8 → go1.27"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSmall(t, tc.keys)
			tc.change(s)
			s.write(t)
			err := SameBase(s.m, theirs.m)
			if len(tc.want) == 0 && err != nil {
				t.Error(err)
			}
			for _, w := range tc.want {
				if err == nil || !strings.Contains(err.Error(), w) {
					t.Errorf("got %v, want %q", err, w)
				}
			}
		})
	}
}

func TestAnArchiveIsReadAsWritten(t *testing.T) {
	tree := sampleTree(t, []string{"file", "dir", "deep", "symlink", "empty"})
	got, err := readTree(archive(t, tree))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(tree.Names(), got.Names()); diff != "" {
		t.Error(diff)
	}
	for _, name := range []string{"init", "bin/agent", "bin/contract"} {
		if data, err := got.file(name); err != nil || string(data) != "program" {
			t.Errorf("%s: %q %v", name, data, err)
		}
	}
}

func TestABaseIsUnpackedWithinBounds(t *testing.T) {
	pack := func(raw []byte) []byte {
		t.Helper()
		packed, err := compress(raw)
		if err != nil {
			t.Fatal(err)
		}
		return packed
	}
	for name, tc := range map[string]struct {
		base []byte
		ok   bool
	}{
		"as compress wrote it":     {pack([]byte("content")), true},
		"a bomb":                   {pack(make([]byte, 200<<20)), false},
		"cut":                      {pack([]byte("content"))[:8], false},
		"zeros":                    {make([]byte, 512), false},
		"nothing":                  {nil, false},
		"more zeros than belong":   {append(pack([]byte("content")), make([]byte, 512)...), false},
		"something behind the end": {append(pack([]byte("content")), "more"...), false},
	} {
		t.Run(name, func(t *testing.T) {
			raw, err := decompress(tc.base)
			if tc.ok != (err == nil) || tc.ok && string(raw) != "content" {
				t.Errorf("%q, %v", raw[:min(len(raw), 20)], err)
			}
		})
	}
}

// FuzzReadTree: an archive, however damaged, gives a tree that writes to the
// same bytes, or an error: no panic.
func FuzzReadTree(f *testing.F) {
	tree := NewTree()
	tree.File("a/b", 0o644, []byte("content"))
	tree.Symlink("c", "a/b")
	if err := tree.Link("d", "a/b"); err != nil {
		f.Fatal(err)
	}
	var b bytes.Buffer
	if err := tree.Write(&b, time.Unix(1, 0)); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte("070701"))
	f.Add(bytes.Replace(b.Bytes(), []byte("00000002"), []byte("FFFFFFFF"), 3))
	f.Fuzz(func(t *testing.T, data []byte) {
		tree, err := readTree(data)
		if err != nil {
			return
		}
		for _, name := range tree.Names() {
			if name != clean(name) {
				t.Errorf("%q", name)
			}
		}
	})
}
