package contract

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
	"strings"
	"time"

	"hpcr/contract/archive"
	"hpcr/contract/trust"
)

// Explanation is what a contract asks of a guest, for people who have to
// judge one. It holds names and places, and no value that may be a secret.
type Explanation struct {
	Services    []ExplainedService  `json:"services"`
	Volumes     []ExplainedVolume   `json:"volumes"`
	Ports       []ExplainedPort     `json:"ports"`
	Endpoints   []ExplainedEndpoint `json:"endpoints,omitempty"`
	Environment []string            `json:"environment"` // names of both sections, sorted
	Logging     ExplainedLogging    `json:"logging"`
	Warnings    []Finding           `json:"warnings"` // all that lint says, errors too

	Sections   []ExplainedSection `json:"sections"`
	Signature  ExplainedSignature `json:"signature"`
	Registries []string           `json:"registries"` // with credentials

	// Readable is false if something could not be read that should have been:
	// the contract itself, or a section that the keys given do not open.
	Readable bool `json:"-"`
}

// Where an image's content is vouched for. An image with keys of both kinds
// has "images.rhs, x-hpcr.images.cosign": both signatures are needed.
const (
	ByDigest  = "digest"             // a literal digest: the content cannot change
	ByRHS     = string(trust.RHS)    // a GPG signature, by a key in the contract
	ByCosign  = string(trust.Cosign) // a cosign signature, likewise
	ByNothing = "nothing"            // the guest refuses it
)

// ExplainedService is a compose service or a container of a pod ("pod/name").
type ExplainedService struct {
	Name       string   `json:"name"`
	Image      string   `json:"image"` // with tag and digest; as written if it could not be resolved
	VerifiedBy string   `json:"verifiedBy"`
	Powers     []string `json:"powers,omitempty"` // fields that give power over the guest
}

// ExplainedVolume is a data volume of either section.
type ExplainedVolume struct {
	Name       string `json:"name"`
	Mount      string `json:"mount,omitempty"`
	Filesystem string `json:"filesystem,omitempty"`
	Rolled     bool   `json:"rolled"`   // a previousSeed is given
	Existing   bool   `json:"existing"` // an empty disk is refused: existing or minGeneration is given
}

// ExplainedPort is a port that the guest publishes.
type ExplainedPort struct {
	Service       string `json:"service"`
	HostIP        string `json:"hostIP,omitempty"` // "" = all addresses
	HostPort      string `json:"hostPort"`
	ContainerPort string `json:"containerPort"`
	Protocol      string `json:"protocol"` // tcp, udp
}

// ExplainedEndpoint is a TLS endpoint of the workload.
type ExplainedEndpoint struct {
	Kind      string `json:"kind"` // ingress, egress
	Name      string `json:"name"`
	Listen    int    `json:"listen"`
	To        string `json:"to"`
	Identity  string `json:"identity,omitempty"`  // an ingress without one shows the guest's own
	Authority string `json:"authority,omitempty"` // whose peers it takes; an ingress without one takes any
}

// ExplainedLogging is where the log goes; empty if nothing is configured or
// env was not looked at.
type ExplainedLogging struct {
	Kind     string `json:"kind,omitempty"` // syslog, logRouter, logDNA
	Hostname string `json:"hostname,omitempty"`
	Port     int    `json:"port,omitempty"`
}

// ExplainedSection is one top-level value of the contract.
type ExplainedSection struct {
	Name   string `json:"name"`
	Form   string `json:"form"` // token, text, mapping
	Prefix string `json:"prefix,omitempty"`
	Looked bool   `json:"looked"`           // false: encrypted, and no key was given that opens it
	SHA256 string `json:"sha256,omitempty"` // of a token, as in the attestation record; that of a text could confirm a guess
}

// ExplainedSignature says who can be known to have joined the two sections.
type ExplainedSignature struct {
	State    string     `json:"state"` // none, valid, invalid, unchecked
	NotAfter *time.Time `json:"notAfter,omitempty"`
}

// Explain looks at a contract as lint does. An error means that a key is
// unusable.
func Explain(in LintInput) (*Explanation, error) {
	r, err := newRun(in.Keys, in.Policy, in.Now)
	if err != nil {
		return nil, err
	}
	r.lint = true
	r.files.UserData = in.UserData
	return r.explanation(), nil
}

func (r *run) explanation() *Explanation {
	defer r.wipeLint()
	r.all()
	x := &Explanation{
		Services: []ExplainedService{}, Volumes: []ExplainedVolume{}, Ports: []ExplainedPort{},
		Environment: []string{}, Registries: []string{}, Sections: []ExplainedSection{},
		Signature: ExplainedSignature{State: "none"}, Readable: r.top.present(),
	}
	if !r.top.present() {
		x.Warnings = r.found()
		return x
	}
	r.explainSections(x)
	r.explainServices(x)
	r.explainVolumes(x)
	r.explainEndpoints(x)
	r.explainLogging(x)
	x.Environment = append(x.Environment, slices.Sorted(maps.Keys(r.mergedEnv()))...)
	hosts := map[string]bool{}
	for _, s := range []at{r.env.body, r.workload.body} {
		for _, k := range s.get("auths").keys() {
			hosts[k.text] = true
		}
	}
	x.Registries = append(x.Registries, slices.Sorted(maps.Keys(hosts))...)
	x.Warnings = r.found()
	return x
}

func (r *run) explainSections(x *Explanation) {
	looked := map[string]bool{"attestationPublicKey": r.decryptedKey != ""}
	for _, s := range []*section{&r.workload, &r.env} {
		looked[s.name] = s.body.present()
		x.Readable = x.Readable && (s.body.present() || s.closed)
	}
	for i, k := range r.top.n.keys {
		v := r.top.n.vals[i]
		s := ExplainedSection{Name: k.text, Form: "text", Looked: true}
		switch {
		case v.kind != scalarNode:
			s.Form = "mapping"
		case IsToken(strings.TrimSpace(v.text)):
			s.Form, s.Looked = "token", looked[k.text]
			s.Prefix, _, _ = strings.Cut(strings.TrimSpace(v.text), ".")
			sum := sha256.Sum256([]byte(v.text))
			s.SHA256 = hex.EncodeToString(sum[:])
		}
		x.Sections = append(x.Sections, s)
	}
	if !r.top.get("envWorkloadSignature").present() {
		return
	}
	switch {
	case r.plan.Signed:
		x.Signature.State = "valid"
		if !r.plan.SignerNotAfter.IsZero() {
			end := r.plan.SignerNotAfter.UTC()
			x.Signature.NotAfter = &end
		}
	case r.env.closed:
		x.Signature.State = "unchecked"
	default:
		x.Signature.State = "invalid"
	}
}

func (r *run) explainServices(x *Explanation) {
	switch w := r.workload.body; {
	case w.get("play").present():
		r.explainPlay(x, w.get("play"))
	case r.plan.Compose != nil:
		for i := range r.plan.Compose.Services {
			s := &r.plan.Compose.Services[i]
			image := s.Image.Name
			if s.Image.Tag != "" {
				image += ":" + s.Image.Tag
			}
			if s.Image.Digest != "" {
				image += "@" + s.Image.Digest
			}
			x.Services = append(x.Services, ExplainedService{s.Name, image, r.verifiedImage(s.Signed()), s.Powers()})
			for _, p := range s.Ports {
				port := ExplainedPort{Service: s.Name, HostPort: decimal(p.HostPort), ContainerPort: decimal(p.ContainerPort), Protocol: p.Proto}
				if p.HostIP.IsValid() {
					port.HostIP = p.HostIP.String()
				}
				x.Ports = append(x.Ports, port)
			}
		}
	case w.get("compose").present():
		r.explainComposeFile(x, w.get("compose").get("archive"))
	}
}

// explainComposeFile names the services of a compose file that the guest would
// refuse, as far as they can be read.
func (r *run) explainComposeFile(x *Explanation, a at) {
	files, err := archive.Unpack(a.text())
	if err != nil {
		return // a finding already
	}
	n, yerr := parseYAML("compose", composeFile(files))
	if yerr != nil {
		return
	}
	services := root("compose", "compose", n).get("services")
	for i, k := range services.keys() {
		image := services.entry(i).get("image").text()
		x.Services = append(x.Services, ExplainedService{Name: k.text, Image: image, VerifiedBy: r.verifiedBy(image, false)})
	}
}

func (r *run) explainEndpoints(x *Explanation) {
	list := func(kind, authority string, parts []endpointPart) {
		for _, e := range parts {
			x.Endpoints = append(x.Endpoints, ExplainedEndpoint{kind, e.name, e.listen, e.at.get("to").text(), e.at.get("identity").text(), e.at.get(authority).text()})
		}
	}
	list("ingress", "clientAuthority", r.ends.ingress)
	list("egress", "authority", r.ends.egress)
}

// explainVolumes joins what the two sections say, workload's order first.
func (r *run) explainVolumes(x *Explanation) {
	env := r.env.body.get("volumes")
	for _, v := range r.volumes {
		x.Volumes = append(x.Volumes, ExplainedVolume{Name: v.name, Mount: v.mount, Filesystem: v.fs,
			Rolled:   v.work.before != "" || env.get(v.name).get("previousSeed").present(),
			Existing: v.demands.existing || v.demands.minGeneration > 0})
	}
	for i, k := range env.keys() {
		if !slices.ContainsFunc(r.volumes, func(v volumePair) bool { return v.name == k.text }) {
			x.Volumes = append(x.Volumes, ExplainedVolume{Name: k.text, Rolled: env.entry(i).get("previousSeed").present()})
		}
	}
}

func (r *run) explainLogging(x *Explanation) {
	if s := r.plan.Syslog; s != nil {
		x.Logging = ExplainedLogging{"syslog", s.Host, s.Port}
	} else if l := r.plan.LogRouter; l != nil {
		x.Logging = ExplainedLogging{"logRouter", l.Host, l.Port}
	} else if l := r.plan.LogDNA; l != nil {
		x.Logging = ExplainedLogging{"logDNA", l.Host, l.Port}
	}
}
