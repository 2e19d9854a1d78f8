package contract

import (
	"crypto/rsa"
	"slices"
)

// The keys of our own, all under x-hpcr. What is no key is refused by name: a
// misspelled condition must not pass for one that holds.

var extensionKeys = map[string][]string{
	"workload": {"require", "tls", "images", "volumes"},
	"env":      {"tls", "management", "logging", "time", "dns", "network"},
}

func (r *run) extensions(x at, section string) {
	if !x.present() || !r.mapping(x) {
		return
	}
	known := extensionKeys[section]
	r.closed(x, known...)
	for _, key := range known {
		switch {
		case section == "workload" && key == "require":
			r.require(x.get(key))
		case section == "workload" && key == "volumes":
			r.volumeConditions = x.get(key)
		case section == "workload" && key == "images":
			r.imageExtensions(x.get(key))
		case section == "workload" && key == "tls":
			r.workloadTLS(x.get(key))
		case section == "env" && (key == "tls" || key == "management" || key == "dns"): // envTLS reads them
		case section == "env" && key == "logging": // logRouter reads it
		case section == "env" && key == "network":
			r.ownNetwork(x.get(key))
		case section == "env" && key == "time":
			r.ownTime(x.get(key))
		}
	}
}

// maxRequireKeys bounds the keys that a provider can name.
const maxRequireKeys = 16

// conditions are workload.x-hpcr.require: what the workload's provider demands
// of whoever joins an env to it. Only signingKeys holds off a host: it can sign
// with a key of its own, and encrypt for the image as anybody can.
type conditions struct {
	place        at
	signature    bool
	signingKeys  []*rsa.PublicKey
	envEncrypted bool
}

func (r *run) require(a at) {
	if !a.present() || !r.mapping(a) {
		return
	}
	c := &conditions{place: a}
	r.conditions = c
	r.closed(a, "signature", "signingKeys", "envEncrypted")
	c.signature = r.boolean(a.get("signature"))
	c.envEncrypted = r.boolean(a.get("envEncrypted"))
	switch keys := a.get("signingKeys"); {
	case keys.present():
		if s := a.get("signature"); s.present() && !c.signature {
			r.fail(schema, s, "signingKeys cannot be asked for without a signature", "write signature: true, or remove signingKeys")
		}
		c.signature = true
		r.requireKeys(c, keys)
	case c.signature:
		r.warn("", a.get("signature"), "a signature by any key will do, also by one of the host's", "name the keys that you accept under signingKeys")
	}
	if !r.workload.encrypted && (c.signature || c.envEncrypted) {
		r.warn("", a, "the workload is not encrypted: whoever can change it can remove this condition", "encrypt the workload")
	}
}

func (r *run) requireKeys(c *conditions, keys at) {
	if !r.list(keys) {
		return
	}
	if n := len(keys.n.vals); n == 0 || n > maxRequireKeys {
		r.fail(schema, keys, "there must be 1 to 16 signing keys", "name each key that you accept, or remove signingKeys")
		return
	}
	for i := range keys.n.vals {
		k := keys.item(i)
		s, ok := r.str(k)
		if !ok {
			continue
		}
		text, form, err := pemText(s)
		if err == nil {
			var pub *rsa.PublicKey
			if pub, _, err = rsaPublic(pemBlocks(text)); err == nil {
				c.signingKeys = append(c.signingKeys, pub)
			}
		}
		if err != nil {
			r.failCause(err, schema, k, "this is neither an RSA public key of at least 2048 bits nor a certificate with one", "give the PEM public key or certificate, or base64 of it")
			continue
		}
		r.pemWarnings(k, form)
	}
}

// provider enforces the conditions. It stands before every rule of env: a
// stranger's env is not looked into beyond its signingKey.
func (r *run) provider() {
	c := r.conditions
	if c == nil {
		return
	}
	if c.envEncrypted && r.env.place.present() && !r.env.encrypted {
		r.fail(schema, c.place.get("envEncrypted"), "the workload's provider wants env encrypted", "encrypt it with hpcrctl contract encrypt")
	}
	if !c.signature {
		return
	}
	if !r.top.get("envWorkloadSignature").present() {
		r.fail("HPL12004E", c.place, "the workload's provider wants a signed contract", "sign it with hpcrctl contract sign, with a key that the provider accepts")
		return
	}
	if r.env.closed {
		return // lint without a key
	}
	failed := r.failed
	r.signature()
	switch {
	case r.signer != nil && len(c.signingKeys) > 0 && !slices.ContainsFunc(c.signingKeys, func(k *rsa.PublicKey) bool { return k.Equal(r.signer) }):
		r.fail("HPL12001E", c.place.get("signingKeys"), "the contract is signed by a key that the workload's provider does not accept", "sign it with one of the keys that the provider named")
	case r.signer == nil && r.failed == failed && !failed:
		r.fail("HPL12001E", c.place, "the signature that the workload's provider wants cannot be judged", "give envWorkloadSignature and signingKey as text")
	}
}
