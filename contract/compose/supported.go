package compose

import (
	"errors"
	"maps"
	"regexp"
	"slices"
	"sort"
	"strings"

	"github.com/distribution/reference"

	"hpcr/agent/hpl"
)

// checkSupported refuses by name what this guest does not do: all of it, for an
// author should not have to come back for each. A path names only keys that the
// specification defines, and places.
func (l *load) checkSupported(raw map[string]any) error {
	var errs []error
	services, _ := raw["services"].(map[string]any)
	for _, name := range l.names() {
		at := servicePath(l.doc.index[name], "")
		if s, ok := services[name].(map[string]any); ok {
			errs = append(errs, checkTree("services.*", at, s))
		} else {
			errs = append(errs, hpl.New("HPL06009E", at, "the service is not a mapping: give it an image"))
		}
	}
	for _, section := range []string{"networks", "volumes", "secrets", "configs"} {
		m, _ := raw[section].(map[string]any)
		for _, name := range sortedKeys(m) {
			at := Root + "/" + section + "/" + place(slices.Index(l.order[section], name))
			errs = append(errs, checkTree(section+".*", at, m[name]))
		}
	}
	for _, key := range sortedKeys(raw) {
		errs = append(errs, checkKey("", Root, key))
	}
	return errors.Join(errs...)
}

// checkTree checks what stands below a pattern.
func checkTree(pattern, at string, v any) error {
	var errs []error
	switch v := v.(type) {
	case map[string]any:
		for i, key := range sortedKeys(v) {
			switch {
			case fixed[pattern]:
				if err := checkKey(pattern, at, key); err != nil {
					errs = append(errs, err)
				} else {
					errs = append(errs, checkTree(join(pattern, key), at+"/"+key, v[key]))
				}
			case strings.HasPrefix(key, "x-"):
			default:
				errs = append(errs, checkTree(pattern+".*", at+"/"+place(i), v[key]))
			}
		}
	case []any:
		for i, item := range v {
			errs = append(errs, checkTree(pattern+".#", at+"/"+place(i), item))
		}
	}
	return errors.Join(errs...)
}

// checkKey checks one key of a mapping whose keys the specification defines.
func checkKey(pattern, at, key string) error {
	name := join(pattern, key)
	if strings.HasPrefix(key, "x-") || key == "#extensions" || supported[name] {
		return nil
	}
	for _, list := range []map[string]string{refused, obsolete} {
		if why, ok := list[name]; ok {
			return hpl.New("HPL06009E", strings.TrimSuffix(at, "/")+"/"+key, why)
		}
	}
	return hpl.New("HPL06009E", at, "there is a key that Compose does not define: remove it")
}

// fixed are the patterns whose keys the specification defines.
var fixed = func() map[string]bool {
	all := map[string]bool{"": true}
	for name := range supported {
		if i := strings.LastIndex(name, "."); i >= 0 {
			all[name[:i]] = true
		}
	}
	return all
}()

func place(i int) string {
	if i < 0 {
		i = 0
	}
	return "#" + itoa(i+1)
}

var pinnedRE = regexp.MustCompile(`^.+@sha256:([0-9a-f]{64})$`)

// Pinned says whether a reference, as written, ends in a literal digest.
func Pinned(image string) bool { return pinnedRE.MatchString(image) }

// checkPinned wants a literal digest in every image, and returns them.
func (l *load) checkPinned(raw map[string]any) (map[string]string, error) {
	services, _ := raw["services"].(map[string]any)
	digests := map[string]string{}
	var errs []error
	for _, name := range l.names() {
		s, ok := services[name].(map[string]any)
		if !ok {
			continue // refused already
		}
		text, _ := s["image"].(string)
		m := pinnedRE.FindStringSubmatch(text)
		switch {
		case text == "":
			errs = append(errs, hpl.New("HPL06009E", servicePath(l.doc.index[name], "image"), "the service has no image: give it one, with its digest"))
		case m == nil:
			errs = append(errs, hpl.New("HPL06010E", servicePath(l.doc.index[name], "image"),
				"the image is not pinned by a digest: write it out as NAME@sha256: and 64 lower-case hex digits"))
		default:
			digests[name] = "sha256:" + m[1]
		}
	}
	return digests, errors.Join(errs...)
}

// ParseImage is image for a reference of which the digest is known.
func ParseImage(text, digest string) (Image, bool) { return image(text, digest) }

// image parses the reference after interpolation; its digest must still be
// the literal one.
func image(text, digest string) (Image, bool) {
	named, err := reference.ParseNormalizedNamed(text)
	if err != nil {
		return Image{}, false
	}
	canonical, ok := named.(reference.Canonical)
	if !ok || canonical.Digest().String() != digest {
		return Image{}, false
	}
	img := Image{Name: named.Name(), Digest: digest}
	if tagged, ok := named.(reference.Tagged); ok {
		img.Tag = tagged.Tag()
	}
	return img, true
}

func sortedKeys[V any](m map[string]V) []string {
	keys := slices.Collect(maps.Keys(m))
	sort.Strings(keys)
	return keys
}
