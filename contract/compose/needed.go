package compose

import (
	"path"
	"slices"
	"strings"

	"hpcr/contract/archive"
)

// Binds says whether a container sees the guest's path, or something in it, by
// a bind mount of it, of something in it, or of a folder above it.
func (p *Project) Binds(guestPath string) bool {
	return p != nil && slices.ContainsFunc(p.Services, func(s Service) bool {
		return slices.ContainsFunc(s.Mounts, func(m Mount) bool {
			p := m.guest()
			return p != "" && (within(p, guestPath) || within(guestPath, p))
		})
	})
}

// guest is the path of the guest that a mount shows; "" = none.
func (m Mount) guest() string {
	if m.Kind == Bind {
		return m.Source
	}
	return m.Device
}

// within says whether a clean path is dir or lies in it.
func within(p, dir string) bool {
	return p == dir || strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/")
}

// Needed is the project without the files that no container mounts: all else
// that was in the archive has had its effect. A folder stays, since it may be
// the source of a mount; it holds no secret.
func (p *Project) Needed() *Project {
	if p == nil {
		return nil
	}
	out := *p
	out.Files = slices.DeleteFunc(slices.Clone(p.Files), func(f archive.File) bool {
		return !f.Dir && !p.bindsFile(path.Join(Dir, f.Name))
	})
	return &out
}

// bindsFile is Binds for what has nothing in it.
func (p *Project) bindsFile(file string) bool {
	return slices.ContainsFunc(p.Services, func(s Service) bool {
		return slices.ContainsFunc(s.Mounts, func(m Mount) bool {
			p := m.guest()
			return p != "" && within(file, p)
		})
	})
}
