package initramfs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func testIndex(t *testing.T) *moduleIndex {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"modules.dep": `kernel/a.ko: kernel/b.ko kernel/c-d.ko
kernel/b.ko: kernel/c-d.ko
kernel/c-d.ko:
kernel/crc32c_generic.ko:
kernel/libcrc32c.ko.xz:
kernel/nf.ko: kernel/libcrc32c.ko.xz
kernel/late.ko:
kernel/x.ko:
kernel/y.ko:
`,
		"modules.softdep": "# comment\nsoftdep libcrc32c pre: crc32c\nsoftdep nf post: late\nsoftdep a pre: not-in-this-kernel\nsoftdep x pre: y\nsoftdep y pre: x\n",
		"modules.alias":   "alias crc32c crc32c_generic\nalias pci:v*d* b\nalias wish a\n",
		"modules.builtin": "kernel/fs/ext4/ext4.ko\nkernel/drivers/virtio/virtio_pci.ko\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	x, err := readModuleIndex(dir)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func TestModulesLoadInAnOrderThatWorks(t *testing.T) {
	x := testIndex(t)
	for name, tc := range map[string]struct{ names, want []string }{
		"dependencies come first":                    {[]string{"a"}, []string{"kernel/c-d.ko", "kernel/b.ko", "kernel/a.ko"}},
		"each once":                                  {[]string{"b", "a"}, []string{"kernel/c-d.ko", "kernel/b.ko", "kernel/a.ko"}},
		"dash and underscore are one":                {[]string{"c_d", "c-d"}, []string{"kernel/c-d.ko"}},
		"soft dependencies count, by alias and late": {[]string{"nf"}, []string{"kernel/crc32c_generic.ko", "kernel/libcrc32c.ko.xz", "kernel/nf.ko", "kernel/late.ko"}},
		"built in costs nothing":                     {[]string{"ext4", "virtio_pci"}, nil},
		"an alias stands for its module":             {[]string{"wish"}, []string{"kernel/c-d.ko", "kernel/b.ko", "kernel/a.ko"}},
		"a circle of soft dependencies ends":         {[]string{"x"}, []string{"kernel/y.ko", "kernel/x.ko"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := x.closure(tc.names)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestAModuleTheKernelLacksFailsTheBuild(t *testing.T) {
	if _, err := testIndex(t).closure([]string{"a", "no_such"}); err == nil {
		t.Error("a module that does not exist was taken")
	}
}
