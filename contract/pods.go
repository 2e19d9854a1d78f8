package contract

import (
	"bytes"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"hpcr/contract/archive"
	"hpcr/contract/compose"
)

// Bounds of a play workload.
const (
	maxPods        = 64
	maxDescriptors = 256
)

// descriptor is one Pod or ConfigMap. raw is the same tree before its templates
// were filled in: a digest has to stand there already.
type descriptor struct {
	at
	raw *node
}

// podRun translates descriptors into the model that the agent runs.
type podRun struct {
	*run
	maps    map[string]map[string]string // ConfigMaps by name
	out     *compose.Project
	names   map[string]bool // of containers
	ports   map[string]bool
	pods    map[string]bool
	podNode at
	number  int // of the pod, 1-based
}

// bad reports what is wrong with a descriptor.
func (p *podRun) bad(a at, message, fix string) { p.fail(playCode, a, message, fix) }

// only refuses fields by name that are not supported.
func (p *podRun) only(a at, known ...string) bool {
	if !a.present() {
		return false
	}
	if a.n.kind != mapNode {
		p.bad(a, "this must be a mapping", `write "key: value" lines below it, or remove the key`)
		return false
	}
	for i, k := range a.n.keys {
		if !contains(known, k.text) {
			p.bad(a.key(i), "this field is not known or not supported", "remove it; "+listing(known))
		}
	}
	return true
}

// each visits the items of an optional list.
func (p *podRun) each(a at, f func(at)) {
	if !a.present() {
		return
	}
	if a.n.kind != listNode {
		p.bad(a, "this must be a list", `begin each entry with "- "`)
		return
	}
	for i := range a.n.vals {
		f(a.item(i))
	}
}

// word is an optional text.
func (p *podRun) word(a at) string {
	if !a.present() {
		return ""
	}
	if !a.n.isString() || strings.ContainsRune(a.n.text, 0) {
		p.bad(a, "this must be text", "put the value in quotes")
		return ""
	}
	return a.n.text
}

// oneOf is a text out of a list, the first one if it is missing.
func (p *podRun) oneOf(a at, words ...string) string {
	w := p.word(a)
	if !a.present() {
		return words[0]
	}
	if !slices.Contains(words, w) {
		p.bad(a, "this value is not supported", "write one of: "+strings.Join(words, ", "))
		return words[0]
	}
	return w
}

// count is an optional whole number.
func (p *podRun) count(a at, missing, least, most int64) int64 {
	if !a.present() {
		return missing
	}
	var n int64
	if _, err := fmt.Sscanf(a.n.text, "%d", &n); err != nil || a.n.kind != scalarNode || a.n.tag != "!!int" || fmt.Sprint(n) != a.n.text || n < least || n > most {
		p.bad(a, "this is not a whole number in its range", fmt.Sprintf("write a number from %d to %d, without quotes", least, most))
		return missing
	}
	return n
}

// mode is permission bits: decimal, or octal with a leading zero.
func (p *podRun) mode(a at, missing uint32) uint32 {
	if !a.present() {
		return missing
	}
	n, err := strconv.ParseUint(a.n.text, 0, 32)
	if err != nil || a.n.kind != scalarNode || a.n.tag != "!!int" || n > 0o777 {
		p.bad(a, "these are not permission bits", "write four octal digits, as 0644, without quotes")
		return missing
	}
	return uint32(n)
}

func (p *podRun) yes(a at) bool {
	var b bool
	if a.present() && setBool(&b, a.n) != nil {
		p.bad(a, "this must be true or false", "write true or false, without quotes")
	}
	return b
}

// texts is a mapping of names to text.
func (p *podRun) texts(a at) map[string]string {
	out := map[string]string{}
	if !a.present() {
		return out
	}
	if a.n.kind != mapNode {
		p.bad(a, "this must be a mapping", `write "key: value" lines below it, or remove the key`)
		return out
	}
	for i, k := range a.n.keys {
		out[k.text] = p.word(a.entry(i))
	}
	return out
}

var dnsName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// label is a mandatory name fit for a host name.
func (p *podRun) label(a at) string {
	w := p.word(a)
	if !dnsName.MatchString(w) {
		p.bad(a, "this is not a name, or it is missing", "use at most 63 lower-case letters, digits and dashes")
	}
	return w
}

// translate takes all descriptors: ConfigMaps first, whatever their order.
func (r *run) translate(all []descriptor, files []archive.File, env map[string]string) *compose.Project {
	p := &podRun{run: r, out: &compose.Project{Name: "play", Files: files},
		maps: map[string]map[string]string{ConfigMapName: env}, names: map[string]bool{}, ports: map[string]bool{}, pods: map[string]bool{}}
	if len(all) > maxDescriptors {
		p.bad(all[maxDescriptors].at, "there are more than 256 descriptors", "join ConfigMaps")
		return nil
	}
	for _, pass := range []string{"ConfigMap", "Pod"} {
		for _, d := range all {
			switch kind := d.get("kind").text(); {
			case d.get("apiVersion").text() != "v1" || kind != "ConfigMap" && kind != "Pod":
				if pass == "Pod" {
					p.bad(d.get("kind"), "only Pod and ConfigMap of apiVersion v1 are played", "write apiVersion: v1 and kind: Pod or kind: ConfigMap")
				}
			case kind != pass:
			case kind == "Pod":
				p.pod(d)
			default:
				p.configMap(d.at)
			}
		}
	}
	return p.out
}

func (p *podRun) configMap(a at) {
	p.only(a, "apiVersion", "kind", "metadata", "data", "immutable")
	p.metadata(a.get("metadata"))
	p.yes(a.get("immutable"))
	name := p.word(a.get("metadata").get("name"))
	if p.maps[name] != nil {
		p.bad(a.get("metadata").get("name"), "there is a ConfigMap of this name already", "give it another name")
		return
	}
	p.maps[name] = p.texts(a.get("data"))
}

func (p *podRun) metadata(a at) {
	if !a.present() {
		p.bad(a, "this key is missing", "add it, with a name")
		return
	}
	if p.only(a, "name", "namespace", "labels", "annotations") {
		if n := p.word(a.get("name")); n == "" || len(n) > 253 {
			p.bad(a.get("name"), "this is not a name, or it is missing", "give a name of at most 253 characters")
		}
		p.word(a.get("namespace"))
		p.texts(a.get("labels"))
		p.texts(a.get("annotations"))
	}
}

// archived reads the descriptors at the top of the archive, several of them in
// one file if lines of three dashes stand between them.
func (r *run) archived(a at, files []archive.File) []descriptor {
	var all []descriptor
	n := 0
	for _, f := range files {
		if ext := path.Ext(f.Name); f.Dir || strings.Contains(f.Name, "/") || ext != ".yaml" && ext != ".yml" && ext != ".json" {
			continue
		}
		n++
		here := at{path: a.path + "/" + escape(f.Name), host: fmt.Sprintf("%s/#%d", a.host, n), doc: "play", line: 1, col: 1}
		for _, part := range apartYAML(f.Data) {
			d, yerr := parseYAML("play", part)
			switch {
			case yerr != nil:
				r.failYAML(playCode, here, yerr)
			case d == nil:
			case d.kind != mapNode:
				r.fail(playCode, here.onto(d), "the file is not a Kubernetes resource", "keep files at the top of the archive that are not descriptors in a folder")
			default:
				all = append(all, descriptor{here.onto(d), d})
			}
			if r.failed && !r.lint || len(all) > maxDescriptors {
				return all
			}
		}
	}
	return all
}

// apartYAML takes a stream of documents apart; each keeps its line numbers.
func apartYAML(data []byte) [][]byte {
	var parts [][]byte
	var part []byte
	line := 0
	for l := range bytes.Lines(data) {
		line++
		if t := bytes.TrimRight(l, " \t\r\n"); string(t) == "---" && len(parts) < maxDescriptors {
			if len(bytes.TrimSpace(part)) > 0 {
				parts = append(parts, part)
			}
			part = bytes.Repeat([]byte("\n"), line)
			continue
		}
		part = append(part, l...)
	}
	return append(parts, part)
}
