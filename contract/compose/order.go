package compose

import "hpcr/agent/hpl"

// ordered puts each service behind those that it depends on, otherwise in the
// document's order.
func (l *load) ordered(byName map[string]Service) ([]Service, error) {
	var out []Service
	state := map[string]int{} // 1 = on the way, 2 = done
	var visit func(name string) error
	visit = func(name string) error {
		switch state[name] {
		case 1:
			return hpl.New("HPL06009E", servicePath(l.doc.index[name], "depends_on"), "services depend on each other in a circle: break it")
		case 2:
			return nil
		}
		state[name] = 1
		s := byName[name]
		for _, d := range s.DependsOn {
			if _, ok := byName[d.Service]; !ok {
				continue
			}
			if err := visit(d.Service); err != nil {
				return err
			}
		}
		state[name] = 2
		out = append(out, s)
		return nil
	}
	for _, name := range l.names() {
		if err := visit(name); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// checkClashes refuses what only shows with all services in view.
func (l *load) checkClashes(services []Service) error {
	type published struct {
		proto string
		port  uint16
		ip    string
	}
	ports := map[published]bool{}
	names := map[string]int{}
	for i := range services {
		s := &services[i]
		for _, name := range []string{s.Name, s.Container} {
			if other, ok := names[name]; ok && other != s.Index && name != "" {
				return hpl.New("HPL06009E", s.Path("container_name"), "two services use the same container name: give each its own")
			}
			names[name] = s.Index
		}
		for _, p := range s.Ports {
			key := published{p.Proto, p.HostPort, ""}
			if p.HostIP.IsValid() {
				key.ip = p.HostIP.String()
			}
			if ports[key] {
				return hpl.New("HPL06009E", s.Path("ports"), "two services publish the same port: change one of them")
			}
			ports[key] = true
		}
	}
	return nil
}
