package compose

import (
	"path"
	"slices"

	"github.com/compose-spec/compose-go/v2/override"

	"hpcr/agent/hpl"
)

// extended is a service with what it extends laid under it. seen are the
// services on the way to it.
func (r *reader) extended(services map[string]any, name string, s source, seen []string) (any, error) {
	service, ok := services[name].(map[string]any)
	if !ok || service["extends"] == nil {
		return services[name], nil
	}
	where := s.path(r.load, name, "extends")
	key := s.name + "\x00" + name
	if slices.Contains(seen, key) {
		return nil, hpl.New("HPL06009E", where, "services extend each other in a circle: break it")
	}
	filled, err := r.filled(map[string]any{"extends": service["extends"]}, s)
	if err != nil {
		return nil, err
	}
	ref, ok := filled["extends"].(string)
	file := ""
	if m, is := filled["extends"].(map[string]any); is {
		ref, ok = m["service"].(string)
		file, _ = m["file"].(string)
		for key, v := range m {
			if _, text := v.(string); !text || key != "service" && key != "file" {
				ok = false
			}
		}
	}
	if !ok {
		return nil, hpl.New("HPL06009E", where, "write the name of a service, or a mapping with service and file")
	}
	from, origin := services, s
	if file != "" {
		if from, origin, err = r.base(s, where, file); err != nil {
			return nil, err
		}
	}
	if _, there := from[ref]; !there {
		return nil, hpl.New("HPL06009E", where, "the service that this one extends is not there: correct its name")
	}
	base, err := r.extended(from, ref, origin, append(seen, key))
	if err != nil {
		return nil, err
	}
	under, ok := clone(base).(map[string]any)
	if !ok {
		return nil, hpl.New("HPL06009E", where, "the service that this one extends is not a mapping: correct it")
	}
	merged, err := override.ExtendService(under, service)
	if err != nil {
		return nil, hpl.Wrap(err, "HPL06009E", where, "the service cannot be laid over the one that it extends: give both the same kind of values")
	}
	delete(merged, "extends")
	return merged, nil
}

// base is the services of a file that is extended; what it includes is not
// looked at, as in docker compose.
func (r *reader) base(s source, where, file string) (map[string]any, source, error) {
	name, ok := archived(s.dir, file)
	if !ok {
		return nil, s, hpl.New("HPL06009E", where, "only files of the archive can be extended: give a path inside it")
	}
	doc, err := r.open(name, where)
	if err != nil {
		return nil, s, err
	}
	origin := source{doc: doc, name: name, dir: path.Join(Dir, path.Dir(name)), env: s.env, at: where}
	m, err := doc.model()
	if err != nil {
		return nil, s, err
	}
	settled, err := r.settled([]map[string]any{{"services": m["services"]}}, origin)
	if err != nil {
		return nil, s, err
	}
	services, _ := settled["services"].(map[string]any)
	return services, origin, nil
}
