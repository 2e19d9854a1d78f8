package compose

import (
	"slices"
	"strings"

	"hpcr/agent/hpl"
)

// profilesVar is the variable that names the active profiles, as in docker compose.
const profilesVar = "COMPOSE_PROFILES"

func (l *load) profiles() []string {
	var active []string
	for p := range strings.SplitSeq(l.env[profilesVar], ",") {
		if p = strings.TrimSpace(p); p != "" {
			active = append(active, p)
		}
	}
	return active
}

// choose finds the services that run: those without profiles, and those with an
// active one. What the others ask for is nobody's concern, but a service that
// runs must not wait for one that does not.
func (l *load) choose(raw map[string]any) error {
	services, _ := raw["services"].(map[string]any)
	if len(services) == 0 {
		return hpl.New("HPL06009E", Root+"/services", "the compose file has no services: add at least one")
	}
	if len(services) > maxServices {
		return hpl.New("HPL06009E", Root+"/services", "the compose file has more than 256 services: use fewer")
	}
	for _, name := range l.order["services"] {
		s, _ := services[name].(map[string]any)
		list, _ := s["profiles"].([]any)
		active, err := l.active(list)
		if err != nil {
			return hpl.Wrap(err, "HPL06009E", servicePath(l.doc.index[name], "profiles"), "a profile's variable cannot be filled in: set it under env of the contract")
		}
		l.idle[name] = !active
	}
	if len(l.names()) == 0 {
		return hpl.New("HPL06009E", Root+"/services", "no service has an active profile: name one in COMPOSE_PROFILES under env of the contract")
	}
	for _, name := range l.names() {
		s, _ := services[name].(map[string]any)
		on, _ := s["depends_on"].(map[string]any)
		for other, v := range on {
			d, _ := v.(map[string]any)
			if d["required"] != false && l.idle[other] {
				return hpl.New("HPL06009E", servicePath(l.doc.index[name], "depends_on"),
					"a service that this one depends on has no active profile: name it in COMPOSE_PROFILES under env of the contract, or write required: false")
			}
		}
	}
	return nil
}

// active says whether a service with these profiles runs.
func (l *load) active(list []any) (bool, error) {
	active := l.profiles()
	for _, p := range list {
		text, _ := p.(string)
		text, err := substitute(text, l.lookup(loaderEnv(l.env)))
		if err != nil {
			return false, err
		}
		if slices.Contains(active, "*") || slices.Contains(active, text) {
			return true, nil
		}
	}
	return len(list) == 0, nil
}
