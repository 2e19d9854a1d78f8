package workload

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	confs "github.com/containerd/continuity/fs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"hpcr/contract/compose"
)

// stage collects a container's bind mounts in a folder of the agent's own, so
// that runc is only ever given paths that no container can change.
type stage struct {
	dir  string
	n    int
	list []specs.Mount
}

func newStage(dir string) (*stage, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return &stage{dir: dir}, nil
}

func (st *stage) next() string {
	st.n++
	return filepath.Join(st.dir, strconv.Itoa(st.n))
}

// bind gives the container exactly what f is open on, which lies at at too.
func (st *stage) bind(f *os.File, target string, readOnly, slave bool) (at string, err error) {
	at = st.next()
	if err := bindFile(f, at, slave); err != nil {
		return "", err
	}
	st.mount(at, target, readOnly, slave)
	return at, nil
}

func (st *stage) mount(source, target string, readOnly, slave bool) {
	options := []string{"rbind", "rprivate", "rw"}
	if slave {
		options[1] = "rslave"
	}
	if readOnly {
		options[2] = "rro"
	}
	st.list = append(st.list, specs.Mount{Destination: target, Type: "bind", Source: source, Options: options})
}

// file makes a file of the agent's and gives it to the container.
func (st *stage) file(target string, data []byte, mode os.FileMode, uid, gid int, readOnly bool) error {
	at := st.next()
	if err := os.WriteFile(at, data, 0o600); err != nil {
		return err
	}
	if err := os.Chown(at, uid, gid); err != nil {
		return err
	}
	if err := os.Chmod(at, mode); err != nil {
		return err
	}
	st.mount(at, target, readOnly, false)
	return nil
}

// drop unmounts and removes everything under the stage's folder.
func dropStage(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, unmount(filepath.Join(dir, e.Name())))
	}
	if err := errors.Join(errs...); err != nil {
		return err // never remove through a mount that is still there
	}
	return os.RemoveAll(dir)
}

// stageAll prepares files, binds and volumes of a service; what a volume is to
// be filled with comes back as fill, target by volume folder.
func (w *Workload) stageAll(s *compose.Service, img *image, st *stage, hostname string, addr netip.Addr) (fill map[string]string, err error) {
	for _, f := range []struct {
		target string
		data   []byte
	}{
		{"/etc/hostname", []byte(hostname + "\n")},
		{"/etc/hosts", w.hosts(s, hostname, addr)},
		{"/etc/resolv.conf", w.resolvConf(s)},
	} {
		if err := st.file(f.target, f.data, 0o644, 0, 0, false); err != nil {
			return nil, err
		}
	}
	fill = map[string]string{}
	covered := map[string]bool{}
	for i, m := range s.Mounts {
		covered[m.Target] = true
		switch m.Kind {
		case compose.Bind:
			err = w.bindSource(st, m)
		case compose.Named:
			err = w.volume(st, s, i, m, fill)
		}
		if err != nil {
			return nil, err
		}
	}
	targets := make([]string, 0, len(img.config.Volumes))
	for target := range img.config.Volumes {
		targets = append(targets, target)
	}
	sort.Strings(targets)
	for i, target := range targets {
		target = path.Join("/", target)
		if covered[target] || target == "/" {
			continue
		}
		if err := w.volume(st, s, len(s.Mounts)+i, compose.Mount{Kind: compose.Named, Target: target}, fill); err != nil {
			return nil, err
		}
	}
	for _, d := range s.Data {
		if err := st.file(d.Target, d.Data, os.FileMode(d.Mode), d.UID, d.GID, true); err != nil {
			return nil, err
		}
	}
	return fill, nil
}

// bindSource opens the source below the folder that it belongs to, so that a
// link planted there by a container leads nowhere else.
func (w *Workload) bindSource(st *stage, m compose.Mount) error {
	f, err := w.openSource(m.Source, m.Create)
	if data, standIn := standIns[m.Source]; standIn && errors.Is(err, fs.ErrNotExist) {
		return st.file(m.Target, data, 0o644, 0, 0, m.ReadOnly)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = st.bind(f, m.Target, m.ReadOnly, m.Slave)
	return err
}

// openSource opens a path of the guest for a container, made if it is missing
// and may be.
func (w *Workload) openSource(source string, create bool) (*os.File, error) {
	root := "/"
	for _, r := range append([]string{compose.Dir}, w.opt.Roots...) {
		if (source == r || strings.HasPrefix(source, r+"/")) && len(r) > len(root) {
			root = r
		}
	}
	_, standIn := standIns[source]
	f, err := openBeneath(root, strings.TrimPrefix(source, root), create && root != "/")
	if root == "/" && create && !standIn && errors.Is(err, fs.ErrNotExist) {
		// The guest's root is read-only: a folder that it lacks is made elsewhere,
		// the same one for all containers.
		if err := os.MkdirAll(w.opt.Made, 0o711); err != nil {
			return nil, err
		}
		return openBeneath(w.opt.Made, source, true)
	}
	return f, err
}

// volume gives a folder of the guest's own that lasts as long as the boot. A
// folder that is still empty is to be filled from the image, as Docker does.
func (w *Workload) volume(st *stage, s *compose.Service, n int, m compose.Mount, fill map[string]string) error {
	if m.Device != "" {
		return w.deviceVolume(st, m, fill)
	}
	name := "v-" + m.Source
	if m.Source == "" {
		name = fmt.Sprintf("a-%s-%d", containerID(s), n)
	}
	dir := filepath.Join(w.opt.Volumes, name)
	if err := os.MkdirAll(w.opt.Volumes, 0o711); err != nil {
		return err
	}
	switch err := os.Mkdir(dir, 0o755); {
	case errors.Is(err, fs.ErrExist):
	case err != nil:
		return err
	default:
		if err := w.furnish(dir, m); err != nil {
			return err
		}
	}
	st.mount(dir, m.Target, m.ReadOnly, false)
	return toFill(fill, dir, m)
}

// deviceVolume gives a folder of the guest's that the volume names, as in a
// contract's volume. Unlike Docker's it is made if it is missing: nobody else
// could make it on a new volume.
func (w *Workload) deviceVolume(st *stage, m compose.Mount, fill map[string]string) error {
	f, err := w.openSource(m.Device, true)
	if err != nil {
		return err
	}
	defer f.Close()
	at, err := st.bind(f, m.Target, m.ReadOnly, false)
	if err != nil {
		return err
	}
	return toFill(fill, at, m)
}

// toFill notes a volume that is still empty, to be filled from the image.
func toFill(fill map[string]string, dir string, m compose.Mount) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if len(entries) == 0 && !m.NoCopy {
		fill[dir] = m.Target
	}
	return nil
}

// furnish gives a new volume what its mount asks for.
func (w *Workload) furnish(dir string, m compose.Mount) error {
	if m.RAM {
		if err := mountMemory(dir, m.Size); err != nil {
			return fmt.Errorf("volume in memory: %w", err)
		}
		w.memory = append(w.memory, dir)
	}
	if m.GID != 0 {
		if err := os.Chown(dir, 0, m.GID); err != nil {
			return err
		}
	}
	mode := os.FileMode(m.Mode & 0o777)
	if mode == 0 {
		return nil
	}
	if m.Mode&0o1000 != 0 {
		mode |= os.ModeSticky
	}
	if m.GID != 0 {
		mode |= os.ModeSetgid
	}
	return os.Chmod(dir, mode)
}

// dropMemory ends the volumes that are in memory.
func (w *Workload) dropMemory() error {
	var errs []error
	for _, dir := range w.memory {
		errs = append(errs, deleteFolder(dir))
	}
	w.memory = nil
	return errors.Join(errs...)
}

func deleteFolder(dir string) error {
	if err := unmount(dir); err != nil {
		return err
	}
	return os.Remove(dir)
}

// fillVolumes copies what the image has at a volume's target into the volume,
// with owners and modes.
func fillVolumes(ctx context.Context, mounts []mount.Mount, fill map[string]string) error {
	if len(fill) == 0 {
		return nil
	}
	return mount.WithReadonlyTempMount(ctx, mounts, func(root string) error {
		for dir, target := range fill {
			// RootPath follows the image's own links as if root were "/"; no
			// process of the image runs yet that could change them.
			src, err := confs.RootPath(root, target)
			if err != nil {
				return err
			}
			fi, err := os.Stat(src)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			if !fi.IsDir() {
				continue
			}
			if err := confs.CopyDir(dir, src); err != nil {
				return fmt.Errorf("fill a volume: %w", err)
			}
		}
		return nil
	})
}

func (w *Workload) hosts(s *compose.Service, hostname string, addr netip.Addr) []byte {
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	if addr.IsValid() {
		name := hostname
		if s.Domainname != "" {
			name = hostname + "." + s.Domainname + " " + hostname
		}
		fmt.Fprintf(&b, "%s\t%s\n", addr, name)
	}
	for _, h := range w.leader(s).ExtraHosts {
		ip := h.Addr
		if h.Gateway {
			if ip = w.gateway(s); !ip.IsValid() {
				ip = netip.AddrFrom4([4]byte{127, 0, 0, 1})
			}
		}
		fmt.Fprintf(&b, "%s\t%s\n", ip, h.Name)
	}
	return []byte(b.String())
}

func (w *Workload) resolvConf(s *compose.Service) []byte {
	var b strings.Builder
	s = w.leader(s)
	switch {
	case len(s.DNS) > 0:
		for _, a := range s.DNS {
			fmt.Fprintf(&b, "nameserver %s\n", a)
		}
	case s.NetworkMode == "host":
		b.Write(w.opt.ResolvConf)
	case len(s.Join) > 0:
		if br := w.bridges[s.Join[0].Network]; br != nil {
			b.Write(br.ResolvConf())
		}
	}
	if len(s.DNSSearch) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(s.DNSSearch, " "))
	}
	if len(s.DNSOptions) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(s.DNSOptions, " "))
	}
	return []byte(b.String())
}
