package workload

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"strings"

	"hpcr/contract/compose"
	"hpcr/network"
)

// Bridge is one network of the project; *network.Project is one.
type Bridge interface {
	Attach(id, netnsPath string, names []string, ports []network.Port) (netip.Addr, error)
	Detach(id string) error
	Gateway() netip.Addr
	ResolvConf() []byte
	Close() error
}

// openBridges makes a bridge for each network that a service joins.
func (w *Workload) openBridges() error {
	internal := map[string]bool{}
	for _, n := range w.opt.Project.Networks {
		internal[n.Key] = n.Internal
	}
	for i := range w.services {
		for _, m := range w.services[i].def.Join {
			if w.bridges[m.Network] != nil {
				continue
			}
			if w.opt.NewBridge == nil {
				return errors.New("the guest has no network for containers")
			}
			br, err := w.opt.NewBridge(internal[m.Network])
			if err != nil {
				return fmt.Errorf("bridge: %w", err)
			}
			w.bridges[m.Network] = br
		}
	}
	return nil
}

func (w *Workload) closeBridges() error {
	var errs []error
	for key, br := range w.bridges {
		errs = append(errs, br.Close())
		delete(w.bridges, key)
	}
	return errors.Join(errs...)
}

func (w *Workload) gateway(s *compose.Service) netip.Addr {
	for _, m := range s.Join {
		if br := w.bridges[m.Network]; br != nil {
			return br.Gateway()
		}
	}
	return netip.Addr{}
}

// connect makes the container's network namespace and joins its networks. The
// namespace is the agent's: it stays over restarts of the container.
func (w *Workload) connect(s *compose.Service) (netnsPath string, first netip.Addr, err error) {
	if s.NetworkMode != "" {
		return "", first, nil // the guest's own, or one that runc makes and nobody joins
	}
	netnsPath = w.netnsPath(s)
	if !w.leads(s) {
		return netnsPath, w.addrs[w.leader(s).Index], nil
	}
	if err := newNamespace(netnsPath, netNamespace); err != nil {
		return "", first, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.disconnect(s))
		}
	}()
	if s.Pod != "" {
		if err := newNamespace(netnsPath+ipcSuffix, ipcNamespace); err != nil {
			return "", first, err
		}
	}
	var ports []network.Port
	for _, p := range w.portsOf(s) {
		ports = append(ports, network.Port{HostIP: p.HostIP, HostPort: p.HostPort, ContainerPort: p.ContainerPort, Proto: p.Proto})
	}
	for _, m := range s.Join {
		names := []string{s.Name}
		if s.Container != "" {
			names = append(names, s.Container)
		}
		addr, err := w.bridges[m.Network].Attach(containerID(s), netnsPath, append(names, m.Aliases...), ports)
		if err != nil {
			return "", first, fmt.Errorf("join a network: %w", err)
		}
		if !first.IsValid() {
			first, ports = addr, nil // published on the first network only
		}
	}
	w.addrs[s.Index] = first
	return netnsPath, first, nil
}

const ipcSuffix = "-ipc"

// leader is the service that the namespaces belong to: the first of a pod, or
// the one whose network is shared. It is created first and removed last.
func (w *Workload) leader(s *compose.Service) *compose.Service {
	for _, o := range w.services {
		if s.Pod != "" && o.def.Pod == s.Pod || s.Share != "" && o.def.Name == s.Share {
			return o.def
		}
	}
	return s
}

func (w *Workload) leads(s *compose.Service) bool { return w.leader(s).Index == s.Index }

func (w *Workload) netnsPath(s *compose.Service) string {
	return filepath.Join(w.opt.Netns, namespace+"-"+containerID(w.leader(s)))
}

// portsOf is what a leader publishes: the ports of its whole pod.
func (w *Workload) portsOf(s *compose.Service) []compose.Port {
	if s.Pod == "" {
		return s.Ports
	}
	var ports []compose.Port
	for _, o := range w.services {
		if o.def.Pod == s.Pod {
			ports = append(ports, o.def.Ports...)
		}
	}
	return ports
}

func (w *Workload) disconnect(s *compose.Service) error {
	if s.NetworkMode != "" || !w.leads(s) {
		return nil
	}
	var errs []error
	for _, m := range s.Join {
		if br := w.bridges[m.Network]; br != nil {
			errs = append(errs, br.Detach(containerID(s)))
		}
	}
	errs = append(errs, deleteNamespace(w.netnsPath(s)))
	if s.Pod != "" {
		errs = append(errs, deleteNamespace(w.netnsPath(s)+ipcSuffix))
	}
	return errors.Join(errs...)
}

var notHost = regexp.MustCompile(`[^A-Za-z0-9-]+`)

// hostname is the service's own, or its name made fit for one. Who shares a
// network has the name that goes with it.
func (w *Workload) hostname(s *compose.Service) string {
	if s.Share != "" {
		return hostname(w.leader(s))
	}
	return hostname(s)
}

func hostname(s *compose.Service) string {
	if s.Hostname != "" {
		return s.Hostname
	}
	name := strings.Trim(notHost.ReplaceAllString(s.Name, "-"), "-")
	if len(name) > 63 {
		name = strings.TrimRight(name[:63], "-")
	}
	if name == "" {
		name = containerID(s)
	}
	return name
}
