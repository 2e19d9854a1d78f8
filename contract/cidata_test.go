package contract

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// tool runs a foreign peer. A missing one fails the test: "make deps" has it.
func tool(t testing.TB, stdin []byte, name string, args ...string) []byte {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		// mkfs lives where an ordinary user's PATH does not look.
		if path, err = exec.LookPath("/usr/sbin/" + name); err != nil {
			t.Fatalf("%s is missing: run make deps", name)
		}
	}
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), "MTOOLS_SKIP_CHECK=1", "SOURCE_DATE_EPOCH=1700000000")
	cmd.Stdin = bytes.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, errs.String())
	}
	return out.Bytes()
}

// folder writes the four files and returns their folder.
func folder(t testing.TB, f Files) (dir string, names []string) {
	t.Helper()
	dir = t.TempDir()
	for _, w := range wanted {
		if b := *w.get(&f); b != nil {
			if err := os.WriteFile(filepath.Join(dir, w.name), b, 0o644); err != nil {
				t.Fatal(err)
			}
			names = append(names, w.name)
		}
	}
	return dir, names
}

var sample = Files{
	UserData:      bytes.Repeat([]byte("workload: x # not a multiple of a sector\n"), 1000),
	MetaData:      []byte("local-hostname: guest1\n"),
	VendorData:    []byte{},
	NetworkConfig: []byte("network: {version: 2}\n"),
}

func iso(t testing.TB, f Files, args ...string) []byte {
	dir, _ := folder(t, f)
	out := filepath.Join(t.TempDir(), "cidata.iso")
	tool(t, nil, "genisoimage", append(append([]string{"-quiet", "-output", out}, args...), dir)...)
	return readFile(t, out)
}

func fatImage(t testing.TB, f Files, label string, kib string, args ...string) []byte {
	dir, names := folder(t, f)
	out := filepath.Join(t.TempDir(), "cidata.img")
	tool(t, nil, "mkfs.vfat", append(append([]string{"-C", "-n", label}, args...), out, kib)...)
	for _, n := range names {
		tool(t, nil, "mcopy", "-i", out, filepath.Join(dir, n), "::"+n)
	}
	return readFile(t, out)
}

func TestReadCidata(t *testing.T) {
	dir, _ := folder(t, sample)
	xorriso := filepath.Join(t.TempDir(), "x.iso")
	tool(t, nil, "xorriso", "-as", "mkisofs", "-quiet", "-o", xorriso, "-V", "cidata", "-J", "-R", dir)
	localds := iso(t, sample, "-volid", "CIDATA", "-joliet", "-rock")
	tests := map[string][]byte{
		"genisoimage, both extensions, as documented": iso(t, sample, "-volid", "cidata", "-joliet", "-rock"),
		"genisoimage, upper-case label":               localds,
		"genisoimage, Rock Ridge only":                iso(t, sample, "-volid", "cidata", "-rock"),
		"genisoimage, Joliet only":                    iso(t, sample, "-volid", "cidata", "-joliet"),
		"genisoimage, long plain names":               iso(t, sample, "-volid", "cidata", "-iso-level", "3"),
		"genisoimage, 8.3 plain names":                iso(t, sample, "-volid", "cidata", "-iso-level", "1"),
		"xorriso":                                     readFile(t, xorriso),
		"FAT12":                                       fatImage(t, sample, "CIDATA", "1440"),
		"FAT12, lower-case label":                     fatImage(t, sample, "cidata", "1440"),
		"FAT16":                                       fatImage(t, sample, "CIDATA", "16384", "-F", "16"),
		"FAT32":                                       fatImage(t, sample, "CIDATA", "40960", "-F", "32"),
		"FAT16, sectors of 1024":                      fatImage(t, sample, "CIDATA", "16384", "-F", "16", "-S", "1024"),
	}
	for name, device := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := ReadCidata(device)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(sample, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestReadCidataAbsentFiles(t *testing.T) {
	want := Files{UserData: []byte("x")}
	got, err := ReadCidata(iso(t, want, "-volid", "cidata", "-joliet", "-rock"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestReadCidataRefuses(t *testing.T) {
	good := iso(t, sample, "-volid", "cidata", "-joliet", "-rock")
	change := func(off int, b ...byte) []byte {
		c := bytes.Clone(good)
		copy(c[off:], b)
		return c
	}
	dir, _ := folder(t, Files{MetaData: []byte("x")})
	if err := os.Symlink("meta-data", filepath.Join(dir, "user-data")); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link.iso")
	tool(t, nil, "genisoimage", "-quiet", "-output", link, "-volid", "cidata", "-rock", dir)
	fatImg := fatImage(t, sample, "CIDATA", "1440")
	broken := bytes.Clone(fatImg)
	clear(broken[512:1024]) // the first table: every chain ends at once
	tests := map[string][]byte{
		"nothing":                         nil,
		"zeroes":                          make([]byte, 1<<20),
		"another label":                   iso(t, sample, "-volid", "config-2", "-joliet", "-rock"),
		"another FAT label":               fatImage(t, sample, "OTHER", "1440"),
		"cut off":                         good[:40<<10],
		"too large":                       make([]byte, MaxDevice+1),
		"root directory beyond the end":   change(16*2048+156+2, 0xff, 0xff, 0xff, 0x7f),
		"root directory of 2 GiB":         change(16*2048+156+10, 0xff, 0xff, 0xff, 0x7f),
		"user-data is a symbolic link":    readFile(t, link),
		"FAT chain shorter than the file": broken,
	}
	for name, device := range tests {
		t.Run(name, func(t *testing.T) {
			if f, err := ReadCidata(device); err == nil {
				t.Errorf("accepted: %d bytes of user-data", len(f.UserData))
			}
		})
	}
}

// Property: no panic, no content from outside the device, bounded memory.
func FuzzReadCidataISO(f *testing.F) {
	small := Files{UserData: []byte("a"), MetaData: []byte("b")}
	f.Add(iso(f, small, "-volid", "cidata", "-joliet", "-rock", "-no-pad")[16*2048:])
	f.Add(iso(f, small, "-volid", "cidata", "-joliet", "-no-pad")[16*2048:])
	f.Fuzz(func(t *testing.T, tail []byte) {
		checkFiles(t, append(make([]byte, 16*2048), tail...))
	})
}

// Property: the same of FAT.
func FuzzReadCidataFAT(f *testing.F) {
	small := Files{UserData: []byte("a"), MetaData: []byte("b")}
	f.Add(fatImage(f, small, "CIDATA", "64"))
	f.Add(fatImage(f, small, "CIDATA", "64", "-s", "1"))
	f.Fuzz(func(t *testing.T, device []byte) { checkFiles(t, device) })
}

func checkFiles(t *testing.T, device []byte) {
	files, err := ReadCidata(device)
	if err != nil {
		return
	}
	for _, w := range wanted {
		if b := *w.get(&files); int64(len(b)) > w.max || len(b) > len(device)*2 {
			t.Errorf("%s has %d bytes on a device of %d", w.name, len(b), len(device))
		}
	}
}
