package contract

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"strings"
	"time"

	"hpcr/agent/hpl"
	"hpcr/agent/secret"
)

// Input is everything that decides a boot's plan.
type Input struct {
	Cidata []byte           // the whole device, as read once
	Keys   []*secret.Secret // contract keys, PEM; borrowed
	Policy Policy
	Now    time.Time // not later than the truth: a signing certificate that ended before it has expired
}

// Process turns the device into a plan, or into an *hpl.Error.
func Process(in Input) (*Verified, error) {
	files, err := ReadCidata(in.Cidata)
	if err != nil {
		return nil, err
	}
	r, err := newRun(in.Keys, in.Policy, in.Now)
	if err != nil {
		return nil, hpl.Wrap(err, "HPL11000E", "", "a contract key of the image is damaged: build the image again")
	}
	r.files, r.device = files, in.Cidata
	return r.verdict()
}

func newRun(keys []*secret.Secret, policy Policy, now time.Time) (*run, error) {
	r := &run{policy: policy, now: now, can: supported}
	for _, k := range keys {
		key, err := ParseContractKey(k.Bytes())
		if err != nil {
			return nil, err
		}
		r.keys = append(r.keys, key)
	}
	return r, nil
}

func (r *run) verdict() (*Verified, error) {
	r.all()
	r.workload.text.Wipe()
	r.env.text.Wipe()
	if f := r.firstError(); f != nil {
		r.plan.wipe()
		r.written.wipe()
		return nil, f.hplError()
	}
	return &Verified{plan: r.plan, forms: r.written}, nil
}

// run is one pass over one contract, for the guest and for lint alike.
type run struct {
	report
	policy Policy
	now    time.Time
	keys   []*rsa.PrivateKey
	files  Files
	device []byte // nil in lint
	can    features
	lint   bool // go on after an error; without keys, leave tokens closed

	top      at
	workload section
	env      section
	volumes  []volumePair
	plan     *Plan
	written  *forms

	conditions       *conditions    // workload.x-hpcr.require
	volumeConditions at             // workload.x-hpcr.volumes
	ends             tlsParts       // x-hpcr.tls and env.x-hpcr.management
	signer           *rsa.PublicKey // whose signature was verified
	signatureDone    bool           // signature has run
	imageKeys        []imageKey     // images.rhs and x-hpcr.images.cosign

	decryptedKey string // attestationPublicKey, token opened
}

// section is workload or env.
type section struct {
	name      string
	place     at     // in user-data
	raw       string // the scalar as it stands in user-data
	rawOK     bool   // false for the mapping form, which has no raw scalar
	encrypted bool
	closed    bool // encrypted, and lint has no key
	opened    int  // tokens among its values
	text      *secret.Secret
	parsed    *node // of a decrypted text, made when it was judged
	yerr      *yamlError
	body      at // the parsed mapping; missing if closed
}

// all runs the steps. In the guest the first error ends it; lint goes on as
// long as later steps still have something to look at.
func (r *run) all() {
	r.plan = &Plan{MetaData: r.files.MetaData, VendorData: r.files.VendorData}
	for _, step := range []func(){
		r.envelope, r.unseal, r.parse, // who wrote what
		r.metaData, r.network,
		r.workloadRules, r.provider, // does env's author have the right
		r.envRules, r.pairing, // does it make sense
		r.signature, r.demands, // is it allowed
		r.compose, r.pods, r.trust, r.tls, // what is to be done
		r.capable, r.assemble, // can this guest do it
	} {
		step()
		if r.failed && (!r.lint || !r.top.present()) {
			return
		}
	}
	for _, f := range r.findings {
		if f.Severity == SeverityWarning {
			r.plan.Warnings = append(r.plan.Warnings, Warning{Code: f.Code, Path: f.HostPath, Detail: f.detail()})
		}
	}
}

// maxTopKeys bounds the top level, each of whose keys is hashed and recorded.
const maxTopKeys = 64

const badContract hpl.Code = "HPL11001E"

// envelope parses user-data's top level.
func (r *run) envelope() {
	r.workload.name, r.env.name = "workload", "env"
	data := r.files.UserData
	place := at{path: "/user-data", host: "/user-data", doc: "user-data", line: 1, col: 1}
	switch {
	case len(bytes.TrimSpace(data)) == 0:
		r.fail(badContract, place, "user-data is missing or empty", "put the contract into the file user-data of cidata")
		return
	case bytes.HasPrefix(data, []byte{0x1f, 0x8b}):
		r.fail(badContract, place, "user-data is compressed", "give the plain YAML text")
		return
	}
	n, yerr := parseYAML("user-data", data)
	if yerr != nil {
		r.failYAML(badContract, place, yerr)
		return
	}
	if n == nil || n.kind != mapNode {
		r.fail(badContract, place, "user-data is not a mapping", "give workload and env as its keys")
		return
	}
	if len(n.keys) > maxTopKeys {
		r.fail(badContract, place, "user-data has more than 64 keys", "keep workload, env, attestationPublicKey and envWorkloadSignature")
		return
	}
	r.top = at{doc: "user-data", line: 1, col: 1}.onto(n)
	for i, k := range n.keys {
		switch k.text {
		case "workload", "env", "attestationPublicKey", "envWorkloadSignature":
		default:
			if !recordName(k.text) {
				r.fail(badContract, r.top.key(i), "a top-level key cannot stand in the attestation record", "use letters, digits, dots, dashes and underscores")
				continue
			}
			r.warn("", r.top.key(i), "this key is not part of the contract; only its hash is recorded", "remove it or correct its name")
		}
	}
	for _, s := range []*section{&r.workload, &r.env} {
		s.place = r.top.get(s.name)
		if !s.place.present() {
			r.fail(schema, s.place, "this section is missing", "a contract has both workload and env")
		}
	}
}

// recordName keeps lines of the record apart.
func recordName(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	return strings.IndexFunc(s, func(c rune) bool {
		return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("._-", c))
	}) < 0
}

// unseal decrypts the top level.
func (r *run) unseal() {
	for _, s := range []*section{&r.workload, &r.env} {
		r.openSection(s)
	}
	r.attestationKey()
	// Other keys are hashed, not used: a token there may stay closed.
	for i, k := range r.top.n.keys {
		if v := r.top.n.vals[i]; k.text != "workload" && k.text != "env" && k.text != "attestationPublicKey" && v.isString() && IsToken(v.text) {
			r.plan.TokensIgnored++
		}
	}
}

func (r *run) openSection(s *section) {
	n := s.place.n
	if n == nil {
		return
	}
	if n.kind == mapNode {
		r.warn("", s.place, "the section is a mapping, not text: it cannot be signed and its hash is not in the attestation record", `write "|" behind the key and keep the lines below it as they are`)
		s.body = root(s.name, "user-data", n)
		return
	}
	if !n.isString() {
		r.fail(schema, s.place, "the section must be text", `write "|" behind the key and the section's lines below it`)
		return
	}
	s.raw, s.rawOK = n.text, true
	token := n.text
	if trimmed := strings.TrimSpace(token); trimmed != token && IsToken(trimmed) {
		r.warn("", s.place, "there is white space around the token", "put the token on one line behind the key")
		token = trimmed
	}
	if !IsToken(token) {
		if looksLikeToken(token) {
			r.fail(badContract, s.place, "the token is damaged", "it has three parts, joined by dots, of base64 without line breaks: encrypt the section again")
			return
		}
		s.text = secret.FromString(n.text)
		return
	}
	s.encrypted = true
	if r.lint && len(r.keys) == 0 {
		s.closed = true
		r.warn("", s.place, "the section is encrypted and was not looked at", "give the contract key with --key")
		return
	}
	plain, err := OpenToken(token, r.keys, r.policy.StrictPassword, s.judge)
	if err != nil {
		r.failCause(err, badContract, s.place, "the section cannot be decrypted", "encrypt it for this image, with this image's certificate")
		return
	}
	s.text = plain
	r.plan.TokensDecrypted++
}

// judge says whether a decrypted text is a section's: a YAML mapping. It is
// not strict: a mapping with a doubled key was decrypted all right.
func (s *section) judge(b []byte) bool {
	s.parsed, s.yerr = parseYAML(s.name, b)
	if s.yerr != nil {
		return !s.yerr.syntax
	}
	return s.parsed != nil && s.parsed.kind == mapNode
}

// parse turns section texts into mappings and opens tokens inside.
func (r *run) parse() {
	for _, s := range []*section{&r.workload, &r.env} {
		if s.text != nil && !s.encrypted {
			s.parsed, s.yerr = parseYAML(s.name, s.text.Bytes())
		}
		switch {
		case s.text == nil:
		case s.yerr != nil:
			r.failYAML("HPL05000E", root(s.name, s.name, nil), s.yerr)
			continue
		case s.parsed == nil || s.parsed.kind != mapNode:
			r.fail("HPL05000E", root(s.name, s.name, nil), "the section is not a mapping", `write "key: value" lines`)
			continue
		default:
			s.body = root(s.name, s.name, s.parsed)
		}
		if s.body.present() {
			before := r.plan.TokensDecrypted
			r.nested(s.body.n, new(int))
			s.opened = r.plan.TokensDecrypted - before
		}
	}
}

// maxNested bounds the RSA operations that a section can ask for.
const maxNested = 32

// nested opens tokens among a section's values. One that does not open stays
// as it is and counts as ignored.
func (r *run) nested(n *node, tried *int) {
	if n.isString() && IsToken(n.text) {
		if *tried++; *tried > maxNested || len(r.keys) == 0 {
			r.plan.TokensIgnored++
			return
		}
		plain, err := OpenToken(n.text, r.keys, r.policy.StrictPassword, isText)
		if err != nil {
			r.plan.TokensIgnored++
			return
		}
		n.text = string(plain.Bytes())
		plain.Wipe()
		r.plan.TokensDecrypted++
		return
	}
	for _, v := range n.vals {
		r.nested(v, tried)
	}
}

// attestationKey reads the key that the record is encrypted with.
func (r *run) attestationKey() {
	a := r.top.get("attestationPublicKey")
	if !a.present() {
		return
	}
	const code hpl.Code = "HPL11002E"
	if !a.n.isString() {
		r.fail(code, a, "the key must be text", "give PEM or base64 of PEM")
		return
	}
	text := a.n.text
	if token := strings.TrimSpace(text); IsToken(token) {
		if r.lint && len(r.keys) == 0 {
			r.warn("", a, "the key is encrypted and was not looked at", "give the contract key with --key")
			return
		}
		plain, err := OpenToken(token, r.keys, r.policy.StrictPassword, isText)
		if err != nil {
			r.failCause(err, badContract, a, "the key cannot be decrypted", "encrypt it for this image, with this image's certificate")
			return
		}
		text = string(plain.Bytes())
		plain.Wipe()
		r.plan.TokensDecrypted++
	}
	raw, form, err := pemText(text)
	if err == nil {
		var (
			key  *rsa.PublicKey
			cert *x509.Certificate
		)
		if key, cert, err = rsaPublic(pemBlocks(raw)); err == nil {
			r.plan.AttestationPublicKey, err = publicPEM(key)
		}
		if err == nil && cert != nil {
			err = errors.New("a certificate")
		}
	}
	if err != nil {
		r.failCause(err, code, a, "this is not an RSA public key of at least 2048 bits", `give the PEM "PUBLIC KEY", or base64 of it`)
		return
	}
	r.pemWarnings(a, form)
	r.decryptedKey = text
}

func (r *run) pemWarnings(a at, form pemForm) {
	if form.literalEscapes {
		r.warn("", a, `the PEM text holds backslash-n instead of line ends`, `use a literal block ("|"), or double quotes around the escapes`)
	}
	if form.damaged {
		r.warn("", a, "the PEM text's last line is damaged", "end it with five dashes on both sides")
	}
}
