package contract

import (
	"slices"
	"strconv"
	"strings"

	"hpcr/contract/archive"
	"hpcr/contract/compose"
)

// composePlace finds, for lint, where a path of an error of the compose room
// ("/workload/compose/services/#1/image") lies in the compose file, and its
// names. It goes as deep as the file does.
func composePlace(files []archive.File, host string) at {
	a := at{path: host, host: host, doc: "compose"}
	n, yerr := parseYAML("compose", composeFile(files))
	if yerr != nil {
		a.line, a.col = yerr.line, yerr.col
		return a
	}
	if n == nil {
		return a
	}
	here := at{path: compose.Root, doc: "compose"}.onto(n)
	rest := strings.TrimPrefix(strings.TrimPrefix(host, compose.Root), "/")
	for rest != "" {
		var seg string
		seg, rest, _ = strings.Cut(rest, "/")
		next, ok := here.step(seg)
		if !ok {
			here.path += "/" + seg
			if rest != "" {
				here.path += "/" + rest
			}
			break
		}
		here = next
	}
	here.host = host
	return here
}

// step follows one segment: a name, "#n", or an index of a list.
func (a at) step(seg string) (at, bool) {
	if a.n == nil {
		return a, false
	}
	if number, found := strings.CutPrefix(seg, "#"); found || a.n.kind == listNode {
		i, err := strconv.Atoi(number)
		if found {
			i--
		}
		switch {
		case err != nil || i < 0 || i >= len(a.n.vals):
			return a, false
		case a.n.kind == listNode:
			return a.item(i), true
		default:
			return a.entry(i), true
		}
	}
	if a.n.get(seg) == nil {
		return a, false
	}
	return a.get(seg), true
}

// composeFile is the text that compose.Load reads, nil if there is none.
func composeFile(files []archive.File) []byte {
	for _, name := range []string{"docker-compose.yaml", "docker-compose.yml"} {
		i := slices.IndexFunc(files, func(f archive.File) bool {
			_, base, nested := strings.Cut(f.Name, "/")
			return !f.Dir && (f.Name == name || nested && base == name)
		})
		if i >= 0 {
			return files[i].Data
		}
	}
	return nil
}
