package initramfs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"hpcr/initramfs/seimage"
)

// What is refused must be refused before anything is fetched or written.
func TestBuildRefusesBeforeItWorks(t *testing.T) {
	release, dev := newKeys(t, KeyOptions{Flavour: FlavourRelease}), handMade(t)
	policies := t.TempDir()
	written := func(name, text string) string {
		file := filepath.Join(policies, name)
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return file
	}
	policy := written("misspelt", "requireEncrypion: true\n")
	cheap := written("cheap", "kdf: {memoryKiB: 16384, time: 4}\n")
	dear := written("dear", "kdf: {memoryKiB: 524288}\n")
	for name, tc := range map[string]struct {
		o    BuildOptions
		want string
		env  bool
	}{
		"release keys in a dev image":   {BuildOptions{Arch: "amd64", Keys: []string{release}, Dev: true}, "release images", false},
		"dev keys in a release image":   {BuildOptions{Arch: "amd64", Keys: []string{dev}}, "dev images", false},
		"one of two of another flavour": {BuildOptions{Arch: "amd64", Keys: []string{dev, release}, Dev: true}, "release images", false},
		"one of two is dev's":           {BuildOptions{Arch: "amd64", Keys: []string{release, dev}}, "dev images", false},
		"the same key twice":            {BuildOptions{Arch: "amd64", Keys: []string{dev, dev}, Dev: true}, "same contract key", false},
		"more keys than a guest takes":  {BuildOptions{Arch: "amd64", Keys: slices.Repeat([]string{dev}, MaxKeys+1), Dev: true}, "at most 16", false},
		"no keys":                       {BuildOptions{Arch: "amd64", Dev: true}, "keys folder", true},
		"unknown architecture":          {BuildOptions{Arch: "arm64", Keys: []string{dev}, Dev: true}, "arm64", true},
		"misspelt policy":               {BuildOptions{Arch: "amd64", Keys: []string{dev}, Dev: true, Policy: policy}, "requireEncrypion", false},
		"missing policy":                {BuildOptions{Arch: "amd64", Keys: []string{dev}, Dev: true, Policy: policy + "x"}, "no such file", true},
		"a cost that disks refuse":      {BuildOptions{Arch: "amd64", Keys: []string{dev}, Dev: true, Policy: cheap}, "outside the profile", false},
		"a cost that fits no guest":     {BuildOptions{Arch: "amd64", Keys: []string{dev}, Dev: true, Policy: dear}, "raise minMemoryMiB to 1024", false},
		"host keys on amd64":            {BuildOptions{Arch: "amd64", Keys: []string{dev}, Dev: true, HostKeyDocuments: []string{"f"}}, "only s390x", false},
		"missing host key document":     {BuildOptions{Arch: "s390x", Keys: []string{dev}, Dev: true, HostKeyDocuments: []string{policy + "x"}, HostKeyTrust: seimage.Trust{None: true}}, "no such file", true},
		"unverified host key document":  {BuildOptions{Arch: "s390x", Keys: []string{dev}, Dev: true, HostKeyDocuments: []string{filepath.Join(dev, "contract.crt")}}, "signing certificate", false},
		"missing source":                {BuildOptions{Arch: "amd64", Keys: []string{dev}, Dev: true, Source: t.TempDir()}, "source tree", true},
	} {
		t.Run(name, func(t *testing.T) {
			tc.o.Out = filepath.Join(t.TempDir(), "image")
			_, err := Build(context.Background(), tc.o)
			if err == nil || !strings.Contains(err.Error(), tc.want) || errors.Is(err, ErrEnvironment) != tc.env {
				t.Errorf("got %v, want %q, environment %v", err, tc.want, tc.env)
			}
			if exists(tc.o.Out) {
				t.Error("something was written")
			}
		})
	}
}

func TestImageFolderIsReplacedWholeAndNothingElse(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "image")
	for _, content := range []string{"one", "two"} {
		if err := replaceFolder(dir, map[string][]byte{InitrdFile: []byte(content), KernelFile: []byte("k")}); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(dir, InitrdFile)); err != nil || string(got) != content {
			t.Errorf("%q, %v", got, err)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, InitrdFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the initrd with its keys: %v, %v", info.Mode(), err)
	}
	if left, err := os.ReadDir(filepath.Dir(dir)); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	precious := filepath.Join(dir, "thesis.tex")
	if err := os.WriteFile(precious, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := replaceFolder(dir, nil); !errors.Is(err, ErrEnvironment) || !exists(precious) {
		t.Errorf("a folder with a foreign file was replaced: %v", err)
	}
}

// Attack: a parameter that opens the guest slips into an image. Claim: the
// build refuses the command line, and what is built has all defences.
func TestCommandLineOpensNothing(t *testing.T) {
	good := commandLine("amd64")
	for _, arch := range Architectures {
		if err := checkCommandLine(commandLine(arch)); err != nil {
			t.Errorf("%s: %v", arch, err)
		}
		if n := len(commandLine(arch)); n > 512 {
			t.Errorf("%s: %d characters", arch, n)
		}
	}
	for _, word := range []string{
		"debug", "shell", "init=/bin/sh", "rdinit=/bin/sh", "single", "1", "emergency", "rescue", "break=bottom",
		"systemd.debug", "systemd.debug_shell=1", "rd.break", "rd.shell", "sysrq_always_enabled", "nokaslr", "nopti",
		"mitigations=off", "hpcr.test=1", "agent.debug_console", "kgdboc=ttyS0", "earlyprintk=ttyS0", "ignore_loglevel",
		"loglevel=8", "lockdown=none", "module.sig_enforce=0", "no_hash_pointers", "panic=5", "debugfs=on", "debugfs", "iomem=relaxed", "ftrace=function",
	} {
		if err := checkCommandLine(good + " " + word); !errors.Is(err, ErrCommandLine) {
			t.Errorf("%s: %v", word, err)
		}
	}
	for word := range strings.FieldsSeq("rdinit=/init lockdown=confidentiality module.sig_enforce=1 initcall_blacklist=sysrq_init cgroup_no_v1=all,named") {
		if err := checkCommandLine(strings.Replace(good, word, "", 1)); !errors.Is(err, ErrCommandLine) {
			t.Errorf("without %s: %v", word, err)
		}
	}
	for word := range strings.FieldsSeq("mitigations=auto,nosmt debugfs=off iomem=strict") {
		if err := checkCommandLine(good + " " + word); err != nil {
			t.Errorf("%s closes: %v", word, err)
		}
	}
	// And Build asks: nothing is fetched or written for such an image.
	defer func(h []string) { Hardening = h }(Hardening)
	Hardening = append(slices.Clone(Hardening), "debug")
	o := BuildOptions{Arch: "s390x", Keys: []string{handMade(t)}, Dev: true, Out: filepath.Join(t.TempDir(), "image")}
	if _, err := Build(context.Background(), o); !errors.Is(err, ErrCommandLine) || exists(o.Out) {
		t.Errorf("built: %v", err)
	}
}

// FuzzExtractVmlinux: a kernel file, however damaged, gives an ELF kernel or
// an error: no panic.
func FuzzExtractVmlinux(f *testing.F) {
	head := make([]byte, 0x400)
	copy(head[0x202:], "HdrS")
	f.Add([]byte{})
	f.Add(head)
	head[0x1f1] = 1
	copy(head[0x24c:], []byte{0, 0xff, 0xff, 0xff})
	f.Add(head)
	f.Fuzz(func(t *testing.T, data []byte) {
		out, err := extractVmlinux(data)
		if err == nil && string(out[:4]) != "\x7fELF" {
			t.Error("not an ELF file")
		}
	})
}
