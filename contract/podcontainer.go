package contract

import (
	"maps"
	"math/big"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"hpcr/contract/compose"
)

// containerFields are the fields of a container; every other one is refused.
var containerFields = []string{
	"name", "image", "imagePullPolicy", "command", "args", "workingDir", "env", "envFrom", "ports", "resources", "volumeMounts",
	"securityContext", "startupProbe", "livenessProbe", "readinessProbe", "stdin", "tty",
}

func (p *podRun) container(c at, raw *node, s *compose.Service, shared podShared, volumes []*podVolume, initial bool) bool {
	if !p.only(c, containerFields...) {
		return false
	}
	s.Name = p.label(c.get("name"))
	p.oneOf(c.get("imagePullPolicy"), "IfNotPresent", "Always", "Never") // a guest begins without images
	p.pinned(c.get("image"), raw.get("image"), s)
	s.WorkingDir = p.word(c.get("workingDir"))
	s.StdinOpen, s.TTY = p.yes(c.get("stdin")), p.yes(c.get("tty"))
	env := p.environment(c, s)
	list := func(a at) []string {
		var out []string
		p.each(a, func(v at) { out = append(out, expand(p.word(v), env)) })
		return out
	}
	s.Entrypoint, s.Command = list(c.get("command")), list(c.get("args"))
	p.portsOf(c.get("ports"), s)
	p.resources(c.get("resources"), s)
	p.mountsOf(c.get("volumeMounts"), s, volumes)
	p.security(c.get("securityContext"), s, shared)
	for _, k := range []struct {
		key string
		to  **compose.Probe
	}{{"startupProbe", &s.Startup}, {"livenessProbe", &s.Liveness}, {"readinessProbe", &s.Readiness}} {
		if a := c.get(k.key); a.present() {
			if initial {
				p.bad(a, "an init container has no probes", "remove it")
			}
			*k.to = p.probe(a, c.get("ports"), k.key == "readinessProbe")
		}
	}
	return true
}

func (p *podRun) pinned(a at, raw *node, s *compose.Service) {
	text := p.word(a)
	_, digest, _ := strings.Cut(text, "@")
	literal := compose.Pinned(text) && raw.isString() && strings.HasSuffix(raw.text, "@"+digest)
	if !literal {
		digest = ""
	}
	img, ok := compose.ParseImage(text, digest)
	s.Image = img
	switch {
	case text == "":
		p.bad(a, "the container has no image", "give it one, with its digest or its signer's key in images.rhs")
	case !literal && (!ok || len(p.imagePolicy().For(s.Signed())) == 0):
		p.fail("HPL06010E", a, "the image is neither pinned by a digest nor covered by a key", "write it out as NAME@sha256: and 64 lower-case hex digits, or give its signer's key in images.rhs")
	case !ok:
		p.bad(a, "this is not an image reference", "write REGISTRY/PATH@sha256:DIGEST")
	}
}

// environment is envFrom under env. It returns what $(NAME) stands for.
func (p *podRun) environment(c at, s *compose.Service) map[string]string {
	env := map[string]string{}
	p.each(c.get("envFrom"), func(a at) {
		p.only(a, "prefix", "configMapRef")
		ref := a.get("configMapRef")
		if !p.only(ref, "name", "optional") {
			p.bad(a, "only configMapRef is supported here", "name a ConfigMap")
			return
		}
		data, ok := p.maps[p.word(ref.get("name"))]
		if !ok && !p.yes(ref.get("optional")) {
			p.bad(ref.get("name"), "there is no ConfigMap of this name", "add it, or correct the name")
		}
		prefix := p.word(a.get("prefix"))
		for k, v := range data {
			if envName.MatchString(prefix + k) { // as Kubernetes: other keys are left out
				env[prefix+k] = v
			}
		}
	})
	p.each(c.get("env"), func(a at) {
		p.only(a, "name", "value", "valueFrom")
		name := p.word(a.get("name"))
		if !envName.MatchString(name) {
			p.bad(a.get("name"), "this is not the name of a variable", "use letters, digits and underscores")
			return
		}
		if from := a.get("valueFrom"); from.present() {
			if a.get("value").present() {
				p.bad(from, "a variable has value or valueFrom, not both", "remove one of them")
			}
			if v, ok := p.valueFrom(from); ok {
				env[name] = v
			}
			return
		}
		env[name] = expand(p.word(a.get("value")), env)
	})
	for _, name := range slices.Sorted(maps.Keys(env)) {
		s.Env = append(s.Env, compose.Var{Name: name, Value: env[name]})
	}
	return env
}

var envName = regexp.MustCompile(`^[A-Za-z_.-][A-Za-z0-9_.-]*$`)

var subscript = regexp.MustCompile(`^metadata\.(labels|annotations)\['([^']+)'\]$`)

func (p *podRun) valueFrom(a at) (string, bool) {
	if !p.only(a, "configMapKeyRef", "fieldRef") {
		return "", false
	}
	ref, field := a.get("configMapKeyRef"), a.get("fieldRef")
	switch {
	case ref.present() == field.present():
		p.bad(a, "there must be exactly one of configMapKeyRef and fieldRef", "keep one of them")
	case ref.present() && p.only(ref, "name", "key", "optional"):
		v, ok := p.maps[p.word(ref.get("name"))][p.word(ref.get("key"))]
		if !ok && !p.yes(ref.get("optional")) {
			p.bad(ref, "there is no such ConfigMap, or it has no such key", "add it, or correct the names")
		}
		return v, ok
	case field.present() && p.only(field, "apiVersion", "fieldPath"):
		meta := p.podNode.get("metadata")
		switch where := p.word(field.get("fieldPath")); where {
		case "metadata.name":
			return meta.get("name").text(), true
		case "metadata.namespace":
			if n := meta.get("namespace").text(); n != "" {
				return n, true
			}
			return "default", true
		default:
			if m := subscript.FindStringSubmatch(where); m != nil {
				return meta.get(m[1]).get(m[2]).text(), true
			}
			p.bad(field.get("fieldPath"), "this field is not supported", "known are metadata.name, metadata.namespace, metadata.labels['NAME'] and metadata.annotations['NAME']")
		}
	}
	return "", false
}

// expand replaces $(NAME) as Kubernetes does: unknown names stay, $$ is one $.
func expand(text string, env map[string]string) string {
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(text, "$")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		if strings.HasPrefix(rest, "$") {
			b.WriteByte('$')
			text = rest[1:]
			continue
		}
		if name, behind, ok := strings.Cut(rest, ")"); ok && strings.HasPrefix(name, "(") {
			if v, known := env[name[1:]]; known {
				b.WriteString(v)
				text = behind
				continue
			}
		}
		b.WriteByte('$')
		text = rest
	}
}

// portsOf publishes what has a hostPort; other ports stay in the guest.
func (p *podRun) portsOf(a at, s *compose.Service) {
	p.each(a, func(v at) {
		p.only(v, "name", "containerPort", "hostPort", "hostIP", "protocol")
		p.word(v.get("name"))
		port := compose.Port{
			ContainerPort: uint16(p.count(v.get("containerPort"), 0, 1, 65535)), HostPort: uint16(p.count(v.get("hostPort"), 0, 1, 65535)),
			Proto: strings.ToLower(p.oneOf(v.get("protocol"), "TCP", "UDP")),
		}
		if ip := v.get("hostIP"); ip.present() {
			var err error
			if port.HostIP, err = netip.ParseAddr(p.word(ip)); err != nil || !port.HostIP.Is4() {
				p.bad(ip, "this is not an IPv4 address", "write an address, or remove it")
			}
			if port.HostIP.IsUnspecified() {
				port.HostIP = netip.Addr{}
			}
		}
		if port.ContainerPort == 0 {
			p.bad(v.get("containerPort"), "this key is missing", "add it")
			return
		}
		if port.HostPort == 0 {
			return
		}
		key := port.Proto + strconv.Itoa(int(port.HostPort)) + port.HostIP.String()
		if p.ports[key] {
			p.bad(v.get("hostPort"), "another container publishes this port", "change one of them")
		}
		p.ports[key] = true
		s.Ports = append(s.Ports, port)
	})
}

var quantityRE = regexp.MustCompile(`^([0-9]{1,15}(?:\.[0-9]{1,9})?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?$`)

// quantity is a Kubernetes quantity times a scale, rounded up.
func (p *podRun) quantity(a at, scale int64) int64 {
	m := quantityRE.FindStringSubmatch(a.text())
	if a.n.kind != scalarNode || m == nil {
		p.bad(a, "this is not a quantity", "write 500m, 2, 64Mi or 1.5Gi")
		return 0
	}
	v, _ := new(big.Rat).SetString(m[1])
	unit := map[string]int64{"": 1, "m": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}[m[2]]
	v.Mul(v, new(big.Rat).SetInt64(unit)).Mul(v, new(big.Rat).SetInt64(scale))
	if m[2] == "m" {
		v.Quo(v, new(big.Rat).SetInt64(1000))
	}
	n := new(big.Int).Quo(new(big.Int).Add(v.Num(), new(big.Int).Sub(v.Denom(), big.NewInt(1))), v.Denom())
	if !n.IsInt64() || n.Int64() <= 0 || n.Int64() > 1<<50 {
		p.bad(a, "this quantity is not in its range", "give a smaller one, above zero")
		return 0
	}
	return n.Int64()
}

const cpuPeriod = 100_000 // µs

func (p *podRun) resources(a at, s *compose.Service) {
	if !a.present() || !p.only(a, "limits", "requests") {
		return
	}
	limits, requests := a.get("limits"), a.get("requests")
	if limits.present() && p.only(limits, "cpu", "memory") {
		if c := limits.get("cpu"); c.present() {
			s.Limits.CPUPeriod, s.Limits.CPUQuota = cpuPeriod, max(1000, p.quantity(c, cpuPeriod))
		}
		if m := limits.get("memory"); m.present() {
			s.Limits.Memory = p.quantity(m, 1)
			s.Limits.MemorySwap = s.Limits.Memory
		}
	}
	if requests.present() && p.only(requests, "cpu", "memory") {
		if c := requests.get("cpu"); c.present() {
			s.Limits.CPUShares = uint64(min(max(2, p.quantity(c, 1024)), 262144))
		}
		if m := requests.get("memory"); m.present() {
			s.Limits.MemoryReservation = p.quantity(m, 1)
			if s.Limits.Memory > 0 && s.Limits.MemoryReservation > s.Limits.Memory {
				p.bad(m, "the request is larger than the limit", "lower it")
			}
		}
	}
}

func (p *podRun) mountsOf(a at, s *compose.Service, volumes []*podVolume) {
	p.each(a, func(m at) {
		p.only(m, "name", "mountPath", "readOnly", "subPath")
		name := p.word(m.get("name"))
		i := slices.IndexFunc(volumes, func(v *podVolume) bool { return v.name == name })
		if i < 0 {
			p.bad(m.get("name"), "the pod has no volume of this name", "add it under volumes")
			return
		}
		v := volumes[i]
		v.used = true
		target, options, _ := strings.Cut(p.word(m.get("mountPath")), ":")
		readOnly := p.yes(m.get("readOnly"))
		for o := range strings.SplitSeq(options, ",") {
			switch o {
			case "", "Z", "z", "U", "rw": // labels and owners: the guest has no SELinux and no user namespaces
			case "ro":
				readOnly = true
			default:
				p.bad(m.get("mountPath"), "this option of a mount is not supported", "known are ro, rw, z, Z and U")
			}
		}
		if !path.IsAbs(target) || path.Clean(target) == "/" {
			p.bad(m.get("mountPath"), "this is not an absolute path below the root", "correct it")
			return
		}
		target = path.Clean(target)
		sub := p.word(m.get("subPath"))
		if sub != "" && (v.files == nil && v.mount.Kind != compose.Bind || path.IsAbs(sub) || path.Clean("/"+sub) != "/"+sub) {
			p.bad(m.get("subPath"), "this subPath is not supported", "it is a relative path without . and .. in a hostPath or a configMap")
			return
		}
		if v.files != nil {
			for _, file := range slices.Sorted(maps.Keys(v.files)) {
				to := path.Join(target, file)
				if sub != "" {
					if to = target; file != sub {
						continue
					}
				}
				s.Data = append(s.Data, compose.Data{Target: to, GID: int(v.group), Mode: v.modes[file], Data: []byte(v.files[file])})
			}
			return
		}
		mount := v.mount
		mount.Target, mount.ReadOnly = target, readOnly
		if sub != "" {
			mount.Source = path.Join(mount.Source, sub)
			if compose.Closed(mount.Source) {
				p.bad(m.get("subPath"), "this part of the guest cannot be mounted into a container", "use another path")
			}
		}
		s.Mounts = slices.DeleteFunc(s.Mounts, func(o compose.Mount) bool { return o.Target == target && target == "/dev/shm" })
		if slices.ContainsFunc(s.Mounts, func(o compose.Mount) bool { return o.Target == target }) {
			p.bad(m.get("mountPath"), "another volume is mounted there", "change one of them")
		}
		s.Mounts = append(s.Mounts, mount)
	})
}

func (p *podRun) security(a at, s *compose.Service, shared podShared) {
	user, group, nonRoot := shared.user, shared.userGroup, shared.nonRoot
	if a.present() && p.only(a, "runAsUser", "runAsGroup", "runAsNonRoot", "readOnlyRootFilesystem", "allowPrivilegeEscalation", "privileged", "capabilities", "seccompProfile") {
		user, group = p.count(a.get("runAsUser"), user, 0, 1<<31-1), p.count(a.get("runAsGroup"), group, 0, 1<<31-1)
		if n := a.get("runAsNonRoot"); n.present() {
			nonRoot = p.yes(n)
		}
		s.ReadOnly, s.NewPrivileges, s.Privileged = p.yes(a.get("readOnlyRootFilesystem")), p.yes(a.get("allowPrivilegeEscalation")), p.yes(a.get("privileged"))
		s.Unconfined = p.seccomp(a.get("seccompProfile"), s.Unconfined)
		if caps := a.get("capabilities"); caps.present() && p.only(caps, "add", "drop") {
			for key, to := range map[string]*[]string{"add": &s.CapAdd, "drop": &s.CapDrop} {
				p.each(caps.get(key), func(c at) {
					name, ok := compose.Capability(p.word(c))
					if !ok || key == "add" && compose.GuestCapability(name) {
						p.bad(c, "this is not a capability that a container can have", "correct its name, or remove it")
					}
					*to = append(*to, name)
				})
			}
		}
	}
	switch {
	case nonRoot && user <= 0:
		p.bad(a.get("runAsNonRoot"), "runAsNonRoot wants a user that is not root", "give runAsUser, a number above zero")
	case group >= 0 && user < 0:
		p.bad(a.get("runAsGroup"), "a group without a user is not supported", "give runAsUser too")
	case user >= 0:
		s.User = strconv.FormatInt(user, 10) + ":" + strconv.FormatInt(max(group, 0), 10)
	}
	if powers := s.Powers(); len(powers) > 0 && !p.policy.Privileged {
		p.bad(a, "this image's policy refuses containers with power beyond their own", "remove privileged, Unconfined and powerful capabilities")
	}
}

func (p *podRun) probe(a, ports at, readiness bool) *compose.Probe {
	if !p.only(a, "exec", "httpGet", "tcpSocket", "grpc", "initialDelaySeconds", "periodSeconds", "timeoutSeconds", "successThreshold", "failureThreshold") {
		return nil
	}
	seconds := func(key string, missing, least int64) time.Duration {
		return time.Duration(p.count(a.get(key), missing, least, 86400)) * time.Second
	}
	out := &compose.Probe{
		Delay: seconds("initialDelaySeconds", 0, 0), Period: seconds("periodSeconds", 10, 1), Timeout: seconds("timeoutSeconds", 1, 1),
		Failures: int(p.count(a.get("failureThreshold"), 3, 1, 1000)), Successes: 1,
	}
	most := int64(1)
	if readiness {
		most = 1000
	}
	out.Successes = int(p.count(a.get("successThreshold"), 1, 1, most))
	port := func(v at) uint16 {
		if v.n.isString() {
			for i := range ports.vals() {
				if q := ports.item(i); q.get("name").text() == v.n.text {
					return uint16(p.count(q.get("containerPort"), 0, 1, 65535))
				}
			}
		}
		n := uint16(p.count(v, 0, 1, 65535))
		if !v.present() {
			p.bad(v, "this key is missing", "add it")
		}
		return n
	}
	kinds := 0
	if e := a.get("exec"); e.present() && p.only(e, "command") {
		kinds++
		p.each(e.get("command"), func(c at) { out.Exec = append(out.Exec, p.word(c)) })
		if len(out.Exec) == 0 {
			p.bad(e, "there is no command", "add one")
		}
	}
	if t := a.get("tcpSocket"); t.present() && p.only(t, "port") {
		kinds++
		out.Kind, out.Port = compose.ProbeTCP, port(t.get("port"))
	}
	if g := a.get("grpc"); g.present() && p.only(g, "port", "service") {
		kinds++
		out.Kind, out.Port, out.Service = compose.ProbeGRPC, port(g.get("port")), p.word(g.get("service"))
	}
	if h := a.get("httpGet"); h.present() && p.only(h, "path", "port", "scheme", "httpHeaders") {
		kinds++
		out.Kind, out.Port = compose.ProbeHTTP, port(h.get("port"))
		if out.Path = p.word(h.get("path")); out.Path == "" {
			out.Path = "/"
		}
		if out.Path[0] != '/' || strings.ContainsAny(out.Path, " \r\n\t") {
			p.bad(h.get("path"), "this is not a path", "begin it with / and leave out white space")
		}
		out.TLS = p.oneOf(h.get("scheme"), "HTTP", "HTTPS") == "HTTPS"
		p.each(h.get("httpHeaders"), func(v at) {
			p.only(v, "name", "value")
			out.Headers = append(out.Headers, compose.Var{Name: p.word(v.get("name")), Value: p.word(v.get("value"))})
		})
	}
	if kinds != 1 {
		p.bad(a, "a probe has exactly one of exec, httpGet, tcpSocket and grpc", "keep one of them")
	}
	return out
}
