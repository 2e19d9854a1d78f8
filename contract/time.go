package contract

import (
	"errors"
	"slices"
)

// Time is env.x-hpcr.time. Of both lists at most one is given.
type Time struct {
	NTP []string `json:"ntp,omitempty"` // names or IP addresses; none = DHCP's
	NTS []string `json:"nts,omitempty"` // servers that prove who they are; without their word the guest does not start
}

const maxTimeServers = 8

// ownTime reads env.x-hpcr.time.
func (r *run) ownTime(a at) {
	if !a.present() || !r.mapping(a) {
		return
	}
	r.closed(a, "ntp", "nts")
	r.plan.Time = Time{NTP: r.timeServers(a.get("ntp")), NTS: r.timeServers(a.get("nts"))}
	if nts := a.get("nts"); nts.present() && a.get("ntp").present() {
		r.fail(schema, nts, "servers that prove who they are stand beside such that do not", "name servers under nts or under ntp")
	}
}

func (r *run) timeServers(list at) (out []string) {
	if !list.present() || !r.list(list) {
		return nil
	}
	if len(list.n.vals) == 0 || len(list.n.vals) > maxTimeServers {
		r.fail(schema, list, "there must be 1 to 8 time servers", "name an odd number of them: more than half must agree")
		return nil
	}
	seen := map[string]bool{}
	for i := range list.n.vals {
		s, ok := r.matching(list.item(i), validHost, "this is neither a host name nor an IP address", "give one name, without port")
		if ok && seen[s] {
			r.fail(schema, list.item(i), "this server is named twice", "name each once: more than half must agree")
		}
		seen[s] = true
		out = append(out, s)
	}
	return out
}

// check repeats what the agent relies on.
func (t *Time) check() error {
	if len(t.NTP) > maxTimeServers || len(t.NTS) > maxTimeServers || len(t.NTP) > 0 && len(t.NTS) > 0 {
		return errors.New("time servers")
	}
	for _, s := range slices.Concat(t.NTP, t.NTS) {
		if !validHost(s) {
			return errors.New("time server")
		}
	}
	return nil
}
