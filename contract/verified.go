package contract

import (
	"slices"
	"time"
)

// Verified is a contract that passed every check. Only Process and Decode
// make one; it owns all secrets of its plan.
type Verified struct {
	plan  *Plan
	forms *forms // of Process, if a container mounts them
}

// Plan is what to do. It stays valid until Wipe.
func (v *Verified) Plan() *Plan { return v.plan }

// CheckExpiry compares the signing certificate's dates with a clock that is
// worth more than the one Process had. Its error is an *hpl.Error HPL12007E.
func (v *Verified) CheckExpiry(now time.Time) error {
	if e := checkDates(v.plan, now); e != nil {
		return e
	}
	return nil
}

// Wipe overwrites every secret of the plan. What a library needed as a string
// (the compose project's environment) is dropped, not overwritten.
func (v *Verified) Wipe() {
	v.plan.wipe()
	v.forms.wipe()
}

func (p *Plan) wipe() {
	if p == nil {
		return
	}
	for _, v := range p.Volumes {
		for _, s := range slices.Concat(v.Passphrases, v.Previous) {
			s.Wipe()
		}
	}
	for _, a := range p.Auths {
		a.Password.Wipe()
	}
	for _, e := range p.Env {
		e.Value.Wipe()
	}
	if p.Syslog != nil {
		p.Syslog.Key.Wipe()
	}
	if p.LogRouter != nil {
		p.LogRouter.APIKey.Wipe()
	}
	if p.LogDNA != nil {
		p.LogDNA.Key.Wipe()
	}
	for _, id := range p.TLS.Identities {
		id.Key.Wipe()
	}
	p.UserDataMasked.Wipe()
	p.WorkloadDataDecrypted.Wipe()
	p.Compose = nil
}
