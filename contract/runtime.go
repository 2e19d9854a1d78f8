package contract

import "hpcr/agent/hpl"

// features are parts of a contract that the rules know and that not every
// version of the guest can act on.
type features struct{ logRouter, play bool }

// supported is what this version's guest can do.
var supported = features{logRouter: true, play: true}

// capable compares the contract with the guest. The guest refuses by name what
// it cannot do, before anything is touched. Lint judges the contract and not
// one version of the guest: it accepts, and leaves a note.
func (r *run) capable() {
	lack := func(has bool, code hpl.Code, a at, what string) {
		switch {
		case has || !a.present():
		case r.lint:
			r.say(SeverityNote, "", a, what+" is accepted by the rules, but the guest of this version cannot do it yet and refuses the contract", "boot it with a later version", nil)
		default:
			r.unsupported(code, a, what)
		}
	}
	lack(r.can.logRouter, schema, r.env.body.get("logging").get("logRouter"), "logRouter")
	lack(r.can.play, "HPL15002E", r.workload.body.get("play"), "play")
}
