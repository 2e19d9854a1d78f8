package contract

import (
	"fmt"
	"net/netip"
	"path"
	"strconv"
	"strings"
	"time"

	"hpcr/contract/compose"
)

// podNet is the network that all pods join: they find each other by name.
const podNet = "pods"

// podFields are the fields of a pod's spec; every other one is refused.
var podFields = []string{
	"containers", "initContainers", "volumes", "restartPolicy", "terminationGracePeriodSeconds", "hostname", "hostAliases",
	"securityContext", "dnsPolicy", "enableServiceLinks", "automountServiceAccountToken",
}

// pod translates one pod: its containers share a network and an IPC namespace,
// which belong to the first of them.
func (p *podRun) pod(d descriptor) {
	p.only(d.at, "apiVersion", "kind", "metadata", "spec")
	p.metadata(d.get("metadata"))
	name, spec := p.label(d.get("metadata").get("name")), d.get("spec")
	if !p.only(spec, podFields...) {
		p.bad(spec, "this key is missing", "add it, with containers")
		return
	}
	if p.pods[name] {
		p.bad(d.get("metadata").get("name"), "there is a pod of this name already", "give it another name")
	}
	p.pods[name] = true
	if p.number = len(p.pods); p.number > maxPods {
		p.bad(d.at, "there are more than 64 pods", "play fewer")
		return
	}
	p.podNode = d.at
	// No effect in a guest: there is no cluster.
	p.oneOf(spec.get("dnsPolicy"), "ClusterFirst", "Default")
	p.yes(spec.get("enableServiceLinks"))
	p.yes(spec.get("automountServiceAccountToken"))

	base := compose.Service{
		Pod: name, Hostname: name, NetworkMode: "", Join: []compose.Membership{{Network: podNet, Aliases: []string{name}}},
		StopGrace: time.Duration(p.count(spec.get("terminationGracePeriodSeconds"), 30, 0, 3600)) * time.Second,
		Health:    &compose.Health{Disable: true}, // an image's own check is Docker's
		Mounts: []compose.Mount{{Kind: compose.Named, Source: fmt.Sprintf("pod%d-shm", p.number), Target: "/dev/shm",
			NoCopy: true, RAM: true, Size: 64 << 20, Mode: 0o1777}},
	}
	if h := spec.get("hostname"); h.present() {
		base.Hostname = p.label(h)
	}
	p.each(spec.get("hostAliases"), func(a at) {
		p.only(a, "ip", "hostnames")
		ip, err := netip.ParseAddr(p.word(a.get("ip")))
		if err != nil {
			p.bad(a.get("ip"), "this is not an IP address", "write an address")
		}
		p.each(a.get("hostnames"), func(h at) {
			n := p.word(h)
			if !validName(n) {
				p.bad(h, "this is not a host name", "use letters, digits, dashes and dots")
			}
			base.ExtraHosts = append(base.ExtraHosts, compose.Host{Name: n, Addr: ip})
		})
	})
	shared := p.podSecurity(spec.get("securityContext"), &base)
	volumes := p.volumesOf(spec.get("volumes"), shared.group)
	policy := map[string]string{"Always": compose.RestartAlways, "OnFailure": compose.RestartOnFailure, "Never": compose.RestartNo}[p.oneOf(spec.get("restartPolicy"), "Always", "OnFailure", "Never")]

	after, seen := "", map[string]bool{}
	for _, key := range []string{"initContainers", "containers"} {
		list := spec.get(key)
		i := 0
		p.each(list, func(c at) {
			raw := rawItem(d.raw, key, i)
			i++
			s := base
			s.Mounts = append([]compose.Mount(nil), base.Mounts...)
			s.Index, s.Place = len(p.out.Services)+1, c.host
			s.Restart.Policy = policy
			if key == "initContainers" && policy == compose.RestartAlways {
				s.Restart.Policy = compose.RestartOnFailure
			}
			if after != "" {
				s.DependsOn = []compose.Dependency{{Service: after, Condition: compose.Completed, Required: true}}
			}
			if !p.container(c, raw, &s, shared, volumes, key == "initContainers") {
				return
			}
			s.Name = name + "-" + s.Name
			if p.names[s.Name] || seen[s.Name] {
				p.bad(c.get("name"), "pod and container together have a name that another container has", "give the container another name")
			}
			p.names[s.Name] = true
			if key == "initContainers" {
				after = s.Name
			}
			p.out.Services = append(p.out.Services, s)
		})
		if key == "containers" && i == 0 {
			p.bad(list, "the pod has no containers", "give it at least one")
		}
	}
	if len(p.out.Networks) == 0 {
		p.out.Networks = []compose.Network{{Key: podNet}}
	}
	for i := range volumes {
		if v := volumes[i]; !v.used {
			p.warn("", v.at, "no container mounts this volume", "mount it or remove it")
		}
	}
}

func rawItem(doc *node, key string, i int) *node {
	l := doc.get("spec").get(key)
	if l == nil || i >= len(l.vals) {
		return nil
	}
	return l.vals[i]
}

// podShared is what containers inherit from the pod's security context.
type podShared struct {
	user, userGroup int64 // -1 = not set
	nonRoot         bool
	group           int64 // fsGroup, 0 = none
}

func (p *podRun) podSecurity(a at, s *compose.Service) podShared {
	out := podShared{user: -1, userGroup: -1}
	if !a.present() || !p.only(a, "runAsUser", "runAsGroup", "runAsNonRoot", "fsGroup", "supplementalGroups", "sysctls", "seccompProfile") {
		return out
	}
	out.user, out.userGroup = p.count(a.get("runAsUser"), -1, 0, 1<<31-1), p.count(a.get("runAsGroup"), -1, 0, 1<<31-1)
	out.nonRoot, out.group = p.yes(a.get("runAsNonRoot")), p.count(a.get("fsGroup"), 0, 0, 1<<31-1)
	p.each(a.get("supplementalGroups"), func(g at) {
		s.GroupAdd = append(s.GroupAdd, strconv.FormatInt(p.count(g, 0, 0, 1<<31-1), 10))
	})
	if out.group > 0 {
		s.GroupAdd = append(s.GroupAdd, strconv.FormatInt(out.group, 10))
	}
	p.each(a.get("sysctls"), func(c at) {
		p.only(c, "name", "value")
		name, value := p.word(c.get("name")), p.word(c.get("value"))
		if !compose.OwnSysctl(name) || strings.ContainsRune(value, 0) {
			p.bad(c.get("name"), "this sysctl is not the pod's own", "only net.*, fs.mqueue.* and the kernel's message and shared-memory settings are")
			return
		}
		if s.Sysctls == nil {
			s.Sysctls = map[string]string{}
		}
		s.Sysctls[name] = value
	})
	s.Unconfined = p.seccomp(a.get("seccompProfile"), false)
	return out
}

func (p *podRun) seccomp(a at, inherited bool) bool {
	if !a.present() || !p.only(a, "type") {
		return inherited
	}
	return p.oneOf(a.get("type"), "RuntimeDefault", "Unconfined") == "Unconfined"
}

// podVolume is a volume of the pod, before a container mounts it.
type podVolume struct {
	at    at
	name  string
	mount compose.Mount     // Target open
	files map[string]string // of a ConfigMap: content by path
	modes map[string]uint32
	group int64
	used  bool
}

func (p *podRun) volumesOf(a at, group int64) []*podVolume {
	var all []*podVolume
	p.each(a, func(v at) {
		p.only(v, "name", "hostPath", "emptyDir", "configMap")
		out := &podVolume{at: v, name: p.label(v.get("name")), group: group}
		for _, o := range all {
			if o.name == out.name {
				p.bad(v.get("name"), "there is a volume of this name already", "give it another name")
			}
		}
		kinds := 0
		if h := v.get("hostPath"); h.present() && p.only(h, "path", "type") {
			kinds++
			source := p.word(h.get("path"))
			if !path.IsAbs(source) {
				source = path.Join(compose.Dir, source)
			}
			out.mount = compose.Mount{Kind: compose.Bind, Source: path.Clean(source),
				Create: p.oneOf(h.get("type"), "", "Directory", "File", "DirectoryOrCreate") == "DirectoryOrCreate"}
			if !h.get("path").present() || compose.Closed(out.mount.Source) {
				p.bad(h.get("path"), "this part of the guest cannot be mounted into a container", "use a contract volume, /var/hyperprotect or a file of the archive")
			}
		}
		if e := v.get("emptyDir"); e.present() && p.only(e, "medium", "sizeLimit") {
			kinds++
			out.mount = compose.Mount{Kind: compose.Named, Source: fmt.Sprintf("pod%d-%s", p.number, out.name), NoCopy: true, Mode: 0o777, GID: int(group)}
			out.mount.RAM = p.oneOf(e.get("medium"), "", "Memory") == "Memory"
			if l := e.get("sizeLimit"); l.present() {
				if out.mount.Size = p.quantity(l, 1); !out.mount.RAM {
					p.bad(l, "only an emptyDir in memory has a limit", "write medium: Memory, or remove the limit")
				}
			}
		}
		if c := v.get("configMap"); c.present() && p.only(c, "name", "items", "defaultMode", "optional") {
			kinds++
			p.configVolume(c, out)
		}
		if kinds != 1 {
			p.bad(v, "a volume has exactly one of hostPath, emptyDir and configMap", "keep one of them")
		}
		all = append(all, out)
	})
	return all
}

func (p *podRun) configVolume(c at, out *podVolume) {
	data, ok := p.maps[p.word(c.get("name"))]
	optional := p.yes(c.get("optional"))
	if !ok && !optional {
		p.bad(c.get("name"), "there is no ConfigMap of this name", "add it, or correct the name")
	}
	mode := p.mode(c.get("defaultMode"), 0o644)
	out.files, out.modes = map[string]string{}, map[string]uint32{}
	if items := c.get("items"); items.present() {
		p.each(items, func(i at) {
			p.only(i, "key", "path", "mode")
			value, has := data[p.word(i.get("key"))]
			to := p.word(i.get("path"))
			switch {
			case !has && !optional:
				p.bad(i.get("key"), "the ConfigMap has no such key", "add it, or correct the name")
			case to == "" || path.IsAbs(to) || path.Clean("/"+to) != "/"+to:
				p.bad(i.get("path"), "this is not a relative path", "write a path without . and ..")
			case has:
				out.files[to], out.modes[to] = value, p.mode(i.get("mode"), mode)
			}
		})
		return
	}
	for k, v := range data {
		if strings.ContainsAny(k, "/\x00") || k == "" || k == "." || k == ".." {
			p.bad(c.get("name"), "a key of the ConfigMap is no file name", "name keys with items")
			return
		}
		out.files[k], out.modes[k] = v, mode
	}
}
