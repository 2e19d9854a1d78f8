package contract

import (
	"time"

	"hpcr/agent/secret"
)

// LintInput is a contract without a device around it.
type LintInput struct {
	UserData []byte
	Keys     []*secret.Secret // none: encrypted sections are not looked into
	Policy   Policy
	Now      time.Time
}

// Report is what lint found. OK means that a guest with this policy would
// accept the contract as far as it could be looked into.
type Report struct {
	OK       bool      `json:"ok"`
	Findings []Finding `json:"findings"` // in the order of the checks; the first error is what a guest would say
}

// Lint runs the guest's own checks over a contract, but does not stop at the
// first error, and knows the names and lines that the guest must not show. An
// error means that a key is unusable.
func Lint(in LintInput) (Report, error) {
	r, err := newRun(in.Keys, in.Policy, in.Now)
	if err != nil {
		return Report{}, err
	}
	r.lint = true
	r.files.UserData = in.UserData
	return r.lintReport(), nil
}

func (r *run) lintReport() Report {
	defer r.wipeLint()
	r.all()
	return Report{OK: !r.failed, Findings: r.found()}
}

// found is a list in JSON even if it is empty.
func (r *run) found() []Finding {
	all := append([]Finding{}, r.findings...)
	r.positions(all)
	return all
}

func (r *run) wipeLint() {
	r.plan.wipe()
	r.written.wipe()
	r.workload.text.Wipe()
	r.env.text.Wipe()
}
