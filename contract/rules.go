package contract

import (
	"net/netip"
	"regexp"
	"strconv"
	"strings"
)

// The rules of contract.md §9. Each function checks one part and reports all
// it finds; nothing is taken from a part that failed, for a failed run has no
// plan.

var (
	volumeKey     = regexp.MustCompile(`^[a-z_][a-z0-9-_]*$`)
	envKey        = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	mountPattern  = regexp.MustCompile(`^(/[^/]+)+$`)
	seedPattern   = regexp.MustCompile(`^[a-zA-Z0-9!@#$%^&*(),.?":{}|<>_-]{15,}$`)
	authHost      = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9-]*(\.[A-Za-z][A-Za-z0-9-]*)*(:[0-9]{1,5})?$`)
	authIPv4      = regexp.MustCompile(`^[0-9]{1,3}(\.[0-9]{1,3}){3}(:[0-9]{1,5})?$`)
	certName      = regexp.MustCompile(`^[a-zA-Z0-9]*$`)
	rhsKey        = regexp.MustCompile(`^[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+(/[a-z0-9-_]+)+(:[A-Za-z0-9._-]{3,128})?(@sha256:[a-f0-9]{64})?$`)
	base64Pattern = regexp.MustCompile(`^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{2}==)?$`)
	digestLine    = regexp.MustCompile(`^[0-9a-f]{64} [A-Za-z0-9._:/-]{1,128}$`)
	hostLabel     = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)
)

const dockerHub = "https://index.docker.io/v1/"

// Bounds on counts; far above what makes sense in one guest.
const (
	maxVolumes = 64
	maxEnv     = 10_000
)

// typeIs says whether a section may be judged as what it stands for: by the
// rules of another every line of it would be wrong.
func (r *run) typeIs(s *section) bool {
	t, ok := r.required(s.body, "type")
	if !ok {
		return true
	}
	if _, ok = r.matching(t, func(v string) bool { return v == s.name }, "the type is not this section's", "write type: "+s.name); !ok {
		s.body = at{}
	}
	return ok
}

func (r *run) workloadRules() {
	if s := r.top.get("envWorkloadSignature"); s.present() && !s.n.isString() {
		r.fail(schema, s, "the signature must be text", "give the base64 of the signature")
	}
	w := r.workload.body
	if !w.present() || !r.typeIs(&r.workload) {
		return
	}
	r.loose(w, "type", "auths", "compose", "play", "confidential-containers", "images", "volumes", "env", "x-hpcr")
	kinds := 0
	for _, k := range []string{"compose", "play", "confidential-containers"} {
		if w.get(k).present() {
			kinds++
		}
	}
	if kinds != 1 {
		r.fail(schema, w, "a workload has exactly one of compose, play and confidential-containers", "keep one of them")
	}
	r.unsupported(schema, w.get("confidential-containers"), "confidential-containers")
	r.extensions(w.get("x-hpcr"), "workload")
	if c := w.get("compose"); c.present() && r.mapping(c) {
		r.closed(c, "archive")
		if a, ok := r.required(c, "archive"); ok {
			r.archive(a)
		}
	}
	r.play(w.get("play"))
	r.images(w.get("images"))
	r.auths(w.get("auths"))
	r.environment(w.get("env"))
	r.workloadVolumes(w.get("volumes"))
}

func (r *run) envRules() {
	e := r.env.body
	if !e.present() || !r.typeIs(&r.env) {
		return
	}
	r.loose(e, "type", "logging", "volumes", "env", "signingKey", "auths", "cacerts", "host-attestation", "crypto-pt", "confidential-containers", "x-hpcr")
	r.unsupported(schema, e.get("confidential-containers"), "confidential-containers")
	r.unsupported(schema, e.get("crypto-pt"), "crypto-pt")
	r.unsupported(schema, e.get("host-attestation"), "host-attestation")
	r.extensions(e.get("x-hpcr"), "env")
	r.envTLS(e.get("x-hpcr").get("tls"), e.get("x-hpcr").get("management"), e.get("x-hpcr").get("dns"))
	r.logging(e)
	r.auths(e.get("auths"))
	r.environment(e.get("env"))
	r.envVolumes(e.get("volumes"))
	r.caCerts(e.get("cacerts"))
	if k := e.get("signingKey"); k.present() {
		r.str(k)
	}
}

func (r *run) archive(a at) {
	s, ok := r.str(a)
	if !ok {
		return
	}
	if strings.ContainsAny(s, " \t\r\n") {
		s = strings.Join(strings.Fields(s), "")
		r.warn("", a, "the archive's base64 has white space in it", "write it on one line: base64 -w0")
		a.n.text = s
	}
	switch {
	case len(s) < 4:
		r.fail(schema, a, "the archive is empty", "give the base64 of a tgz: tar -cz -C DIR . | base64 -w0")
	case looksLikeToken(s):
		r.fail(schema, a, "the archive is a token that does not open", "encrypt the whole section instead, for this image")
	case !isArchive(s):
		r.fail(schema, a, "the archive is not base64", "give the base64 of a tgz on one line: tar -cz -C DIR . | base64 -w0")
	}
}

// isArchive is the schema's ^[-A-Za-z0-9+/]*={0,3}$; a regular expression over
// 16 MiB is slow on a small machine.
func isArchive(s string) bool {
	s = strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(s, "="), "="), "=")
	for i := range len(s) {
		if !inRun[s[i]] || s[i] == '=' || s[i] == '.' {
			return false
		}
	}
	return true
}

func (r *run) play(p at) {
	if !p.present() || !r.mapping(p) {
		return
	}
	r.openBelow(p.get("resources"))
	r.openBelow(p.get("templates"))
	r.closed(p, "resources", "templates", "archive")
	if a := p.get("archive"); a.present() {
		r.archive(a)
	}
	for _, key := range []string{"resources", "templates"} {
		l := p.get(key)
		if !l.present() || !r.list(l) {
			continue
		}
		for i := range l.n.vals {
			d := l.item(i)
			if !r.mapping(d) {
				continue
			}
			if v, ok := r.required(d, "apiVersion"); ok {
				r.matching(v, func(s string) bool { return s == "v1" }, "only apiVersion v1 is known", "write apiVersion: v1")
			}
			if k, ok := r.required(d, "kind"); ok {
				r.matching(k, func(s string) bool { return s == "Pod" || s == "ConfigMap" }, "only Pods and ConfigMaps are known", "write kind: Pod or kind: ConfigMap")
			}
		}
	}
	if !p.get("archive").present() && len(p.get("resources").vals()) == 0 && len(p.get("templates").vals()) == 0 {
		r.warn("HPL15006I", p, "there is nothing to play", "add archive, resources or templates")
	}
}

func (a at) vals() []*node {
	if a.n == nil {
		return nil
	}
	return a.n.vals
}

func (r *run) auths(a at) {
	if !a.present() || !r.mapping(a) {
		return
	}
	for i, k := range a.n.keys {
		e := a.entry(i)
		if !validAuthHost(k.text) {
			r.fail(schema, a.key(i), "this is not a registry", "write HOST, HOST:PORT, IPv4:PORT, or "+dockerHub+" for Docker Hub")
		}
		if !r.mapping(e) {
			continue
		}
		r.closed(e, "username", "password")
		for _, f := range []string{"username", "password"} {
			if v, ok := r.required(e, f); ok {
				r.matching(v, func(s string) bool { return runes(s) >= 3 }, "this has fewer than 3 characters", "give the registry's real credentials")
			}
		}
	}
}

func runes(s string) int { return len([]rune(s)) }

func validAuthHost(s string) bool {
	if s == dockerHub {
		return true
	}
	host, port, hasPort := strings.Cut(s, ":")
	if hasPort && !validPort(port) {
		return false
	}
	if authIPv4.MatchString(s) {
		_, err := netip.ParseAddr(host)
		return err == nil
	}
	return authHost.MatchString(s) && len(host) <= 253
}

func validPort(s string) bool {
	n, err := strconv.Atoi(s)
	return err == nil && n > 0 && n < 65536
}

func (r *run) environment(e at) {
	if !e.present() || !r.mapping(e) {
		return
	}
	if len(e.n.keys) > maxEnv {
		r.fail(schema, e, "there are more than 10000 variables", "put large data into the archive")
		return
	}
	for i, k := range e.n.keys {
		if !envKey.MatchString(k.text) {
			r.fail(schema, e.key(i), "this is not the name of a variable", "use letters, digits and underscores, and no digit first")
		}
		v := e.entry(i)
		switch {
		case !v.n.isString():
			r.fail(schema, v, "the value of a variable must be text", "put it in quotes")
		case strings.ContainsRune(v.n.text, 0):
			r.fail(schema, v, "the value of a variable holds a NUL character", "remove it")
		}
	}
}

func (r *run) caCerts(c at) {
	if !c.present() || !r.list(c) {
		return
	}
	if len(c.n.vals) > 1 {
		r.fail(schema, c, "there is more than one entry", "put all certificates into one entry, as names of one mapping or as one bundle")
	}
	for i := range c.n.vals {
		item := c.item(i)
		if !r.mapping(item) {
			continue
		}
		for j, k := range item.n.keys {
			e := item.entry(j)
			if !certName.MatchString(k.text) {
				r.fail(schema, item.key(j), "the certificate's name has other characters than letters and digits", "rename it")
			}
			s, ok := r.matching(e, func(s string) bool { return len(s) >= 4 && base64Pattern.MatchString(s) }, "this is not base64", "give the base64 of a PEM certificate: base64 -w0 ca.pem")
			if !ok {
				continue
			}
			text, form, err := pemText(s)
			blocks := pemBlocks(text)
			certs, cerr := certificates(blocks)
			if err != nil || cerr != nil || len(certs) == 0 {
				r.failCause(firstErr(err, cerr), schema, e, "there is no PEM certificate in it", "give the base64 of a PEM certificate: base64 -w0 ca.pem")
				continue
			}
			r.pemWarnings(e, form)
			r.plan.CACerts = append(r.plan.CACerts, certificatesPEM(certs))
		}
	}
}

func firstErr(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return errNoPEM
}
