package contract

import (
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"hpcr/agent/secret"
	"hpcr/contract/compose"
)

// TLS is what both sections say of TLS at the containers' borders: the
// workload's provider which endpoints there are, its deployer who they are and
// whom they trust.
type TLS struct {
	Ingress    []Ingress
	Egress     []Egress
	Identities []TLSIdentity // those that something names
	Management *Management   // nil = no listener of the agent's own
}

// Ingress is workload.x-hpcr.tls.ingress[i]: TLS from outside, plain text to a
// container.
type Ingress struct {
	Name       string `json:"name"`
	Listen     int    `json:"listen"`  // port of the guest
	Service    string `json:"service"` // of the project; the pod's first container, for a pod
	Port       int    `json:"port"`    // of the container
	Identity   string `json:"identity,omitempty"`
	ClientCA   []byte `json:"clientCA,omitempty"`   // PEM; nil = every client gets in
	ServerName string `json:"serverName,omitempty"` // "" = whatever the client asks for
}

// Egress is workload.x-hpcr.tls.egress[i]: plain text from containers, who
// find it by Name, TLS to a named host.
type Egress struct {
	Name       string `json:"name"`
	Listen     int    `json:"listen"` // port at which containers reach it
	Host       string `json:"host"`   // name or IP address
	Port       int    `json:"port"`
	CA         []byte `json:"ca"`                 // PEM: whom alone it trusts
	Identity   string `json:"identity,omitempty"` // "" = shows none
	ServerName string `json:"serverName"`         // name or address that the certificate must be of
}

// TLSIdentity is env.x-hpcr.tls.identities.NAME. The PEM texts are in normal
// form.
type TLSIdentity struct {
	Name string
	Path string // "/env/x-hpcr/tls/identities/#1"
	Cert []byte
	Key  *secret.Secret
	// Renewable: clients of the management listener may replace the
	// certificate by another one of the same key.
	Renewable bool
}

// Management is env.x-hpcr.management: health over mutual TLS.
type Management struct {
	Listen   int    `json:"listen"`
	Identity string `json:"identity,omitempty"` // "" = the agent's own
	ClientCA []byte `json:"clientCA"`
}

// HealthPort is the guest's port of the plain health endpoint of dev images.
const HealthPort = 9080

// maxEndpoints bounds the entries of each list and mapping.
const maxEndpoints = 64

var (
	endpointName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	tlsCodes     = keyCodes{schema, schema, schema, schema}
)

// tlsParts are the places that the two sections' rules found and r.tls joins.
type tlsParts struct {
	ingress, egress         []endpointPart
	identities, authorities at // of env
	management, dns         at
	cas                     map[string][]byte // by name, PEM
	envSeen                 bool
}

type endpointPart struct {
	at     at
	name   string
	listen int
	to     string // host or service
	port   int
}

// workloadTLS reads workload.x-hpcr.tls as far as it stands alone.
func (r *run) workloadTLS(a at) {
	if !a.present() || !r.mapping(a) {
		return
	}
	r.closed(a, "ingress", "egress")
	r.ends.ingress = r.endpoints(a.get("ingress"), "clientAuthority")
	r.ends.egress = r.endpoints(a.get("egress"), "authority")
	seen := map[string]bool{}
	for _, e := range slices.Concat(r.ends.ingress, r.ends.egress) {
		if e.name != "" && seen[e.name] {
			r.fail(schema, e.at.get("name"), "two endpoints have this name", "give each endpoint of tls a name of its own")
		}
		seen[e.name] = true
	}
	for _, list := range [][]endpointPart{r.ends.ingress, r.ends.egress} {
		ports := map[int]bool{}
		for _, e := range list {
			if e.listen != 0 && ports[e.listen] {
				r.fail(schema, e.at.get("listen"), "two endpoints listen on this port", "give each endpoint of the list a port of its own")
			}
			ports[e.listen] = true
		}
	}
}

func (r *run) endpoints(list at, authority string) (out []endpointPart) {
	if !list.present() || !r.list(list) {
		return nil
	}
	if len(list.n.vals) > maxEndpoints {
		r.fail(schema, list, "there are more than 64 endpoints", "remove some")
		return nil
	}
	for i := range list.n.vals {
		e := endpointPart{at: list.item(i)}
		if !r.mapping(e.at) {
			continue
		}
		r.closed(e.at, "name", "listen", "to", "identity", authority, "serverName")
		if n, ok := r.required(e.at, "name"); ok {
			e.name, _ = r.matching(n, endpointName.MatchString, "this is not the name of an endpoint", "use lower-case letters, digits and dashes, at most 63")
		}
		if l, ok := r.required(e.at, "listen"); ok {
			e.listen = r.port(l, 0)
		}
		if t, ok := r.required(e.at, "to"); ok {
			if s, ok := r.str(t); ok {
				e.to, e.port = r.target(t, s)
			}
		}
		if s := e.at.get("serverName"); s.present() {
			r.matching(s, validHost, "this is neither a host name nor an IP address", "give one name, without port")
		}
		out = append(out, e)
	}
	return out
}

// target splits "NAME:PORT". What the name may be is the list's to say.
func (r *run) target(a at, s string) (name string, port int) {
	name, text, err := net.SplitHostPort(s)
	if err == nil && validPort(text) && name != "" {
		port, err = strconv.Atoi(text)
	}
	if err != nil || port == 0 {
		r.fail(schema, a, "this is not a target", "write NAME:PORT, an IPv6 address in brackets")
		return "", 0
	}
	return name, port
}

// envTLS reads env.x-hpcr.tls, .management and .dns, as far as they stand
// alone.
func (r *run) envTLS(tls, management, dns at) {
	r.ends.envSeen, r.ends.dns = true, dns
	if tls.present() && r.mapping(tls) {
		r.closed(tls, "identities", "authorities")
		r.ends.identities, r.ends.authorities = tls.get("identities"), tls.get("authorities")
		for _, m := range []at{r.ends.identities, r.ends.authorities} {
			if !m.present() || !r.mapping(m) {
				continue
			}
			if len(m.n.keys) > maxEndpoints {
				r.fail(schema, m, "there are more than 64 entries", "remove some")
				continue
			}
			for i, k := range m.n.keys {
				if !endpointName.MatchString(k.text) {
					r.fail(schema, m.key(i), "this is not a name for one", "use lower-case letters, digits and dashes, at most 63")
				}
			}
		}
		r.identities(management)
		r.ends.cas = map[string][]byte{}
		for i, k := range r.ends.authorities.keys() {
			r.ends.cas[k.text] = r.certs(r.ends.authorities.entry(i), schema, "of this authority")
		}
	}
	if management.present() && r.mapping(management) {
		r.closed(management, "listen", "identity", "clientAuthority")
		r.ends.management = management
	}
}

func (r *run) identities(management at) {
	for i, k := range r.ends.identities.keys() {
		e := r.ends.identities.entry(i)
		if !r.mapping(e) {
			continue
		}
		r.closed(e, "cert", "key", "renewable")
		id := TLSIdentity{Name: k.text, Path: e.host, Renewable: r.boolean(e.get("renewable"))}
		if c, ok := r.required(e, "cert"); ok {
			id.Cert = r.certs(c, schema, "of this identity, with its chain")
		}
		if key, ok := r.required(e, "key"); ok {
			id.Key = r.privateKey(key, id.Cert, "the identity's", tlsCodes)
		}
		if id.Renewable && !management.present() {
			r.fail(schema, e.get("renewable"), "without a management listener nobody can renew it", "add management to env.x-hpcr, or remove this")
		}
		r.plan.TLS.Identities = append(r.plan.TLS.Identities, id)
	}
}

// tls joins the two sections, and the endpoints with the services.
func (r *run) tls() {
	used := map[string]bool{}
	for _, e := range r.ends.ingress {
		i := Ingress{Name: e.name, Listen: e.listen, Port: e.port, ServerName: e.at.get("serverName").text()}
		i.Service = r.ingressService(e)
		i.Identity = r.identity(e.at.get("identity"), used)
		i.ClientCA = r.authority(e.at.get("clientAuthority"), used)
		if e.listen == HealthPort {
			r.fail(schema, e.at.get("listen"), "this is the port of the guest's health", "take another port")
		}
		r.plan.TLS.Ingress = append(r.plan.TLS.Ingress, i)
	}
	for _, e := range r.ends.egress {
		out := Egress{Name: e.name, Listen: e.listen, Host: e.to, Port: e.port, ServerName: e.at.get("serverName").text()}
		if e.to != "" && !validHost(e.to) {
			r.fail(schema, e.at.get("to"), "this is neither a host name nor an IP address", "write HOST:PORT of the server that containers are to reach")
		}
		if out.ServerName == "" {
			out.ServerName = out.Host
		}
		if e.listen == 53 {
			r.fail(schema, e.at.get("listen"), "this is the port of the containers' resolver", "take another port")
		}
		r.egressName(e)
		out.Identity = r.identity(e.at.get("identity"), used)
		if a, ok := r.required(e.at, "authority"); ok {
			out.CA = r.authority(a, used)
		}
		r.plan.TLS.Egress = append(r.plan.TLS.Egress, out)
	}
	r.managementRules(used)
	r.dns(used)
	for _, m := range []at{r.ends.identities, r.ends.authorities} {
		for i, k := range m.keys() {
			if !used[m.entry(i).path] && endpointName.MatchString(k.text) && r.workload.body.present() {
				r.warn("", m.key(i), "nothing uses it", "name it in an endpoint of workload.x-hpcr.tls or in env.x-hpcr, or remove it")
			}
		}
	}
	r.plan.TLS.Identities = slices.DeleteFunc(r.plan.TLS.Identities, func(id TLSIdentity) bool {
		if used[r.ends.identities.get(id.Name).path] {
			return false
		}
		id.Key.Wipe()
		return true
	})
}

func (r *run) managementRules(used map[string]bool) {
	m := r.ends.management
	if !m.present() {
		return
	}
	out := &Management{}
	if l, ok := r.required(m, "listen"); ok {
		out.Listen = r.port(l, 0)
		r.freePort(l, out.Listen)
	}
	out.Identity = r.identity(m.get("identity"), used)
	if a, ok := r.required(m, "clientAuthority"); ok {
		out.ClientCA = r.authority(a, used)
	}
	for _, e := range r.ends.ingress {
		if e.listen == out.Listen && out.Listen != 0 {
			r.fail(schema, m.get("listen"), "an endpoint of workload.x-hpcr.tls.ingress listens on this port", "take another port")
		}
	}
	if out.Listen == HealthPort {
		r.fail(schema, m.get("listen"), "this is the port of the guest's health", "take another port")
	}
	r.plan.TLS.Management = out
}

// identity and authority resolve a name that a section gives. Where env was
// not looked at, there is nothing to say.
func (r *run) identity(a at, used map[string]bool) string {
	if !r.lookUp(a, r.ends.identities, "identities", used) {
		return ""
	}
	return a.text()
}

func (r *run) authority(a at, used map[string]bool) []byte {
	if !r.lookUp(a, r.ends.authorities, "authorities", used) {
		return nil
	}
	return r.ends.cas[a.text()]
}

func (r *run) lookUp(a, among at, kind string, used map[string]bool) bool {
	if !a.present() || !r.ends.envSeen {
		return false
	}
	s, ok := r.str(a)
	if !ok {
		return false
	}
	i := slices.IndexFunc(among.keys(), func(k *node) bool { return k.text == s })
	if i < 0 {
		r.fail(schema, a, fmt.Sprintf("env.x-hpcr.tls.%s has no such name", kind), fmt.Sprintf("add it to env, under x-hpcr, tls, %s", kind))
		return false
	}
	used[among.entry(i).path] = true
	return true
}

// ingressService finds the container that an ingress forwards to: a service of
// a compose project, or "pod" and "pod/container".
func (r *run) ingressService(e endpointPart) string {
	if r.plan.Compose == nil || e.to == "" {
		return ""
	}
	for i := range r.plan.Compose.Services {
		s := &r.plan.Compose.Services[i]
		if s.Name != e.to && (s.Pod == "" || s.Pod != e.to) {
			continue
		}
		if s.NetworkMode != "" {
			r.fail(schema, e.at.get("to"), "this service is on no network of the project", "remove its network_mode")
		}
		r.freePort(e.at.get("listen"), e.listen)
		if s.Pod == "" {
			return s.Name
		}
		// A pod has one address, that of its first container.
		j := slices.IndexFunc(r.plan.Compose.Services, func(o compose.Service) bool { return o.Pod == s.Pod })
		return r.plan.Compose.Services[j].Name
	}
	r.fail(schema, e.at.get("to"), "the workload has no such service", "write SERVICE:PORT of a service, or POD:PORT")
	return ""
}

// freePort refuses a port that a container publishes.
func (r *run) freePort(a at, port int) {
	if r.plan.Compose == nil || port == 0 {
		return
	}
	for i := range r.plan.Compose.Services {
		for _, p := range r.plan.Compose.Services[i].Ports {
			if int(p.HostPort) == port && p.Proto == "tcp" {
				r.fail(schema, a, "a container publishes this port", "take another port, or remove the container's")
				return
			}
		}
	}
}

// egressName refuses what a service is called by its neighbours.
func (r *run) egressName(e endpointPart) {
	if r.plan.Compose == nil || e.name == "" {
		return
	}
	for i := range r.plan.Compose.Services {
		s := &r.plan.Compose.Services[i]
		names := []string{s.Name, s.Container, s.Pod}
		for _, m := range s.Join {
			names = append(names, m.Aliases...)
		}
		if slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, e.name) }) {
			r.fail(schema, e.at.get("name"), "a service has this name", "give the endpoint another name")
			return
		}
	}
}

// check repeats what the agent relies on.
func (t *TLS) check() error {
	ids := map[string]bool{"": true}
	for _, id := range t.Identities {
		if !endpointName.MatchString(id.Name) || ids[id.Name] || len(id.Cert) == 0 || id.Key.Len() == 0 || !identityPlace.MatchString(id.Path) || id.Renewable && t.Management == nil {
			return errTLS
		}
		ids[id.Name] = true
	}
	port := func(n int) bool { return n > 0 && n < 65536 }
	if len(t.Ingress) > maxEndpoints || len(t.Egress) > maxEndpoints || len(t.Identities) > maxEndpoints {
		return errTLS
	}
	for _, i := range t.Ingress {
		if !endpointName.MatchString(i.Name) || !port(i.Listen) || !port(i.Port) || i.Service == "" || !ids[i.Identity] || i.ServerName != "" && !validHost(i.ServerName) {
			return errTLS
		}
	}
	for _, e := range t.Egress {
		if !endpointName.MatchString(e.Name) || !port(e.Listen) || e.Listen == 53 || !port(e.Port) || !validHost(e.Host) || !validHost(e.ServerName) || len(e.CA) == 0 || !ids[e.Identity] {
			return errTLS
		}
	}
	if m := t.Management; m != nil && (!port(m.Listen) || !ids[m.Identity] || len(m.ClientCA) == 0) {
		return errTLS
	}
	return nil
}

var (
	errTLS        = errors.New("endpoints of TLS")
	identityPlace = regexp.MustCompile(`^/env/x-hpcr/tls/identities/#[0-9]{1,3}$`)
)
