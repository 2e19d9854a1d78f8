package contract

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"time"

	"hpcr/agent/hpl"
	"hpcr/agent/secret"
	"hpcr/contract/compose"
	"hpcr/contract/trust"
)

// MaxWire bounds the wire form between the contract child and the agent.
const MaxWire = 96 << 20

// wirePlan is what the agent needs of a Plan, its secrets in base64: the only
// form in which they leave a process, in a file in memory that ends in the
// agent. It is one line of JSON. Behind it stand user-data.decrypted and
// workload-data.decrypted as they are, which may have many MiB.
type wirePlan struct {
	Hostname        string           `json:"hostname"`
	TokensDecrypted int              `json:"tokensDecrypted"`
	TokensIgnored   int              `json:"tokensIgnored"`
	Network         *Network         `json:"network"`
	Time            Time             `json:"time"`
	DNS             []DNSServer      `json:"dns,omitempty"`
	Syslog          *wireSyslog      `json:"syslog"`
	LogRouter       *wireLogRouter   `json:"logRouter"`
	LogDNA          *wireLogDNA      `json:"logDNA"`
	Volumes         []wireVolume     `json:"volumes"`
	Auths           []wireAuth       `json:"auths"`
	CACerts         [][]byte         `json:"caCerts"`
	TLS             wireTLS          `json:"tls"`
	Trust           trust.Policy     `json:"trust"`
	Lookaside       []Lookaside      `json:"lookaside"`
	Compose         *compose.Project `json:"compose"`
	Digests         []Digest         `json:"digests"`

	AttestationPublicKey  []byte `json:"attestationPublicKey"`
	UserDataMasked        int    `json:"userDataMasked"` // bytes behind the line
	WorkloadDataDecrypted int    `json:"workloadDataDecrypted"`
	MetaData              []byte `json:"metaData"`
	VendorData            []byte `json:"vendorData"`

	Signed          bool      `json:"signed"`
	SignerNotBefore time.Time `json:"signerNotBefore"`
	SignerNotAfter  time.Time `json:"signerNotAfter"`
	Warnings        []Warning `json:"warnings"`
}

type wireSyslog struct {
	Host string `json:"host"`
	Port int    `json:"port"`
	CA   []byte `json:"ca"`
	Cert []byte `json:"cert"`
	Key  []byte `json:"key"`
}

type wireLogRouter struct {
	Host   string `json:"host"`
	Port   int    `json:"port"`
	APIKey []byte `json:"apiKey"`
	IAM    string `json:"iam"`
}

type wireLogDNA struct {
	Host string   `json:"host"`
	Port int      `json:"port"`
	Key  []byte   `json:"key"`
	Tags []string `json:"tags"`
}

type wireTLS struct {
	Ingress    []Ingress      `json:"ingress"`
	Egress     []Egress       `json:"egress"`
	Identities []wireIdentity `json:"identities"`
	Management *Management    `json:"management"`
}

type wireIdentity struct {
	Name string `json:"name"`
	Path string `json:"path"`
	Cert []byte `json:"cert"`
	Key  []byte `json:"key"`

	Renewable bool `json:"renewable,omitempty"`
}

type wireVolume struct {
	Name        string   `json:"name"`
	Path        string   `json:"path"`
	Mount       string   `json:"mount"`
	Filesystem  string   `json:"filesystem"`
	Passphrases [][]byte `json:"passphrases"`
	Previous    [][]byte `json:"previous"`
	MayCreate   bool     `json:"mayCreate"`

	Existing      bool   `json:"existing"`
	Integrity     bool   `json:"integrity"`
	MinGeneration uint64 `json:"minGeneration"`
}

type wireAuth struct {
	Host     string `json:"host"`
	Username string `json:"username"`
	Password []byte `json:"password"`
}

// podPlace is what a message to the host may call a pod's container.
var podPlace = regexp.MustCompile(`^/workload/play/(resources|templates|archive)/#?[0-9]{1,6}/spec/(initContainers|containers)/[0-9]{1,6}$`)

// recordDir is where containers find the record and the contract beside it.
const recordDir = "/var/hyperprotect"

// Encode writes the wire form: no more of the contract than the agent acts on.
// Seeds stay behind, and so does the contract's text, unless a container
// mounts it.
func (v *Verified) Encode(w io.Writer) error {
	p := v.plan
	out := wirePlan{
		Hostname: p.Hostname, TokensDecrypted: p.TokensDecrypted, TokensIgnored: p.TokensIgnored,
		Network: p.Network, Time: p.Time, DNS: p.DNS, CACerts: p.CACerts, Trust: p.Trust, Lookaside: p.Lookaside, Compose: p.Compose.Needed(), Digests: p.Digests,
		AttestationPublicKey: p.AttestationPublicKey,
		MetaData:             p.MetaData, VendorData: p.VendorData,
		Signed: p.Signed, SignerNotBefore: p.SignerNotBefore.UTC(), SignerNotAfter: p.SignerNotAfter.UTC(), Warnings: p.Warnings,
	}
	f := v.forms
	if f == nil || !p.Compose.Binds(recordDir) {
		f = &forms{}
	}
	out.UserDataMasked, out.WorkloadDataDecrypted = f.userDataLen, f.workloadDataLen
	if s := p.Syslog; s != nil {
		out.Syslog = &wireSyslog{s.Host, s.Port, s.CA, s.Cert, s.Key.Bytes()}
	}
	if l := p.LogRouter; l != nil {
		out.LogRouter = &wireLogRouter{l.Host, l.Port, l.APIKey.Bytes(), l.IAM}
	}
	if l := p.LogDNA; l != nil {
		out.LogDNA = &wireLogDNA{l.Host, l.Port, l.Key.Bytes(), l.Tags}
	}
	out.TLS = wireTLS{p.TLS.Ingress, p.TLS.Egress, nil, p.TLS.Management}
	for _, id := range p.TLS.Identities {
		out.TLS.Identities = append(out.TLS.Identities, wireIdentity{id.Name, id.Path, id.Cert, id.Key.Bytes(), id.Renewable})
	}
	for _, x := range p.Volumes {
		wv := wireVolume{Name: x.Name, Path: x.Path, Mount: x.Mount, Filesystem: x.Filesystem, MayCreate: x.MayCreate,
			Existing: x.Existing, Integrity: x.Integrity, MinGeneration: x.MinGeneration}
		for _, s := range x.Passphrases {
			wv.Passphrases = append(wv.Passphrases, s.Bytes())
		}
		for _, s := range x.Previous {
			wv.Previous = append(wv.Previous, s.Bytes())
		}
		out.Volumes = append(out.Volumes, wv)
	}
	for _, a := range p.Auths {
		out.Auths = append(out.Auths, wireAuth{a.Host, a.Username, a.Password.Bytes()})
	}
	// Unlike json.Marshal, an encoder does not copy the result once more.
	err := json.NewEncoder(bounded{w, MaxWire - f.userDataLen - f.workloadDataLen}).Encode(out)
	for _, text := range [][]byte{f.userData, f.workloadData} {
		if err == nil {
			_, err = f.cut.write(w, text)
		}
	}
	if err != nil {
		return fmt.Errorf("send the plan: %w", err)
	}
	return nil
}

// bounded refuses a plan that Decode would refuse, before a byte of it is
// written: an encoder writes it whole.
type bounded struct {
	w     io.Writer
	limit int
}

func (b bounded) Write(p []byte) (int, error) {
	if len(p) > b.limit {
		return 0, hpl.New("HPL11000E", "", "the contract's plan is too large: put large data into an image or a volume")
	}
	defer clear(p)
	return b.w.Write(p)
}

// Decode reads the wire form, of which it keeps nothing; the caller wipes it.
// The child that wrote it has parsed hostile bytes, so its word is checked
// again as far as it matters to the agent: size, names, paths, counts.
func Decode(wire []byte) (*Verified, error) {
	if len(wire) > MaxWire {
		return nil, errors.New("the plan is larger than 96 MiB")
	}
	line, texts, _ := bytes.Cut(wire, []byte("\n"))
	var in wirePlan
	// Not a decoder: that would copy all of it to the heap once more.
	err := json.Unmarshal(line, &in)
	p := in.plan()
	if err == nil {
		err = p.check()
	}
	if err == nil {
		err = p.take(texts, in.UserDataMasked, in.WorkloadDataDecrypted)
	}
	if err != nil {
		p.wipe()
		return nil, fmt.Errorf("the plan is not sound: %w", err)
	}
	return &Verified{plan: p}, nil
}

func (in *wirePlan) plan() *Plan {
	p := &Plan{
		Hostname: in.Hostname, TokensDecrypted: in.TokensDecrypted, TokensIgnored: in.TokensIgnored,
		Network: in.Network, Time: in.Time, DNS: in.DNS, CACerts: in.CACerts, Trust: in.Trust, Lookaside: in.Lookaside, Compose: in.Compose, Digests: in.Digests,
		AttestationPublicKey: in.AttestationPublicKey,
		MetaData:             in.MetaData, VendorData: in.VendorData,
		Signed: in.Signed, SignerNotBefore: in.SignerNotBefore, SignerNotAfter: in.SignerNotAfter, Warnings: in.Warnings,
	}
	if s := in.Syslog; s != nil {
		p.Syslog = &Syslog{s.Host, s.Port, s.CA, s.Cert, secret.New(s.Key)}
	}
	if l := in.LogRouter; l != nil {
		p.LogRouter = &LogRouter{l.Host, l.Port, secret.New(l.APIKey), l.IAM}
	}
	if l := in.LogDNA; l != nil {
		p.LogDNA = &LogDNA{l.Host, l.Port, secret.New(l.Key), l.Tags}
	}
	p.TLS = TLS{Ingress: in.TLS.Ingress, Egress: in.TLS.Egress, Management: in.TLS.Management}
	for _, id := range in.TLS.Identities {
		p.TLS.Identities = append(p.TLS.Identities, TLSIdentity{id.Name, id.Path, id.Cert, secret.New(id.Key), id.Renewable})
	}
	for _, x := range in.Volumes {
		v := Volume{Name: x.Name, Path: x.Path, Mount: x.Mount, Filesystem: x.Filesystem, MayCreate: x.MayCreate,
			Existing: x.Existing, Integrity: x.Integrity, MinGeneration: x.MinGeneration}
		for _, s := range x.Passphrases {
			v.Passphrases = append(v.Passphrases, secret.New(s))
		}
		for _, s := range x.Previous {
			v.Previous = append(v.Previous, secret.New(s))
		}
		p.Volumes = append(p.Volumes, v)
	}
	for _, a := range in.Auths {
		p.Auths = append(p.Auths, Auth{a.Host, a.Username, secret.New(a.Password)})
	}
	return p
}

// take moves the two texts out of the answer, whose bytes they are to the last.
func (p *Plan) take(texts []byte, masked, decrypted int) error {
	if masked < 0 || masked > len(texts) || decrypted != len(texts)-masked {
		return errors.New("length of the contract's text")
	}
	p.UserDataMasked, p.WorkloadDataDecrypted = secret.New(texts[:masked]), secret.New(texts[masked:])
	return nil
}

// check repeats the rules whose breach would let the child steer the agent.
func (p *Plan) check() error {
	if p.Hostname != "" && (!validName(p.Hostname) || len(p.Hostname) > maxHostname) {
		return errors.New("host name")
	}
	if p.TokensDecrypted < 0 || p.TokensIgnored < 0 || len(p.Volumes) > maxVolumes || len(p.Warnings) > maxFindings {
		return errors.New("counts")
	}
	if p.Compose == nil {
		return errors.New("no workload")
	}
	if err := p.Trust.Check(); err != nil {
		return fmt.Errorf("image keys: %w", err)
	}
	for i := range p.Compose.Services {
		s := &p.Compose.Services[i]
		if s.Place != "" && !podPlace.MatchString(s.Place) {
			return errors.New("place of a container")
		}
		if s.Image.Digest != "" && !compose.Pinned(s.Image.Ref()) || s.Image.Digest == "" && len(p.Trust.For(s.Signed())) == 0 {
			return errors.New("image that nothing vouches for")
		}
	}
	for _, l := range p.Lookaside {
		if l.Host != registry(l.Host) || !validAuthHost(l.Host) || !validLookaside(l.URL) {
			return errors.New("signature store")
		}
	}
	if err := errors.Join(p.Network.check(), p.Time.check(), checkDNS(p.DNS)); err != nil {
		return err
	}
	if s := p.Syslog; s != nil && (!validHost(s.Host) || s.Port < 1 || s.Port > 65535) {
		return errors.New("log target")
	}
	if l := p.LogRouter; l != nil && (!validHost(l.Host) || l.Port < 1 || l.Port > 65535 || !validAPIKey(string(l.APIKey.Bytes())) || !validLookaside(l.IAM)) {
		return errors.New("log service")
	}
	if l := p.LogDNA; l != nil && (!validHost(l.Host) || l.Port < 1 || l.Port > 65535 || !ingestionKey.Match(l.Key.Bytes()) ||
		slices.ContainsFunc(l.Tags, func(t string) bool { return !ingestionTag.MatchString(t) })) {
		return errors.New("log service")
	}
	if err := p.TLS.check(); err != nil {
		return err
	}
	mounts := map[string]bool{}
	for _, v := range p.Volumes {
		if !volumeKey.MatchString(v.Name) || len(v.Name) > 255 || !validMount(v.Mount) || reservedMount(v.Mount) || mounts[v.Mount] {
			return errors.New("volume name or mount")
		}
		mounts[v.Mount] = true
		if v.Filesystem != "ext4" && v.Filesystem != "xfs" && v.Filesystem != "btrfs" {
			return errors.New("file system")
		}
		if n, m := len(v.Passphrases), len(v.Previous); n < 1 || n > 2 || m > 6 {
			return errors.New("passphrases")
		}
		for _, s := range slices.Concat(v.Passphrases, v.Previous) {
			if s.Len() != 64 {
				return errors.New("passphrase")
			}
		}
	}
	for _, a := range p.Auths {
		if a.Host != registry(a.Host) || !validAuthHost(a.Host) {
			return errors.New("registry")
		}
	}
	for _, d := range p.Digests {
		if !digestLine.MatchString(d.SHA256 + " " + d.Name) {
			return errors.New("digest")
		}
	}
	return nil
}
