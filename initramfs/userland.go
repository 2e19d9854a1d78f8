package initramfs

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Debian packages whose files enter the guest.
var userlandPackages = []Want{
	{"e2fsprogs", ""}, {"libext2fs2", ""}, {"libcom-err2", ""},
	{"libuuid1", ""}, {"libblkid1", ""}, {"libc6", ""}, {"ca-certificates", ""},
	{"xfsprogs", ""}, {"libinih1", ""}, {"liburcu8", ""}, {"btrfs-progs", ""}, {"libudev1", ""},
}

// Packages that only the build of runc reads.
var seccompPackages = []Want{{"libseccomp-dev", ""}, {"libseccomp2", ""}}

// programs of the guest that are not ours; package disk runs them.
var programs = []string{"sbin/e2fsck", "sbin/mke2fs", "sbin/mkfs.btrfs", "sbin/mkfs.xfs"}

// addPrograms copies the programs with the libraries they need.
func addPrograms(t *Tree, roots []string, arch string) error {
	for _, name := range programs {
		data, err := findIn(roots, name)
		if err != nil {
			return err
		}
		t.File(name, 0o755, data)
	}
	queue := slices.Clone(programs)
	for len(queue) > 0 {
		name := queue[0]
		queue = queue[1:]
		needs, err := needed(t.nodes[name].data)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		for _, lib := range needs {
			to := lib // the interpreter is named by its whole path
			if !strings.Contains(lib, "/") {
				to = path.Join("lib", triplet(arch), lib)
			}
			if t.Has(to) {
				continue
			}
			data, err := findIn(roots, to, path.Join("usr", to))
			if err != nil {
				return fmt.Errorf("%s needs %s: %w", name, lib, err)
			}
			t.File(to, 0o755, data)
			queue = append(queue, clean(to))
		}
	}
	conf, err := findIn(roots, "etc/mke2fs.conf")
	if err != nil {
		return err
	}
	t.File("etc/mke2fs.conf", 0o644, conf)
	return nil
}

// needed lists a program's libraries and its interpreter.
func needed(data []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	libs, err := f.ImportedLibraries()
	if err != nil {
		return nil, err
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			interp := make([]byte, p.Filesz)
			if _, err := p.ReadAt(interp, 0); err != nil {
				return nil, err
			}
			libs = append(libs, strings.TrimRight(string(interp), "\x00"))
		}
	}
	return libs, nil
}

// findIn reads the first of the names found in one of the unpacked packages,
// following links inside of them; links that leave one package are looked for
// in all.
func findIn(roots []string, names ...string) ([]byte, error) {
	for _, name := range names {
		for range 8 { // links in a row
			target := ""
			for _, root := range roots {
				file := filepath.Join(root, clean(name))
				info, err := os.Lstat(file)
				if errors.Is(err, fs.ErrNotExist) {
					continue
				}
				if err != nil {
					return nil, err
				}
				if info.Mode().IsRegular() {
					return os.ReadFile(file)
				}
				if target, err = os.Readlink(file); err != nil {
					return nil, err
				}
				break
			}
			if target == "" {
				break
			}
			if !path.IsAbs(target) {
				target = path.Join(path.Dir("/"+clean(name)), target)
			}
			name = target
		}
	}
	return nil, fmt.Errorf("no package has %s", strings.Join(names, " or "))
}

// caBundle puts the certificates of ca-certificates into one file, sorted by
// name as update-ca-certificates does.
func caBundle(roots []string) ([]byte, error) {
	var files []string
	for _, root := range roots {
		m, err := filepath.Glob(filepath.Join(root, "usr/share/ca-certificates/mozilla/*.crt"))
		if err != nil {
			return nil, err
		}
		files = append(files, m...)
	}
	if len(files) == 0 {
		return nil, errors.New("no package has CA certificates")
	}
	slices.SortFunc(files, func(a, b string) int { return strings.Compare(filepath.Base(a), filepath.Base(b)) })
	var out bytes.Buffer
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		out.Write(data)
		if !bytes.HasSuffix(data, []byte("\n")) {
			out.WriteByte('\n')
		}
	}
	return out.Bytes(), nil
}
