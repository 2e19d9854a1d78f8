package contract

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
	"strings"

	"hpcr/agent/hpl"
	"hpcr/agent/secret"
	"hpcr/contract/archive"
	"hpcr/contract/compose"
)

// digests are the lines of the attestation record that the contract decides
// (contract.md §4.3): raw scalars, tokens as they stand.
func (r *run) digests() {
	put := func(name string, sum []byte) {
		r.plan.Digests = append(r.plan.Digests, Digest{Name: name, SHA256: hex.EncodeToString(sum)})
	}
	add := func(name string, b []byte) {
		sum := sha256.Sum256(b)
		put(name, sum[:])
	}
	if r.device != nil {
		add("/dev/disk/by-label/cidata", r.device)
	}
	for _, f := range []struct {
		name string
		data []byte
	}{
		{"cidata/meta-data", r.files.MetaData},
		{"cidata/user-data", r.files.UserData},
		{"cidata/vendor-data", r.files.VendorData},
		{"cidata/network-config", r.files.NetworkConfig},
	} {
		if f.data != nil {
			add(f.name, f.data)
		}
	}
	order := []string{"workload", "env", "attestationPublicKey", "envWorkloadSignature"}
	var others []string
	for _, k := range r.top.n.keys {
		if !contains(order, k.text) {
			others = append(others, k.text)
		}
	}
	slices.Sort(others)
	for _, key := range append(order, others...) {
		if v := r.top.n.get(key); v != nil && v.kind == scalarNode {
			put("contract:"+key, hashText(v.text))
		}
	}
}

// hashText is SHA-256 of texts, joined, without a copy of them.
func hashText(texts ...string) []byte {
	h := sha256.New()
	var some [4096]byte
	for _, t := range texts {
		for len(t) > 0 {
			n := copy(some[:], t)
			h.Write(some[:n])
			t = t[n:]
		}
	}
	return h.Sum(nil)
}

// assemble joins the two sections: workload wins. Nothing is assembled from a
// contract with an error, or from one that lint could not open.
func (r *run) assemble() {
	if r.failed || r.workload.closed || r.env.closed {
		return
	}
	r.digests()
	r.forms()
	r.planVolumes()
	env := r.mergedEnv()
	for _, name := range slices.Sorted(maps.Keys(env)) {
		r.plan.Env = append(r.plan.Env, Var{Name: name, Value: secret.FromString(env[name])})
	}
	auths := map[string]Auth{}
	for _, s := range []at{r.env.body, r.workload.body} {
		a := s.get("auths")
		for i, k := range a.keys() {
			host := registry(k.text)
			if old, had := auths[host]; had {
				old.Password.Wipe()
			}
			e := a.entry(i)
			auths[host] = Auth{Host: host, Username: e.get("username").text(), Password: secret.FromString(e.get("password").text())}
		}
	}
	for _, host := range slices.Sorted(maps.Keys(auths)) {
		r.plan.Auths = append(r.plan.Auths, auths[host])
	}
}

// registry is the name by which image references know a registry.
func registry(key string) string {
	if key == dockerHub || key == "index.docker.io" {
		return "docker.io"
	}
	return strings.ToLower(key)
}

func (a at) text() string {
	if a.n == nil {
		return ""
	}
	return a.n.text
}

func (r *run) mergedEnv() map[string]string {
	env := map[string]string{}
	for _, s := range []at{r.env.body, r.workload.body} {
		e := s.get("env")
		for i, k := range e.keys() {
			env[k.text] = e.n.vals[i].text
		}
	}
	return env
}

// compose unpacks and reads the compose project.
func (r *run) compose() {
	a := r.workload.body.get("compose").get("archive")
	if !a.present() || !a.n.isString() || r.failedAt(a) || r.failed && !r.lint {
		return
	}
	files, err := archive.Unpack(a.n.text)
	if err != nil {
		r.failFrom(a, err)
		return
	}
	if nestedFolder(files) {
		r.warn("", a, "the compose file lies in a folder of the archive", "pack the folder's content: tar -cz -C DIR .")
	}
	p, err := compose.Load(files, r.mergedEnv(), compose.Options{Privileged: r.policy.Privileged, Trust: r.imagePolicy()})
	if err != nil {
		for _, one := range apart(err) {
			r.composeFailed(a, files, one)
		}
		return
	}
	if len(p.Unset) > 0 {
		r.say(SeverityNote, "", a, "the compose file uses variables that nobody sets, and they are empty", "set them under env of the contract, or give a default: ${NAME:-default}", nil)
	}
	r.plan.Compose = p
}

// apart takes joined errors apart.
func apart(err error) []error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var all []error
	for _, e := range joined.Unwrap() {
		all = append(all, apart(e)...)
	}
	return all
}

func (r *run) composeFailed(a at, files []archive.File, err error) {
	if e := hpl.From(err); r.lint && strings.HasPrefix(e.Path, compose.Root) && e.Path != a.host {
		a = composePlace(files, e.Path)
	} else if e.Path != "" && e.Path != a.host {
		a.path, a.host = e.Path, e.Path
	}
	r.failFrom(a, err)
}

// failFrom takes over an error of a room below. Its detail says what is wrong
// and then what to do.
func (r *run) failFrom(a at, err error) {
	e := hpl.From(err)
	message, fix, _ := strings.Cut(e.Detail, ": ")
	r.failCause(e.Err, e.Code, a, message, fix)
}

func nestedFolder(files []archive.File) bool {
	top := slices.ContainsFunc(files, func(f archive.File) bool {
		return f.Name == "docker-compose.yaml" || f.Name == "docker-compose.yml"
	})
	return !top && composeFile(files) != nil
}
