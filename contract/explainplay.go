package contract

import (
	"net/netip"
	"path"
	"strconv"
	"strings"

	"hpcr/contract/archive"
	"hpcr/contract/compose"
)

// explainPlay lists the containers of all pods: resources and templates as
// they are written, and the files of the archive.
func (r *run) explainPlay(x *Explanation, p at) {
	for _, key := range []string{"resources", "templates"} {
		l := p.get(key)
		if l.n == nil || l.n.kind != listNode {
			continue
		}
		for i := range l.n.vals {
			r.explainPod(x, l.item(i))
		}
	}
	if !p.get("archive").present() {
		return
	}
	files, err := archive.Unpack(p.get("archive").text())
	if err != nil {
		r.failFrom(p.get("archive"), err)
		return
	}
	for _, f := range files {
		switch path.Ext(f.Name) {
		case ".yaml", ".yml", ".json":
			n, yerr := parseYAML("play", f.Data)
			if yerr != nil {
				r.warn("", p.get("archive"), "a file of the archive is not one YAML document, and was not looked at", "keep one resource in each file")
				continue
			}
			r.explainPod(x, root("play", "play", n))
		}
	}
}

func (r *run) explainPod(x *Explanation, pod at) {
	if pod.get("kind").text() != "Pod" {
		return
	}
	name, spec := pod.get("metadata").get("name").text(), pod.get("spec")
	for _, key := range []string{"initContainers", "containers"} {
		l := spec.get(key)
		if l.n == nil || l.n.kind != listNode {
			continue
		}
		for i := range l.n.vals {
			c := l.item(i)
			s := ExplainedService{Name: name + "/" + c.get("name").text(), Image: c.get("image").text()}
			s.VerifiedBy = r.verifiedBy(s.Image, true)
			if run := r.container(c.host); run != nil { // its image with the variables filled in
				s.VerifiedBy = r.verifiedImage(run.Signed())
			}
			x.Services = append(x.Services, s)
			explainPodPorts(x, s.Name, c.get("ports"))
		}
	}
}

// container is the pod's container that stands at a place, if the guest would
// run it.
func (r *run) container(place string) *compose.Service {
	if r.plan.Compose == nil {
		return nil
	}
	for i := range r.plan.Compose.Services {
		if s := &r.plan.Compose.Services[i]; s.Place == place {
			return s
		}
	}
	return nil
}

// explainPodPorts lists what is published; other ports stay in the guest.
func explainPodPorts(x *Explanation, service string, ports at) {
	if ports.n == nil || ports.n.kind != listNode {
		return
	}
	for i := range ports.n.vals {
		p := ports.item(i)
		if !validPort(p.get("hostPort").text()) || !validPort(p.get("containerPort").text()) {
			continue
		}
		port := ExplainedPort{Service: service, HostPort: p.get("hostPort").text(),
			ContainerPort: p.get("containerPort").text(), Protocol: "tcp"}
		if ip, err := netip.ParseAddr(p.get("hostIP").text()); err == nil {
			port.HostIP = ip.String()
		}
		if strings.EqualFold(p.get("protocol").text(), "udp") {
			port.Protocol = "udp"
		}
		x.Ports = append(x.Ports, port)
	}
}

func decimal(n uint16) string { return strconv.Itoa(int(n)) }
