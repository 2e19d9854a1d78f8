package compose

import (
	"path"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"
)

// closedPaths are places of the guest that no container may be given: the
// kernel's interfaces, the guest's own programs and state, and everything at
// once. The containers of a privileged project have other ways; this list
// keeps the plain ones honest.
var closedPaths = []string{
	"/proc", "/sys", "/dev", "/run", "/var/run", "/keys", "/init", "/bin", "/sbin", "/lib", "/lib64", "/usr",
	"/etc/hpcr", "/var/lib/containerd", "/var/lib/hpcr", "/newroot",
}

// Closed says whether no container may be given a clean absolute path.
func Closed(p string) bool {
	if p == "/" || p == "/var" || p == "/var/lib" || p == "/etc" {
		return true
	}
	for _, c := range closedPaths {
		if p == c || strings.HasPrefix(p, c+"/") {
			return true
		}
	}
	return false
}

func (c *converter) mounts() error {
	for _, v := range c.cfg.Volumes {
		m := Mount{Kind: v.Type, Target: path.Clean(v.Target), ReadOnly: v.ReadOnly}
		if !path.IsAbs(m.Target) || m.Target == "/" || strings.ContainsRune(v.Target, 0) {
			return c.refuse("volumes", "a mount's target is not an absolute path below the root: correct it")
		}
		var err error
		switch v.Type {
		case types.VolumeTypeBind:
			err = c.bind(v, &m)
		case types.VolumeTypeVolume:
			err = c.volume(v, &m)
		case types.VolumeTypeTmpfs:
			if v.Tmpfs != nil {
				m.Size, m.Mode = int64(v.Tmpfs.Size), v.Tmpfs.Mode
			}
		default:
			err = c.refuse("volumes", "only bind mounts, volumes and tmpfs are supported")
		}
		if err != nil {
			return err
		}
		c.out.Mounts = append(c.out.Mounts, m)
	}
	for _, text := range c.cfg.Tmpfs {
		target, options, _ := strings.Cut(text, ":")
		if !path.IsAbs(target) || path.Clean(target) == "/" {
			return c.refuse("tmpfs", "give an absolute path below the root")
		}
		for _, o := range strings.Split(options, ",") {
			if !tmpfsOption(o) {
				return c.refuse("tmpfs", "the options may be size, mode, uid, gid, nr_inodes, ro, rw, exec, noexec, suid, nosuid, dev and nodev")
			}
		}
		c.out.Mounts = append(c.out.Mounts, Mount{Kind: Memory, Target: path.Clean(target), Options: options})
	}
	return nil
}

func tmpfsOption(o string) bool {
	key, value, has := strings.Cut(o, "=")
	switch key {
	case "", "ro", "rw", "exec", "noexec", "suid", "nosuid", "dev", "nodev":
		return !has
	case "size", "mode", "uid", "gid", "nr_inodes":
		return has && value != "" && strings.Trim(value, "0123456789kmgKMG%") == ""
	}
	return false
}

func (c *converter) bind(v types.ServiceVolumeConfig, m *Mount) error {
	var err error
	if m.Source, err = c.guestPath(v.Source); err != nil {
		return err
	}
	m.Create = true
	if v.Bind != nil {
		m.Create = bool(v.Bind.CreateHostPath)
		switch v.Bind.Propagation {
		case "", types.PropagationPrivate, types.PropagationRPrivate:
		case types.PropagationSlave, types.PropagationRSlave:
			m.Slave = true
		default:
			return c.refuse("volumes", "mounts made in a container cannot be shared with the guest: use rprivate or rslave")
		}
	}
	return nil
}

// guestPath is a path of the guest that a container may be given.
func (c *converter) guestPath(source string) (string, error) {
	if source == "" || strings.ContainsRune(source, 0) {
		return "", c.refuse("volumes", "a bind mount has no source: give a path")
	}
	if source == "~" || strings.HasPrefix(source, "~/") {
		return "", c.refuse("volumes", "there is no home directory in the guest: give a path")
	}
	source = absolute(Dir, source)
	if strings.HasSuffix(source, "/docker.sock") || strings.HasSuffix(source, "/containerd.sock") {
		return "", c.refuse("volumes", "there is no container engine's socket in the guest: remove this mount")
	}
	if Closed(source) {
		return "", c.refuse("volumes", "this part of the guest cannot be mounted into a container: use a contract volume, /var/hyperprotect or a file of the archive")
	}
	return source, nil
}

func (c *converter) volume(v types.ServiceVolumeConfig, m *Mount) error {
	m.Source = v.Source
	if v.Volume != nil {
		m.NoCopy = v.Volume.NoCopy
	}
	if v.Source == "" {
		return nil
	}
	if !nameRE.MatchString(v.Source) {
		return c.refuse("volumes", "a volume's name must be made of letters, digits, dot, dash and underscore")
	}
	decl := c.p.Volumes[v.Source]
	if bool(decl.External) || (decl.Driver != "" && decl.Driver != "local") {
		return c.refuse("volumes", "only local volumes of the project itself are supported: for data that stays, use a volume of the contract")
	}
	if len(decl.DriverOpts) == 0 {
		return nil
	}
	o := decl.DriverOpts
	if len(o) != 3 || o["type"] != "none" || o["o"] != "bind" && o["o"] != "rbind" {
		return c.refuse("volumes", "of a volume's driver_opts only type: none, o: bind and a device are supported, all three")
	}
	var err error
	m.Device, err = c.guestPath(o["device"])
	return err
}

// data covers secrets and configs: small files that the contract brings along.
func (c *converter) data() error {
	for _, s := range c.cfg.Secrets {
		content, ok := c.content(types.FileObjectConfig(c.p.Secrets[s.Source]))
		if !ok {
			return c.refuse("secrets", "a secret's file is not in the archive, or its variable is not set: add it")
		}
		target := s.Target
		if target == "" {
			target = s.Source
		}
		if !path.IsAbs(target) {
			target = path.Join("/run/secrets", target)
		}
		if err := c.addData("secrets", types.FileReferenceConfig(s), target, content); err != nil {
			return err
		}
	}
	for _, s := range c.cfg.Configs {
		content, ok := c.content(types.FileObjectConfig(c.p.Configs[s.Source]))
		if !ok {
			return c.refuse("configs", "a config's file is not in the archive, or its variable is not set: add it")
		}
		target := s.Target
		if target == "" {
			target = s.Source
		}
		if !path.IsAbs(target) {
			target = path.Join("/", target)
		}
		if err := c.addData("configs", types.FileReferenceConfig(s), target, content); err != nil {
			return err
		}
	}
	return nil
}

func (c *converter) content(f types.FileObjectConfig) ([]byte, bool) {
	switch {
	case f.Content != "":
		return []byte(f.Content), true
	case f.Environment != "":
		v, ok := c.env[f.Environment]
		return []byte(v), ok
	case f.File != "":
		name, ok := inArchive(f.File)
		if !ok {
			return nil, false
		}
		if name == dotEnv {
			return FormatEnv(c.env), true
		}
		return c.file(name)
	}
	return nil, false
}

func (c *converter) addData(field string, ref types.FileReferenceConfig, target string, content []byte) error {
	d := Data{Target: path.Clean(target), Mode: 0o444, Data: content}
	if ref.Mode != nil {
		d.Mode = uint32(*ref.Mode) & 0o777
	}
	for text, to := range map[string]*int{ref.UID: &d.UID, ref.GID: &d.GID} {
		if text == "" {
			continue
		}
		n, err := strconv.ParseUint(text, 10, 31)
		if err != nil {
			return c.refuse(field, "uid and gid must be numbers")
		}
		*to = int(n)
	}
	if d.Target == "/" || strings.ContainsRune(d.Target, 0) {
		return c.refuse(field, "a target is not a path below the root: correct it")
	}
	c.out.Data = append(c.out.Data, d)
	return nil
}
