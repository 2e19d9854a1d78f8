package workload

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"hpcr/agent/hpl"
	"hpcr/contract/compose"
)

func TestMounts(t *testing.T) {
	b := newBench(t)
	ref := b.hub.push(t, "app", busybox(t, func(c *v1.ConfigFile) { c.Config.Volumes = map[string]struct{}{"/declared": {}} }))
	disk := b.dir + "/mnt"
	if err := os.MkdirAll(disk+"/sub", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(disk+"/sub/kept", []byte("on the disk\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("sub", disk+"/current"); err != nil {
		t.Fatal(err)
	}
	w := b.up(t, `
services:
  a:
    image: `+ref+`
    network_mode: none
    user: app
    group_add: ["77"]
    hostname: the-host
    read_only: true
    extra_hosts: ["other:10.9.8.7"]
    tmpfs: /scratch:size=64k,mode=1777
    shm_size: 1m
    volumes:
      - `+disk+`/current:/disk
      - `+disk+`/made/here:/made
      - `+disk+`/sub:/ro:ro
      - named:/data
      - /anonymous
    secrets: [{source: token, target: t, mode: 0440, uid: "1234"}]
    stop_grace_period: 1s
    command:
      - sh
      - -c
      - |
        id; hostname; cat /etc/hostname; grep other /etc/hosts
        cat /disk/kept /data/shipped /run/secrets/t
        stat -c '%u:%g %a' /data/shipped /run/secrets/t
        touch /scratch/x && echo scratch is writable
        touch /anonymous/x && echo anonymous is writable
        touch /ro/x 2>&1; touch /x 2>&1
        mount | grep -E ' /(dev/shm|scratch|declared) '
        echo done; exec sleep 1000
volumes: {named: }
secrets: {token: {environment: TOKEN}}
`)
	waitFor(t, "output", func() bool {
		return strings.Contains(b.out.get("a"), "done\n") || strings.Contains(b.out.get("a!"), "err")
	})
	out := b.out.get("a") + b.out.get("a!")
	for _, want := range []string{
		"uid=1234(app) gid=1234(app) groups=77(extra),1234(app)\n", "the-host\nthe-host\n", "10.9.8.7\tother",
		"on the disk\nfrom the image\nhush\n", "1234:77 640\n1234:0 440\n", "scratch is writable", "anonymous/x: Permission denied",
		"/ro/x: Read-only file system", "/x: Read-only file system", "size=64k", "size=1024k", " /declared ",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
	if _, err := os.Stat(disk + "/made/here"); err != nil {
		t.Errorf("a missing source was not made: %v", err)
	}
	b.down(t, w)
	for _, left := range []string{b.dir + "/w/c1", b.dir + "/n/hpcr-c1", "/sys/fs/cgroup/hpcr/c1"} {
		if _, err := os.Stat(left); err == nil {
			t.Errorf("%s is left over", left)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), b.dir+"/w") {
		t.Error("mounts are left over")
	}
	if data, err := os.ReadFile(disk + "/sub/kept"); err != nil || string(data) != "on the disk\n" {
		t.Errorf("the disk's content did not survive the clean-up: %q %v", data, err)
	}
}

// A container plants links in its volume and hopes for the next boot.
func TestBindStaysInItsVolume(t *testing.T) {
	b := newBench(t)
	disk := b.dir + "/mnt"
	outside := b.dir + "/outside"
	if err := os.MkdirAll(outside, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(outside+"/secret", []byte("of the guest"), 0o600); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{"absolute": outside, "relative": "../outside", "proc": "/proc/self/root" + outside, "file": outside + "/secret"} {
		if err := os.Symlink(to, filepath.Join(disk, link)); err != nil {
			t.Fatal(err)
		}
		t.Run(link, func(t *testing.T) {
			for _, create := range []bool{false, true} {
				f, err := openBeneath(disk, link, create)
				if err != nil {
					continue
				}
				got, lerr := os.Readlink("/proc/self/fd/" + itoa(int(f.Fd())))
				f.Close()
				if lerr != nil || (got != disk && !strings.HasPrefix(got, disk+"/")) {
					t.Errorf("led to %q %v", got, lerr)
				}
			}
		})
	}
	entries, err := os.ReadDir(outside)
	if err != nil || len(entries) != 1 {
		t.Errorf("something was made outside: %v %v", entries, err)
	}
	t.Run("a volume below another's mount, whose place is a link by now", func(t *testing.T) {
		if err := os.MkdirAll(outside+"/inner", 0o755); err != nil {
			t.Fatal(err)
		}
		for _, root := range []string{disk + "/absolute", disk + "/absolute/inner"} {
			if f, err := openBeneath(root, "secret", true); !errors.Is(err, syscall.ELOOP) {
				t.Errorf("%s: got %v %v", root, f, err)
			}
		}
	})
	t.Run("from the root no link counts", func(t *testing.T) {
		if f, err := openBeneath("/", disk+"/absolute", true); !errors.Is(err, syscall.ELOOP) {
			t.Errorf("got %v %v", f, err)
		}
	})
}

func TestBindFileIsWhatWasChecked(t *testing.T) {
	b := t.TempDir()
	for _, d := range []string{"checked", "swapped"} {
		if err := os.MkdirAll(b+"/"+d+"/in", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(b+"/"+d+"/in/name", []byte(d), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	f, err := openBeneath(b+"/checked", "in", false)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.Rename(b+"/checked", b+"/away"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(b+"/swapped", b+"/checked"); err != nil {
		t.Fatal(err)
	}
	if err := bindFile(f, b+"/at", false); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unmount(b + "/at"); err != nil {
			t.Error(err)
		}
	}()
	if data, err := os.ReadFile(b + "/at/name"); err != nil || string(data) != "checked" {
		t.Errorf("mounted %q %v", data, err)
	}
}

func TestNetnsLivesAndGoes(t *testing.T) {
	path := t.TempDir() + "/ns"
	if err := newNamespace(path, netNamespace); err != nil {
		t.Fatal(err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil || st.Type != unix.NSFS_MAGIC {
		t.Errorf("not a namespace: %x %v", st.Type, err)
	}
	if err := newNamespace(path, netNamespace); err == nil {
		t.Error("made the same namespace twice")
	}
	for range 2 {
		if err := deleteNamespace(path); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("still there")
	}
}

func TestMissingBindSourceNamesTheService(t *testing.T) {
	b := newBench(t)
	ref := b.hub.push(t, "app", busybox(t, nil))
	if err := os.Symlink("/var", b.dir+"/mnt/etc"); err != nil {
		t.Fatal(err)
	}
	_, err := Run(t.Context(), b.options(t, project(t, `
services:
  a:
    image: `+ref+`
    network_mode: none
    volumes: [{type: bind, source: `+b.dir+`/mnt/etc, target: /x, bind: {create_host_path: false}}]
`, nil)))
	var e *hpl.Error
	if !errors.As(err, &e) || e.Code != "HPL08004E" || !errors.Is(err, syscall.ENOENT) {
		t.Fatalf("got %v", err)
	}
}

func TestStandIns(t *testing.T) {
	loc, err := time.LoadLocationFromTZData("UTC", standIns["/etc/localtime"])
	if err != nil {
		t.Fatal(err)
	}
	if name, offset := time.Unix(1<<31, 0).In(loc).Zone(); name != "UTC" || offset != 0 {
		t.Errorf("%s %d", name, offset)
	}
	const source = "/nowhere/localtime"
	standIns[source] = standIns["/etc/localtime"]
	defer delete(standIns, source)
	st, err := newStage(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	w := &Workload{}
	if err := w.bindSource(st, compose.Mount{Kind: compose.Bind, Source: source, Target: "/etc/localtime", ReadOnly: true, Create: true}); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(st.list[0].Source)
	if err != nil || string(data) != string(standIns[source]) {
		t.Errorf("%q %v", data, err)
	}
	if _, err := os.Stat("/nowhere"); err == nil {
		t.Error("a folder was made for it")
	}
}
