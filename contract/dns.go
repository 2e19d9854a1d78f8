package contract

import (
	"errors"
	"net/netip"
)

// DNSServer is env.x-hpcr.dns.servers[i]: a resolver that is asked by TLS alone
// (RFC 7858, the strict profile of RFC 8310).
type DNSServer struct {
	Address    netip.AddrPort `json:"address"`
	ServerName string         `json:"serverName"`   // name or address that its certificate must be of
	CA         []byte         `json:"ca,omitempty"` // PEM; nil = the system's roots
}

const (
	maxDNSServers  = 3 // as many as resolv.conf has
	portDNSOverTLS = 853
)

// dns reads env.x-hpcr.dns. It comes with r.tls, which knows the authorities.
func (r *run) dns(used map[string]bool) {
	a := r.ends.dns
	if !a.present() || !r.mapping(a) {
		return
	}
	r.closed(a, "servers")
	list, ok := r.required(a, "servers")
	if !ok || !r.list(list) {
		return
	}
	if n := len(list.n.vals); n == 0 || n > maxDNSServers {
		r.fail(schema, list, "there must be 1 to 3 servers", "name those that the guest asks, the first one first")
		return
	}
	seen := map[netip.AddrPort]bool{}
	for i := range list.n.vals {
		e := list.item(i)
		if !r.mapping(e) {
			continue
		}
		r.closed(e, "address", "port", "serverName", "authority")
		out := DNSServer{CA: r.authority(e.get("authority"), used)}
		if n, ok := r.required(e, "serverName"); ok {
			out.ServerName, _ = r.matching(n, validHost, "this is neither a host name nor an IP address", "give the name that the server's certificate is of")
		}
		port := portDNSOverTLS
		if p := e.get("port"); p.present() {
			port = r.port(p, 0)
		}
		if n, ok := r.required(e, "address"); ok {
			if s, ok := r.matching(n, usableDNSAddress, "this is not the address of a resolver", "give an IP address: a name would have to be resolved first"); ok {
				out.Address = netip.AddrPortFrom(netip.MustParseAddr(s), uint16(port))
			}
		}
		if seen[out.Address] {
			r.fail(schema, e, "this server is named twice", "name each once")
		}
		seen[out.Address] = true
		r.plan.DNS = append(r.plan.DNS, out)
	}
}

// usableDNSAddress: of a host, and not of the guest itself.
func usableDNSAddress(s string) bool {
	a, err := netip.ParseAddr(s)
	return err == nil && a.Zone() == "" && !a.Is4In6() && a.IsGlobalUnicast()
}

// checkDNS repeats what the agent relies on.
func checkDNS(list []DNSServer) error {
	if len(list) > maxDNSServers {
		return errors.New("resolvers")
	}
	for _, s := range list {
		if !usableDNSAddress(s.Address.Addr().String()) || s.Address.Port() == 0 || !validHost(s.ServerName) {
			return errors.New("resolver")
		}
	}
	return nil
}
