package compose

import (
	"context"
	"errors"
	"path"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/interpolation"
	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/paths"
	"github.com/compose-spec/compose-go/v2/types"

	"hpcr/agent/hpl"
)

// settled is what does not depend on its file any more: variables are filled in
// and paths are absolute. The whole model is filled in once more later, so a
// dollar sign is doubled.
func (r *reader) settled(models []map[string]any, s source) (m map[string]any, err error) {
	details := types.ConfigDetails{WorkingDir: s.dir, ConfigFiles: configFiles(s.name, models), Environment: loaderEnv(s.env)}
	m, err = loader.LoadModelWithContext(context.Background(), details, r.options, asWritten, func(o *loader.Options) {
		o.SkipInterpolation = r.raw
		o.Interpolate.LookupValue, o.Interpolate.Substitute = r.lookup(details.Environment), substitute
	})
	if err == nil && homely(m) {
		err = hpl.New("HPL06009E", s.at, "there is no home directory in the guest: give a path")
	}
	if err == nil {
		err = paths.ResolveRelativePaths(m, s.dir, nil)
	}
	if err != nil {
		return nil, r.elsewhere(err, s)
	}
	if r.raw {
		return m, nil
	}
	return escaped(m).(map[string]any), nil
}

// filled replaces the variables of a part of the model.
func (r *reader) filled(m map[string]any, s source) (map[string]any, error) {
	out, err := interpolation.Interpolate(m, interpolation.Options{LookupValue: r.lookup(loaderEnv(s.env)), Substitute: substitute})
	if err != nil {
		return nil, r.elsewhere(err, s)
	}
	return out, nil
}

// elsewhere is invalid for a file that is not the first one.
func (r *reader) elsewhere(err error, s source) error {
	e := (*hpl.Error)(nil)
	if s.at == "" || errors.As(err, &e) {
		return r.invalid(err)
	}
	return hpl.Wrap(err, "HPL06009E", s.at, "the compose file that is named here does not follow the Compose specification: check it with docker compose config")
}

// homely says whether a path begins in a home directory, which the loader would
// take from the process.
func homely(v any) bool {
	switch v := v.(type) {
	case map[string]any:
		for key, e := range v {
			text, _ := e.(string)
			if (key == "source" || key == "file" || key == "path") && strings.HasPrefix(text, "~") || homely(e) {
				return true
			}
		}
	case []any:
		return slices.ContainsFunc(v, homely)
	}
	return false
}

func escaped(v any) any {
	return mapped(v, func(text string) string { return strings.ReplaceAll(text, "$", "$$") })
}

func clone(v any) any { return mapped(v, func(text string) string { return text }) }

// mapped is a deep copy with each text value changed.
func mapped(v any, change func(string) string) any {
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for key, e := range v {
			out[key] = mapped(e, change)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = mapped(e, change)
		}
		return out
	case string:
		return change(v)
	}
	return v
}

func absolute(dir, p string) string {
	if path.IsAbs(p) {
		return path.Clean(p)
	}
	return path.Join(dir, p)
}

// archived is inArchive for a path that begins in dir.
func archived(dir, p string) (string, bool) { return inArchive(absolute(dir, p)) }
