package contract

import (
	"encoding/pem"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"hpcr/agent/hpl"
	"hpcr/agent/secret"
)

// defaultSyslogPort is the documents'; the schema's 514 is the port of syslog
// without TLS, which HPCR never speaks.
const defaultSyslogPort = 6514

func (r *run) logging(e at) {
	l := e.get("logging")
	own := e.get("x-hpcr").get("logging")
	if own.present() && !l.get("logRouter").present() {
		r.fail(schema, own, "this is about logRouter, and there is none", "remove it")
	}
	if !l.present() {
		if r.policy.LoggingRequired {
			r.fail(schema, l, "logging is missing", "add logging with syslog")
		} else {
			r.warn("HPL01002W", l, "there is no logging", "add logging with syslog to keep what the guest says")
		}
		return
	}
	if !r.mapping(l) {
		return
	}
	r.loose(l, "syslog", "logRouter")
	s, lr := l.get("syslog"), l.get("logRouter")
	switch {
	case s.present() && lr.present():
		r.fail(schema, l, "there are two log targets", "keep one of syslog and logRouter")
	case s.present():
		r.syslog(s)
	case lr.present():
		r.logRouter(lr, own)
	case l.get("logDNA").present(): // of older contracts; beside another it is a leftover
		r.logDNA(l.get("logDNA"))
	default:
		r.fail(schema, l, "there is no log target", "add syslog")
	}
}

// logRouter reads IBM Cloud Logs' back end; own are our keys about it.
func (r *run) logRouter(a, own at) {
	if !r.mapping(a) {
		return
	}
	r.closed(a, "hostname", "iamApiKey", "port")
	l := &LogRouter{Host: r.logHost(a), Port: r.port(a.get("port"), 443), IAM: defaultIAM}
	if k, ok := r.required(a, "iamApiKey"); ok {
		if s, ok := r.matching(k, validAPIKey, "this is no API key", "give the IAM API key, in one line and without blanks"); ok {
			l.APIKey = secret.FromString(s)
		}
	}
	if own.present() && r.mapping(own) {
		r.closed(own, "iam")
		if iam, ok := r.required(own, "iam"); ok {
			l.IAM, _ = r.matching(iam, validLookaside, "this is not the https URL of a service that gives tokens", "give a URL such as "+defaultIAM+", without user, query or fragment")
		}
	}
	r.plan.LogRouter = l
}

const (
	maxTags   = 32
	maxTagLen = 64
)

var (
	ingestionKey  = regexp.MustCompile(`^[a-z0-9]{32}$`)
	ingestionHost = regexp.MustCompile(`^syslog[^.]*\..+$`)
	ingestionTag  = regexp.MustCompile(`^[A-Za-z0-9._:-]+$`)
)

// logDNA reads the back end of images before 2025.
func (r *run) logDNA(a at) {
	if !r.mapping(a) {
		return
	}
	r.closed(a, "hostname", "ingestionKey", "port", "tags")
	l := &LogDNA{Host: r.logHost(a), Port: r.port(a.get("port"), defaultSyslogPort)}
	if l.Host != "" && !ingestionHost.MatchString(l.Host) {
		r.fail("HPL01003E", a.get("hostname"), "the name of a LogDNA server begins with syslog", "give a name such as syslog-a.REGION.logging.cloud.ibm.com")
	}
	if k, ok := r.required(a, "ingestionKey"); ok {
		if s, ok := r.matching(k, ingestionKey.MatchString, "this is no ingestion key", "give the 32 lower-case letters and digits of the instance's ingestion key"); ok {
			l.Key = secret.FromString(s)
		}
	}
	if tags := a.get("tags"); tags.present() {
		if tags.n.kind != listNode || len(tags.vals()) > maxTags {
			r.fail(schema, tags, "this is not a list of at most 32 tags", "give a list of words")
			r.plan.LogDNA = l
			return
		}
		for i := range tags.vals() {
			tag, _ := r.matching(tags.item(i), func(s string) bool { return len(s) <= maxTagLen && ingestionTag.MatchString(s) },
				"this is not a tag", "use letters, digits, dots, dashes, colons and underscores, at most 64")
			l.Tags = append(l.Tags, tag)
		}
	}
	r.plan.LogDNA = l
}

// defaultIAM is IBM Cloud's.
const defaultIAM = "https://iam.cloud.ibm.com"

func validAPIKey(s string) bool {
	return s != "" && len(s) <= 4096 && strings.IndexFunc(s, func(c rune) bool { return c <= ' ' || c > '~' }) < 0
}

func (r *run) logHost(a at) string {
	h, ok := r.required(a, "hostname")
	if !ok {
		return ""
	}
	s, _ := r.matching(h, validHost, "this is neither a host name nor an IP address", "give the log server's name or address alone, without port or scheme")
	return s
}

// validHost takes RFC 1123 names and IP addresses.
func validHost(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil {
		return true
	}
	return validName(s)
}

func validName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if !hostLabel.MatchString(label) {
			return false
		}
	}
	return true
}

func (r *run) port(a at, fallback int) int {
	if !a.present() {
		return fallback
	}
	if a.n.kind == scalarNode && a.n.tag == "!!int" {
		if n, err := strconv.Atoi(a.n.text); err == nil && n > 0 && n < 65536 {
			return n
		}
	}
	r.fail(schema, a, "this is not a port", "give a whole number from 1 to 65535, without quotes")
	return fallback
}

// syslog checks and reads the back end of HPCR's own.
func (r *run) syslog(a at) {
	if !r.mapping(a) {
		return
	}
	r.closed(a, "hostname", "port", "server", "cert", "key")
	s := &Syslog{Host: r.logHost(a), Port: r.port(a.get("port"), defaultSyslogPort)}
	server, haveServer := r.required(a, "server")
	if haveServer {
		s.CA = r.certs(server, "HPL01007E", "of the authority that signed the log server's")
	}
	cert, key := a.get("cert"), a.get("key")
	if !cert.present() {
		r.fail("HPL01008E", cert, "the client certificate is missing", "add cert, signed by the log server's authority")
	} else {
		s.Cert = r.certs(cert, "HPL01008E", "of this client")
	}
	if !key.present() {
		r.fail("HPL01009E", key, "the client's private key is missing", "add key, as PKCS#8 PEM")
	} else {
		r.syslogKey(key, s)
	}
	r.plan.Syslog = s
}

// certs reads one PEM bundle in any form and returns it in normal form.
func (r *run) certs(a at, missing hpl.Code, whose string) []byte {
	text, ok := r.str(a)
	if !ok {
		return nil
	}
	raw, form, err := pemText(text)
	blocks := pemBlocks(raw)
	fix := "give the PEM certificate " + whose + ", or base64 of it"
	if err != nil || len(blocks) == 0 {
		r.failCause(err, "HPL01005E", a, noBlock(form), fix)
		return nil
	}
	certs, err := certificates(blocks)
	if err != nil || len(certs) == 0 {
		r.failCause(err, missing, a, notCertificate(blocks[0].Type), fix)
		return nil
	}
	r.pemWarnings(a, form)
	return certificatesPEM(certs)
}

func (r *run) syslogKey(a at, s *Syslog) {
	s.Key = r.privateKey(a, s.Cert, "the client's", keyCodes{empty: "HPL01009E", noPEM: "HPL01005E", noKey: "HPL01006E", mismatch: "HPL01008E"})
}

// keyCodes are the codes of what may be wrong with a private key.
type keyCodes struct{ empty, noPEM, noKey, mismatch hpl.Code }

// privateKey reads one private key in any form and returns it as PKCS#8 PEM.
// It must belong to the first certificate of cert.
func (r *run) privateKey(a at, cert []byte, whose string, codes keyCodes) (out *secret.Secret) {
	text, ok := r.str(a)
	if !ok {
		return nil
	}
	if strings.TrimSpace(text) == "" {
		r.fail(codes.empty, a, whose+" private key is empty", "give it as PKCS#8 PEM")
		return nil
	}
	raw, form, err := pemText(text)
	blocks := pemBlocks(raw)
	clear(raw)
	if err != nil || len(blocks) == 0 {
		r.failCause(err, codes.noPEM, a, noBlock(form), "give "+whose+" private key as PKCS#8 PEM, or base64 of it")
		return nil
	}
	b := firstPrivate(blocks)
	if b == nil {
		r.fail(codes.noKey, a, notKey(blocks[0].Type), "give "+whose+" private key as PKCS#8 PEM: openssl pkcs8 -topk8 -nocrypt")
		return nil
	}
	what := unreadable(b)
	key, err := privateKey(b)
	clear(b.Bytes)
	if err == nil {
		out, err = pkcs8PEM(key)
	}
	if err != nil {
		r.failCause(err, codes.noKey, a, what, "give it unprotected, as PKCS#8 PEM: openssl pkcs8 -topk8 -nocrypt")
		return nil
	}
	r.pemWarnings(a, form)
	certs, err := certificates(pemBlocks(cert))
	if err == nil && len(certs) > 0 && !samePublic(certs[0], key) {
		r.fail(codes.mismatch, a, whose+" key and certificate do not belong together", "give the key that the certificate was made for, and "+whose+" certificate first")
	}
	return out
}

// noBlock, notCertificate, notKey and unreadable say what users mistook for
// what. The words are ours: nothing of the text is repeated.
func noBlock(f pemForm) string {
	if f.bare {
		return "this is base64 without the lines -----BEGIN …----- and -----END …----- around it"
	}
	return "there is no PEM text in it"
}

func notCertificate(kind string) string {
	switch {
	case strings.HasSuffix(kind, "PRIVATE KEY"):
		return "this is a private key and not a certificate: cert and key may be swapped"
	case strings.HasSuffix(kind, "CERTIFICATE REQUEST"):
		return "this is a request for a certificate, not the certificate that the authority made of it"
	case kind == "CERTIFICATE":
		return "the certificate in it is damaged"
	}
	return "there is no certificate in it"
}

func notKey(kind string) string {
	switch {
	case strings.HasSuffix(kind, "CERTIFICATE"):
		return "this is a certificate and not a private key: cert and key may be swapped"
	case strings.HasSuffix(kind, "PUBLIC KEY"):
		return "this is the public key, not the private one"
	}
	return "there is no private key in it"
}

func unreadable(b *pem.Block) string {
	switch {
	case b.Type == "ENCRYPTED PRIVATE KEY" || b.Headers["DEK-Info"] != "":
		return "the private key is protected by a passphrase, which nobody could type here"
	case b.Type == "OPENSSH PRIVATE KEY":
		return "this is a key in the form of ssh"
	}
	return "the private key cannot be read"
}
