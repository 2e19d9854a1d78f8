package compose

import (
	"maps"
	"path"
	"reflect"
	"slices"

	"hpcr/agent/hpl"
)

// Bounds of what include and extends open together: a file that is included
// twice, and includes one twice, makes a tree.
const (
	maxOpened = 100
	maxText   = 4 << 20
)

// The loader reads included and extended files from the file system. There is
// none here, so both are done on the parsed files before it sees them, by its
// own functions for paths, variables and merging.

// reader brings the archive's compose files into one model.
type reader struct {
	*load
	raw    bool // variables stay as they are written
	opened int  // files
	text   int  // bytes of them
}

// source is a compose file on its way into the model.
type source struct {
	doc   *document
	name  string            // in the archive
	dir   string            // where its relative paths begin
	env   map[string]string // its variables
	chain []string          // files that include it
	at    string            // of the include in the first file; "" = the first file itself
}

// path is where an error in one of the source's services points.
func (s source) path(l *load, service, field string) string {
	if s.at == "" {
		return servicePath(l.doc.index[service], field)
	}
	return s.at
}

// models are the first file and its override with all that they include and
// extend. The loader changes what it is given: they are made anew for each use.
func (l *load) models(raw bool) ([]map[string]any, error) {
	r := &reader{load: l, raw: raw}
	first, err := r.flat(source{doc: l.doc, name: l.name, dir: Dir, env: l.env})
	if err != nil {
		return nil, err
	}
	models := []map[string]any{first}
	for _, name := range overrideNames {
		if _, there := l.file(name); !there {
			continue
		}
		over, err := r.open(name, Root)
		if err != nil {
			return nil, err
		}
		m, err := r.flat(source{doc: over, name: name, dir: Dir, env: l.env})
		if err != nil {
			return nil, err
		}
		return append(models, m), nil
	}
	return models, nil
}

// open parses a file of the archive.
func (l *load) open(name, at string) (*document, error) {
	text, ok := l.file(name)
	if !ok {
		return nil, hpl.New("HPL06009E", at, "the compose file that is named here is not in the archive: add it, or correct its name")
	}
	return parse(text, at)
}

func (r *reader) open(name, at string) (*document, error) {
	if r.opened++; r.opened > maxOpened {
		return nil, hpl.New("HPL06009E", at, "include and extends open more than 100 files: use fewer")
	}
	text, _ := r.file(name)
	if r.text += len(text); r.text > maxText {
		return nil, hpl.New("HPL06009E", at, "include and extends open more than 4 MiB of text: use less")
	}
	return r.load.open(name, at)
}

// flat is a file's model without include and extends.
func (r *reader) flat(s source) (map[string]any, error) {
	m, err := s.doc.model()
	if err != nil {
		return nil, err
	}
	if s.at == "" {
		r.note(s.doc, m)
	}
	if err := r.include(m, s); err != nil {
		return nil, err
	}
	services, _ := m["services"].(map[string]any)
	for _, name := range sortedKeys(services) {
		if services[name], err = r.extended(services, name, s, nil); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// note numbers what a model brings in, behind all that is numbered already.
func (l *load) note(d *document, m map[string]any) {
	for _, section := range []string{"services", "networks", "volumes", "secrets", "configs"} {
		entries, _ := m[section].(map[string]any)
		// What comes in by a merge key does not stand in the section itself.
		for _, name := range slices.Concat(mappingKeys(d.root, section), sortedKeys(entries)) {
			if _, there := entries[name]; there && !slices.Contains(l.order[section], name) {
				l.order[section] = append(l.order[section], name)
				if section == "services" {
					l.doc.index[name] = len(l.order[section])
				}
			}
		}
	}
}

// include brings in the files that a model includes, each with the folder and
// the variables that it asks for.
func (r *reader) include(m map[string]any, s source) error {
	list, ok := m["include"]
	delete(m, "include")
	if !ok || list == nil {
		return nil
	}
	filled, err := r.filled(map[string]any{"include": list}, s)
	if err != nil {
		return err
	}
	items, ok := filled["include"].([]any)
	if !ok {
		return hpl.New("HPL06009E", at(s.at, Root+"/include"), "include is not a list: write one, with a file of the archive in each line")
	}
	for i, item := range items {
		sub := source{at: at(s.at, Root+"/include/"+place(i)), chain: append(slices.Clone(s.chain), s.name)}
		inc, err := includeItem(item, sub.at)
		if err != nil {
			return err
		}
		if err := r.included(m, s, sub, inc); err != nil {
			return err
		}
	}
	return nil
}

func at(outer, own string) string {
	if outer != "" {
		return outer
	}
	return own
}

type included struct {
	paths, envFiles []string
	dir             string
}

func includeItem(item any, at string) (inc included, err error) {
	bad := func() (included, error) {
		return inc, hpl.New("HPL06009E", at, "an entry of include is a file's name, or a mapping with path, project_directory and env_file: correct it")
	}
	m, ok := item.(map[string]any)
	if !ok {
		m = map[string]any{"path": item}
	}
	for key, v := range m {
		list, ok := v.([]any)
		if !ok {
			list = []any{v}
		}
		var texts []string
		for _, one := range list {
			text, ok := one.(string)
			if !ok || text == "" {
				return bad()
			}
			texts = append(texts, text)
		}
		switch {
		case key == "path":
			inc.paths = texts
		case key == "env_file":
			inc.envFiles = texts
		case key == "project_directory" && len(texts) == 1:
			inc.dir = texts[0]
		default:
			return bad()
		}
	}
	if len(inc.paths) == 0 {
		return bad()
	}
	return inc, nil
}

// included reads one entry of include, whose further files lie over the first,
// and lays it beside what m has.
func (r *reader) included(m map[string]any, s, sub source, inc included) error {
	var names []string
	for _, p := range inc.paths {
		name, ok := archived(s.dir, p)
		if !ok {
			return hpl.New("HPL06009E", sub.at, "only files of the archive can be included: give a path inside it")
		}
		if name == s.name || slices.Contains(sub.chain, name) {
			return hpl.New("HPL06009E", sub.at, "compose files include each other in a circle: break it")
		}
		names = append(names, name)
	}
	sub.dir = path.Join(Dir, path.Dir(names[0]))
	if inc.dir != "" {
		sub.dir = absolute(s.dir, inc.dir)
	}
	var err error
	if sub.env, err = r.includedEnv(s, sub, inc.envFiles); err != nil {
		return err
	}
	var models []map[string]any
	var docs []*document
	for _, name := range names {
		sub.name = name
		if sub.doc, err = r.open(name, sub.at); err != nil {
			return err
		}
		one, err := r.flat(sub)
		if err != nil {
			return err
		}
		models, docs = append(models, one), append(docs, sub.doc)
	}
	settled, err := r.settled(models, sub)
	if err != nil {
		return err
	}
	for _, section := range []string{"services", "networks", "volumes", "secrets", "configs", "jobs", "models"} {
		from, _ := settled[section].(map[string]any)
		if len(from) == 0 {
			continue
		}
		to, ok := m[section].(map[string]any)
		if !ok {
			to = map[string]any{}
			m[section] = to
		}
		for name, v := range from {
			if there, ok := to[name]; ok && !reflect.DeepEqual(there, v) {
				return hpl.New("HPL06009E", sub.at, "an included file defines something that is defined elsewhere, and in another way: give it another name")
			}
			to[name] = v
		}
	}
	for _, d := range docs {
		r.note(d, settled)
	}
	return nil
}

// includedEnv is the environment of an included file: its env files, else the
// .env of its folder, under what is set already.
func (r *reader) includedEnv(s, sub source, files []string) (map[string]string, error) {
	env := maps.Clone(s.env)
	if len(files) == 0 {
		name, ok := inArchive(path.Join(sub.dir, dotEnv))
		if _, there := r.file(name); !ok || !there || name == dotEnv {
			return env, nil
		}
		files = []string{path.Join(sub.dir, dotEnv)}
	}
	shipped := map[string]string{}
	for _, file := range files {
		name, ok := archived(s.dir, file)
		data, there := r.file(name)
		if !ok || !there {
			return nil, hpl.New("HPL06009E", sub.at, "an env_file of include is not in the archive: add it, or correct its name")
		}
		vars, err := parseEnv(data, func(name string) (string, bool) {
			if v, ok := s.env[name]; ok {
				return v, ok
			}
			v, ok := shipped[name]
			return v, ok
		})
		if err != nil {
			return nil, hpl.Wrap(err, "HPL06009E", sub.at, "an env_file of include is not made of NAME=value lines: correct it")
		}
		maps.Copy(shipped, vars)
	}
	maps.Copy(shipped, env)
	return shipped, nil
}
