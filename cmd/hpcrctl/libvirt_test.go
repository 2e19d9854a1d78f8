package main

import (
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hpcr/initramfs"
)

var update = flag.Bool("update", false, "write the golden files anew")

// imageFolder is one that libvirt-xml looks at: the manifest, and se.img.
func imageFolder(t *testing.T, arch string, se bool) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "image <&'\">")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(initramfs.Manifest{Recipe: initramfs.Recipe{Arch: arch, CommandLine: "rdinit=/init console=here"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, initramfs.ManifestFile), text, 0o644); err != nil {
		t.Fatal(err)
	}
	if se {
		if err := os.WriteFile(filepath.Join(dir, initramfs.SecureImageFile), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// libvirt's own schema takes what we print, and it is what we meant.
func TestLibvirtXML(t *testing.T) {
	for name, tc := range map[string]struct {
		arch string
		se   bool
	}{
		"amd64": {"amd64", false}, "s390x": {"s390x", false}, "secure-execution": {"s390x", true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := imageFolder(t, tc.arch, tc.se)
			golden, err := filepath.Abs(filepath.Join("testdata", "libvirt-"+name+".xml"))
			if err != nil {
				t.Fatal(err)
			}
			t.Chdir(filepath.Dir(dir)) // paths become absolute
			out := ok(t, "", "libvirt-xml", "--image", filepath.Base(dir), "--cidata", "cidata.iso",
				"--disk", "data=data & more.img", "--disk", "scratch=/dev/vg/scratch", "--name", "shop <1>", "--memory", "4G", "--cpus", "2")
			file := filepath.Join(t.TempDir(), "domain.xml")
			if err := os.WriteFile(file, []byte(out), 0o644); err != nil {
				t.Fatal(err)
			}
			if said, err := exec.Command("virt-xml-validate", file, "domain").CombinedOutput(); err != nil {
				t.Errorf("libvirt's schema: %v (virt-xml-validate missing? run make deps)\n%s%s", err, said, out)
			}
			got := strings.ReplaceAll(out, filepath.Dir(dir), "/DIR")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), got); d != "" {
				t.Errorf("domain (-want +got; -update writes it anew):\n%s", d)
			}
			for _, never := range []string{"<rng", "<graphics", "restart"} {
				if strings.Contains(got, never) {
					t.Errorf("the domain has %s", never)
				}
			}
		})
	}
}

func TestLibvirtXMLExitCodes(t *testing.T) {
	dir := imageFolder(t, "amd64", false)
	foreign := imageFolder(t, "arm64", false)
	for name, tc := range map[string]struct {
		args []string
		code int
		say  string
	}{
		"no image":            {[]string{"--cidata", "c"}, 2, "--image"},
		"no cidata":           {[]string{"--image", dir}, 2, "--cidata"},
		"a folder without":    {[]string{"--image", t.TempDir(), "--cidata", "c"}, 2, "manifest.json"},
		"another machine's":   {[]string{"--image", foreign, "--cidata", "c"}, 1, "arm64"},
		"a disk without name": {[]string{"--image", dir, "--cidata", "c", "--disk", "data.img"}, 2, "SERIAL=FILE"},
		"a long serial":       {[]string{"--image", dir, "--cidata", "c", "--disk", "a-serial-of-21-letters=x"}, 2, "20"},
		"a name with a slash": {[]string{"--image", dir, "--cidata", "c", "--name", "a/b"}, 2, "--name"},
		"memory of no size":   {[]string{"--image", dir, "--cidata", "c", "--memory", "much"}, 2, "--memory"},
		"no processor":        {[]string{"--image", dir, "--cidata", "c", "--cpus", "0"}, 2, "--cpus"},
	} {
		t.Run(name, func(t *testing.T) {
			r := hpcrctl(t, "", append([]string{"libvirt-xml"}, tc.args...)...)
			if r.code != tc.code || !strings.Contains(r.stderr, tc.say) || r.stdout != "" {
				t.Errorf("exit %d, want %d, saying %q\n%s%s", r.code, tc.code, tc.say, r.stdout, r.stderr)
			}
		})
	}
}
