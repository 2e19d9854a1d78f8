package compose

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"sort"
	"strings"
	"sync"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/template"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/sirupsen/logrus"

	"hpcr/agent/hpl"
	"hpcr/contract/archive"
	"hpcr/contract/trust"
)

// Options are the image's policy as far as it touches a project.
type Options struct {
	Privileged bool         // containers with power over the guest are allowed
	Trust      trust.Policy // for images without a literal digest
}

// Load reads the project out of the archive's files. The environment is the
// contract's merged one; it is laid over a ".env" of the archive. Errors are
// *hpl.Error, or several joined: HPL06008E without a compose file, HPL06009E for
// what is wrong or not supported in it, HPL06010E for an image that has neither a
// literal digest nor a key in Options.Trust.
func Load(files []archive.File, env map[string]string, opt Options) (*Project, error) {
	files, name, err := locate(files)
	if err != nil {
		return nil, err
	}
	defer quiet()()

	merged, err := mergeEnv(files, env)
	if err != nil {
		return nil, err
	}
	l := &load{name: name, files: files, env: merged, opt: opt, unset: map[string]bool{}, order: map[string][]string{}, idle: map[string]bool{}}
	if l.doc, err = l.open(name, Root); err != nil {
		return nil, err
	}
	raw, err := l.rawModel()
	if err != nil {
		return nil, err
	}
	if err := l.choose(raw); err != nil {
		return nil, err
	}
	unsupported := l.checkSupported(raw)
	digests, unpinned := l.checkPinned(raw)
	if err := errors.Join(unsupported, unpinned); err != nil {
		return nil, err
	}
	typed, err := l.typed()
	if err != nil {
		return nil, err
	}
	return l.project(typed, digests)
}

// load is the work of one Load.
type load struct {
	name  string // of the compose file
	doc   *document
	files []archive.File
	env   map[string]string // merged, without the loader's own additions
	opt   Options
	unset map[string]bool

	order map[string][]string // names of each section, in the order of the text
	idle  map[string]bool     // services whose profiles are not active
}

// fileNames are the names that HPCR knows, in the order that it looks for them.
var fileNames = []string{"docker-compose.yaml", "docker-compose.yml"}

// overrideNames are of the file that docker compose lays over it, if there is one.
var overrideNames = []string{"docker-compose.override.yml", "docker-compose.override.yaml"}

// locate finds the compose file at the top, or in the one folder at the top.
func locate(files []archive.File) ([]archive.File, string, error) {
	find := func(files []archive.File) string {
		for _, name := range fileNames {
			if slices.ContainsFunc(files, func(f archive.File) bool { return f.Name == name && !f.Dir }) {
				return name
			}
		}
		return ""
	}
	if name := find(files); name != "" {
		return files, name, nil
	}
	top := ""
	for _, f := range files {
		first, _, _ := strings.Cut(f.Name, "/")
		if top != "" && top != first {
			top = ""
			break
		}
		top = first
	}
	if top != "" {
		var inner []archive.File
		for _, f := range files {
			if name, ok := strings.CutPrefix(f.Name, top+"/"); ok {
				f.Name = name
				inner = append(inner, f)
			}
		}
		if name := find(inner); name != "" {
			return inner, name, nil
		}
	}
	return nil, "", hpl.New("HPL06008E", Root+"/archive",
		"there is no compose file at the top of the archive: pack its folder with tar -cz -C DIR . | base64 -w0")
}

// quiet keeps the loader's warnings, which name variables, off the process's
// standard error for as long as a Load runs.
func quiet() func() {
	quietMu.Lock()
	out := logrus.StandardLogger().Out
	logrus.SetOutput(io.Discard)
	return func() {
		logrus.SetOutput(out)
		quietMu.Unlock()
	}
}

var quietMu sync.Mutex

var projectNameRE = word{63, regexp.MustCompile(`^[a-z0-9][a-z0-9_-]*$`)}

// projectName is the file's own name, or the folder's.
func (l *load) projectName() string {
	m, err := l.doc.model()
	if err == nil {
		if name, ok := m["name"].(string); ok && projectNameRE.MatchString(name) {
			return name
		}
	}
	return path.Base(Dir)
}

// noFiles stands in the loader's way to the file system: reader has brought in
// what include and extends name.
type noFiles struct{}

var errNoFiles = errors.New("files are read from the archive only")

func (noFiles) Accept(string) bool                           { return true }
func (noFiles) Load(context.Context, string) (string, error) { return "", errNoFiles }
func (noFiles) Dir(string) string                            { return "." }

func (l *load) details(raw bool) (types.ConfigDetails, error) {
	models, err := l.models(raw)
	if err != nil {
		return types.ConfigDetails{}, err
	}
	return types.ConfigDetails{WorkingDir: Dir, ConfigFiles: configFiles(l.name, models), Environment: loaderEnv(l.env)}, nil
}

// configFiles are models for the loader, which lays each over those before it.
func configFiles(name string, models []map[string]any) []types.ConfigFile {
	var files []types.ConfigFile
	for _, m := range models {
		files = append(files, types.ConfigFile{Filename: name, Config: m})
	}
	return files
}

// loaderEnv is the environment with what compose itself sets.
func loaderEnv(env map[string]string) types.Mapping {
	out := types.Mapping{"PWD": Dir}
	for k, v := range env {
		out[k] = v
	}
	return out
}

func (l *load) options(o *loader.Options) {
	o.SetProjectName(l.projectName(), true)
	o.ResourceLoaders = []loader.ResourceLoader{noFiles{}}
	o.SkipInclude = true
	o.SkipExtends = true
	o.ResolvePaths = false
	o.SkipResolveEnvironment = true
	o.SkipResolveLabels = true
	o.Profiles = l.profiles()
}

// asWritten are the loader's options for a model whose variables stay.
func asWritten(o *loader.Options) {
	o.SkipInterpolation = true
	o.SkipValidation = true
	o.SkipNormalization = true
	o.SkipDefaultValues = true
	o.SkipConsistencyCheck = true
}

// rawModel is the project with its variables still in place.
func (l *load) rawModel() (m map[string]any, err error) {
	defer recovered(&err)
	details, err := l.details(true)
	if err != nil {
		return nil, err
	}
	m, err = loader.LoadModelWithContext(context.Background(), details, l.options, asWritten)
	if err != nil {
		return nil, l.invalid(err)
	}
	return m, nil
}

// typed is the project with its variables replaced, validated by the schema.
func (l *load) typed() (p *types.Project, err error) {
	defer recovered(&err)
	details, err := l.details(false)
	if err != nil {
		return nil, err
	}
	p, err = loader.LoadWithContext(context.Background(), details, l.options, func(o *loader.Options) {
		o.Interpolate.LookupValue, o.Interpolate.Substitute = l.lookup(details.Environment), substitute
	})
	if err != nil {
		return nil, l.invalid(err)
	}
	return p, nil
}

// lookup finds variables and remembers those that nobody set.
func (l *load) lookup(env types.Mapping) func(string) (string, bool) {
	return func(name string) (string, bool) {
		v, ok := env[name]
		if !ok {
			l.unset[name] = true
		}
		return v, ok
	}
}

func substitute(text string, m template.Mapping) (string, error) {
	return template.SubstituteWithOptions(text, m, template.WithoutLogging)
}

// recovered turns a panic of the loader on odd input into an error: it asserts
// types in places that its schema check has not reached yet.
func recovered(err *error) {
	if r := recover(); r != nil {
		*err = hpl.Wrap(fmt.Errorf("compose loader: %v", r), "HPL06009E", Root,
			"the compose file has a value of the wrong kind: check it with docker compose config")
	}
}

// invalid wraps a loader's error; its text quotes the document and is for the
// owner only. Where it names a service, the path shows which.
func (l *load) invalid(err error) error {
	if e := (*hpl.Error)(nil); errors.As(err, &e) {
		return e
	}
	where := Root
	if strings.Contains(err.Error(), "dependency cycle") {
		return hpl.Wrap(err, "HPL06009E", Root+"/services", "services depend on each other in a circle: break it")
	}
	if m := undefinedRE.FindStringSubmatch(err.Error()); m != nil && l.doc.index[m[1]] > 0 {
		return hpl.Wrap(err, "HPL06009E", servicePath(l.doc.index[m[1]], m[2]+"s"),
			"the service uses a "+m[2]+" that the compose file does not define: define it at the top level")
	}
	names := make([]string, 0, len(l.doc.index))
	for name := range l.doc.index {
		names = append(names, name)
	}
	sort.Slice(names, func(i, j int) bool { return len(names[i]) > len(names[j]) })
	for _, name := range names {
		if i := strings.Index(err.Error(), "services."+name); i >= 0 {
			where = servicePath(l.doc.index[name], knownField(err.Error()[i+len("services."+name):]))
			break
		}
	}
	return hpl.Wrap(err, "HPL06009E", where,
		"the compose file does not follow the Compose specification: check it with docker compose config")
}

var undefinedRE = regexp.MustCompile(`service "([^"]*)" refers to undefined (network|volume|config|secret) `)

// knownField is the field that follows a service's name in the loader's
// message, if it is one that Compose itself defines.
func knownField(tail string) string {
	tail = strings.TrimPrefix(tail, ".")
	end := strings.IndexFunc(tail, func(r rune) bool { return (r < 'a' || r > 'z') && r != '_' })
	if end >= 0 {
		tail = tail[:end]
	}
	if name := "services.*." + tail; supported[name] || refused[name] != "" {
		return tail
	}
	return ""
}

// project turns the loader's project into ours, services in start order.
func (l *load) project(p *types.Project, digests map[string]string) (*Project, error) {
	out := &Project{Name: p.Name, Files: l.withEnvFile()}
	byName := make(map[string]Service, len(p.Services))
	for _, name := range l.names() {
		cfg, ok := p.Services[name]
		if !ok {
			return nil, hpl.New("HPL06009E", servicePath(l.doc.index[name], ""), "the service is never started: remove it")
		}
		s, err := l.service(p, cfg, digests[name])
		if err != nil {
			return nil, err
		}
		byName[name] = s
	}
	var err error
	if out.Services, err = l.ordered(byName); err != nil {
		return nil, err
	}
	if err := l.checkClashes(out.Services); err != nil {
		return nil, err
	}
	for key, n := range p.Networks {
		out.Networks = append(out.Networks, Network{Key: key, Internal: n.Internal})
	}
	for key := range p.Volumes {
		out.Volumes = append(out.Volumes, Volume{Key: key})
	}
	for name := range l.unset {
		out.Unset = append(out.Unset, name)
	}
	sort.Slice(out.Networks, func(i, j int) bool { return out.Networks[i].Key < out.Networks[j].Key })
	sort.Slice(out.Volumes, func(i, j int) bool { return out.Volumes[i].Key < out.Volumes[j].Key })
	sort.Strings(out.Unset)
	return out, nil
}

// names lists the active services in the order of the document.
func (l *load) names() []string {
	return slices.DeleteFunc(slices.Clone(l.order["services"]), func(name string) bool { return l.idle[name] })
}
