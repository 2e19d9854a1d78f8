package compose

import (
	"errors"
	"maps"
	"regexp"
	"slices"
	"sort"
	"strings"

	"github.com/compose-spec/compose-go/v2/template"
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

const unpinned = "the image is neither pinned by a digest nor covered by a key: write it out as NAME@sha256: and 64 lower-case hex digits, or give its signer's key"

// checkPinned wants a literal digest in every image, and returns them. Where
// there are keys, "" stands for an image that one of them is for.
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
		case m == nil && !l.covered(text):
			errs = append(errs, hpl.New("HPL06010E", servicePath(l.doc.index[name], "image"), unpinned))
		case m == nil:
		default:
			digests[name] = "sha256:" + m[1]
		}
	}
	return digests, errors.Join(errs...)
}

// covered says whether there is a key for an image, its variables filled in.
func (l *load) covered(text string) bool {
	if len(l.opt.Trust) == 0 {
		return false
	}
	full, err := template.SubstituteWithOptions(text, func(name string) (string, bool) { v, ok := l.env[name]; return v, ok }, template.WithoutLogging)
	if err != nil {
		return false
	}
	s := Service{}
	var ok bool
	s.Image, ok = ParseImage(full, "")
	return ok && len(l.opt.Trust.For(s.Signed())) > 0
}

// ParseImage parses a reference after interpolation. A literal digest must
// still be its own; "" is none, and then the tag counts, by default "latest".
func ParseImage(text, digest string) (Image, bool) {
	named, err := reference.ParseNormalizedNamed(text)
	if err != nil {
		return Image{}, false
	}
	canonical, ok := named.(reference.Canonical)
	switch {
	case digest != "" && (!ok || canonical.Digest().String() != digest):
		return Image{}, false
	case ok && canonical.Digest().Algorithm() != "sha256":
		return Image{}, false
	case ok:
		digest = canonical.Digest().String()
	default:
		named = reference.TagNameOnly(named)
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
