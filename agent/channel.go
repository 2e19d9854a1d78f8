package agent

import (
	"time"

	"hpcr/agent/boot"
	"hpcr/agent/hpl"
)

// channel tells a test or hpcrctl run what happens, in dev images only.
type channel interface {
	phaseStarted(name string)
	phaseEnded(boot.Report)
	verdict(ready bool, codes []hpl.Code, message string, after time.Duration)
	stopping()
	off(inOrder bool)
}
