package contract

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"strings"
	"time"

	"hpcr/agent/hpl"
)

// signature checks envWorkloadSignature over the raw scalars, workload first
// (contract.md §1.5), and the certificate's end.
func (r *run) signature() {
	if r.signatureDone { // the provider's conditions came first
		return
	}
	r.signatureDone = true
	sig, key := r.top.get("envWorkloadSignature"), r.env.body.get("signingKey")
	switch {
	case !r.env.body.present():
		return // lint without a key
	case !sig.present() && !key.present():
		return
	case !sig.present():
		r.fail("HPL12004E", sig, "env has a signingKey but the contract has no signature", "sign it with hpcrctl contract sign, or remove signingKey")
		return
	case !key.present():
		r.fail("HPL12004E", key, "the contract has a signature but env has no signingKey", "add signingKey to env before encrypting and signing, or remove envWorkloadSignature")
		return
	case !r.workload.rawOK || !r.env.rawOK:
		r.fail("HPL12001E", sig, "a section in mapping form cannot be signed", `write "|" behind the section's key, and sign again`)
		return
	case !sig.n.isString() || !key.n.isString():
		return // reported by the rules
	}
	text, form, err := pemText(key.n.text)
	if err != nil {
		r.failCause(err, "HPL12003E", key, "there is no PEM text in it", "give the PEM public key or certificate, or base64 of it")
		return
	}
	pub, cert, err := rsaPublic(pemBlocks(text))
	if err != nil {
		r.failCause(err, "HPL12003E", key, "this is neither an RSA public key of at least 2048 bits nor a certificate with one", "give the PEM public key or certificate, or base64 of it")
		return
	}
	r.pemWarnings(key, form)
	value, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(sig.n.text), ""))
	if err != nil || len(value) == 0 {
		r.failCause(err, "HPL12003E", sig, "the signature is not base64", "give it as openssl enc -base64 -A writes it")
		return
	}
	if !r.verify(pub, value, sig) {
		return
	}
	if len(r.policy.SigningKeys) > 0 && !r.trusted(pub) {
		r.fail("HPL12001E", key, "the image's policy does not know this signing key", "sign with one of the keys that the image was built for")
		return
	}
	r.plan.Signed, r.signer = true, pub
	if cert == nil {
		return
	}
	r.plan.SignerNotBefore, r.plan.SignerNotAfter = cert.NotBefore, cert.NotAfter
	// In the guest, now may be the image's build time, hours or years before
	// the truth: it can prove an end, never a beginning.
	check := checkEnd
	if r.lint {
		check = checkDates
	}
	if e := check(r.plan, r.now); e != nil {
		message, fix, _ := strings.Cut(e.Detail, ": ")
		r.fail(e.Code, key, message, fix)
	}
}

func (r *run) verify(pub *rsa.PublicKey, value []byte, sig at) bool {
	err := rsa.VerifyPKCS1v15(pub, crypto.SHA256, hashText(r.workload.raw, r.env.raw), value)
	if err == nil {
		return true
	}
	if r.policy.AcceptStrippedSignature && !(r.workload.encrypted && r.env.encrypted) {
		stripped := sha256.Sum256(bytes.Map(func(c rune) rune {
			if c == '\n' || c == '\r' {
				return -1
			}
			return c
		}, []byte(r.workload.raw+r.env.raw)))
		if rsa.VerifyPKCS1v15(pub, crypto.SHA256, stripped[:], value) == nil {
			r.warn("", sig, "the signature is over the sections without their line ends, which does not tell different YAML texts apart", "sign the sections as they are")
			return true
		}
	}
	r.failCause(err, "HPL12001E", sig, "the signature does not fit the two sections", "sign the workload value followed by the env value, as they stand in the contract, with the key that belongs to signingKey")
	return false
}

func (r *run) trusted(pub *rsa.PublicKey) bool {
	for _, k := range r.policy.SigningKeys {
		known, _, err := rsaPublic(pemBlocks(k))
		if err == nil && known.Equal(pub) {
			return true
		}
	}
	return false
}

const expired hpl.Code = "HPL12007E"

func checkEnd(p *Plan, now time.Time) *hpl.Error {
	if !p.SignerNotAfter.IsZero() && now.After(p.SignerNotAfter) {
		return hpl.New(expired, "/env/signingKey", "the signing certificate has ended: renew it, put it into env, and sign the contract again")
	}
	return nil
}

func checkDates(p *Plan, now time.Time) *hpl.Error {
	if now.Before(p.SignerNotBefore) {
		return hpl.New(expired, "/env/signingKey", "the signing certificate is not valid yet: check its first date and the clock")
	}
	return checkEnd(p, now)
}

// demands applies the image's policy.
func (r *run) demands() {
	if r.policy.RequireEncryption {
		for _, s := range []*section{&r.workload, &r.env} {
			if s.place.present() && !s.encrypted {
				r.fail(schema, s.place, "the image's policy wants this section encrypted", "encrypt it with hpcrctl contract encrypt")
			}
		}
	}
	if (r.policy.RequireSignature || len(r.policy.SigningKeys) > 0) && !r.top.get("envWorkloadSignature").present() {
		r.fail("HPL12004E", r.top.get("envWorkloadSignature"), "the image's policy wants a signed contract", "sign it with hpcrctl contract sign")
	}
}
