package compose

import (
	"bytes"
	"maps"
	"path"
	"regexp"
	"slices"
	"sort"
	"strings"

	"github.com/compose-spec/compose-go/v2/dotenv"
	"github.com/compose-spec/compose-go/v2/types"

	"hpcr/agent/hpl"
	"hpcr/contract/archive"
)

const dotEnv = ".env"

// mergeEnv lays the contract's environment over the archive's .env.
func mergeEnv(files []archive.File, env map[string]string) (map[string]string, error) {
	merged := map[string]string{}
	for _, f := range files {
		if f.Name != dotEnv || f.Dir {
			continue
		}
		shipped, err := parseEnv(f.Data, func(name string) (string, bool) { v, ok := env[name]; return v, ok })
		if err != nil {
			return nil, hpl.Wrap(err, "HPL06009E", Root+"/archive", "the archive's .env file is not made of NAME=value lines: correct it")
		}
		maps.Copy(merged, shipped)
	}
	maps.Copy(merged, env)
	return merged, nil
}

func parseEnv(text []byte, lookup dotenv.LookupFn) (vars map[string]string, err error) {
	if len(text) > maxFile {
		return nil, hpl.New("HPL06009E", Root+"/archive", "an environment file is larger than 1 MiB: make it smaller")
	}
	defer recovered(&err)
	return dotenv.ParseWithLookup(bytes.NewReader(text), lookup)
}

// withEnvFile is the archive's files with the merged environment as .env.
func (l *load) withEnvFile() []archive.File {
	out := make([]archive.File, 0, len(l.files)+1)
	for _, f := range l.files {
		if f.Name != dotEnv {
			out = append(out, f)
		}
	}
	return append(out, archive.File{Name: dotEnv, Mode: 0o644, Data: FormatEnv(l.env)})
}

var plainValue = regexp.MustCompile(`^[A-Za-z0-9_./:@%+,=-]*$`)

// FormatEnv writes variables as a .env file that compose reads back unchanged:
// sorted NAME=value lines, quoted where a value needs it. Inside single quotes
// compose knows no escape but \', so values with a backslash go into double
// quotes.
func FormatEnv(env map[string]string) []byte {
	var b bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(env)) {
		value := env[name]
		b.WriteString(name + "=")
		switch {
		case plainValue.MatchString(value):
			b.WriteString(value)
		case !strings.Contains(value, `\`):
			b.WriteString("'" + strings.ReplaceAll(value, "'", `\'`) + "'")
		default:
			b.WriteString(`"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `$`, `\$`).Replace(value) + `"`)
		}
		b.WriteByte('\n')
	}
	return b.Bytes()
}

// environment is what a service's container sees: its env files in order, then
// its own list. A name without a value comes from the merged environment, or
// is left out.
func (l *load) environment(s types.ServiceConfig) (Env, error) {
	at := func(field string) string { return servicePath(l.doc.index[s.Name], field) }
	vars := map[string]string{}
	for _, ef := range s.EnvFiles {
		if ef.Format != "" && ef.Format != "raw" {
			return nil, hpl.New("HPL06009E", at("env_file"), "the format of an env file must be raw or absent")
		}
		found, err := l.envFile(ef, vars)
		if err != nil {
			return nil, hpl.Wrap(err, "HPL06009E", at("env_file"), "an environment file is not made of NAME=value lines: correct it")
		}
		if !found && bool(ef.Required) {
			return nil, hpl.New("HPL06009E", at("env_file"), "an environment file is not in the archive: add it, or correct its name")
		}
	}
	for name, value := range s.Environment {
		switch {
		case value != nil:
			vars[name] = *value
		default:
			if v, ok := l.env[name]; ok {
				vars[name] = v
			} else {
				delete(vars, name)
				l.unset[name] = true
			}
		}
	}
	for name, value := range vars {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.Contains(value, "\x00") {
			return nil, hpl.New("HPL06009E", at("environment"), "a variable has an empty name, or holds a NUL byte: correct it")
		}
	}
	return sortedEnv(vars), nil
}

func sortedEnv(vars map[string]string) Env {
	var env Env
	for name, value := range vars {
		env = append(env, Var{Name: name, Value: value})
	}
	sort.Slice(env, func(i, j int) bool { return env[i].Name < env[j].Name })
	return env
}

// envFile reads one file of the archive into vars; false means not there.
func (l *load) envFile(ef types.EnvFile, vars map[string]string) (bool, error) {
	name, ok := inArchive(ef.Path)
	if !ok {
		return false, nil
	}
	if name == dotEnv {
		maps.Copy(vars, l.env)
		return true, nil
	}
	data, ok := l.file(name)
	if !ok {
		return false, nil
	}
	if ef.Format == "raw" {
		for line := range strings.Lines(string(data)) {
			line = strings.TrimRight(line, "\r\n")
			if k, v, ok := strings.Cut(line, "="); ok && !strings.HasPrefix(line, "#") {
				vars[k] = v
			}
		}
		return true, nil
	}
	got, err := parseEnv(data, func(name string) (string, bool) {
		if v, ok := vars[name]; ok {
			return v, ok
		}
		v, ok := l.env[name]
		return v, ok
	})
	if err != nil {
		return false, err
	}
	maps.Copy(vars, got)
	return true, nil
}

func (l *load) file(name string) ([]byte, bool) {
	for _, f := range l.files {
		if f.Name == name && !f.Dir {
			return f.Data, true
		}
	}
	return nil, false
}

// inArchive maps a path of the compose file to a name in the archive.
func inArchive(p string) (string, bool) {
	if !path.IsAbs(p) {
		p = path.Join(Dir, p)
	}
	return strings.CutPrefix(path.Clean(p), Dir+"/")
}
