package contract

import "errors"

// Time is env.x-hpcr.time.
type Time struct {
	NTP []string `json:"ntp,omitempty"` // names or IP addresses; none = DHCP's
}

const maxTimeServers = 8

// ownTime reads env.x-hpcr.time.
func (r *run) ownTime(a at) {
	if !a.present() || !r.mapping(a) {
		return
	}
	r.closed(a, "ntp", "nts")
	r.unsupported(schema, a.get("nts"), "x-hpcr.time.nts")
	list := a.get("ntp")
	if !list.present() || !r.list(list) {
		return
	}
	if len(list.n.vals) == 0 || len(list.n.vals) > maxTimeServers {
		r.fail(schema, list, "there must be 1 to 8 time servers", "name an odd number of them: more than half must agree")
		return
	}
	seen := map[string]bool{}
	for i := range list.n.vals {
		s, ok := r.matching(list.item(i), validHost, "this is neither a host name nor an IP address", "give one name, without port")
		if ok && seen[s] {
			r.fail(schema, list.item(i), "this server is named twice", "name each once: more than half must agree")
		}
		seen[s] = true
		r.plan.Time.NTP = append(r.plan.Time.NTP, s)
	}
}

// check repeats what the agent relies on.
func (t *Time) check() error {
	if len(t.NTP) > maxTimeServers {
		return errors.New("time servers")
	}
	for _, s := range t.NTP {
		if !validHost(s) {
			return errors.New("time server")
		}
	}
	return nil
}
