package network

import (
	"testing"

	"github.com/miekg/dns"
)

// FuzzQuestion: whatever a container asks, the local answer can be packed,
// keeps the question's number, and holds nothing but the project's addresses.
func FuzzQuestion(f *testing.F) {
	for name, kind := range map[string]uint16{"web.": dns.TypeA, "WEB.": dns.TypeAAAA, "2.0.20.172.in-addr.arpa.": dns.TypePTR, "example.com.": dns.TypeMX, ".": dns.TypeNS} {
		b, err := new(dns.Msg).SetQuestion(name, kind).Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	web := addr("172.20.0.2")
	f.Fuzz(func(t *testing.T, data []byte) {
		q := new(dns.Msg)
		if q.Unpack(data) != nil || len(q.Question) != 1 {
			return
		}
		n := &Net{}
		p := &Project{net: n, subnet: prefix("172.20.0.0/24"), gateway: addr("172.20.0.1")}
		n.names.add("c1", p, web, []string{"Web"})
		m := p.local(web, q)
		if m == nil {
			return
		}
		if _, err := m.Pack(); err != nil || m.Id != q.Id || !m.Response {
			t.Errorf("%v, %v", m, err)
		}
		for _, rr := range m.Answer {
			switch rr := rr.(type) {
			case *dns.A:
				if rr.A.String() != web.String() {
					t.Errorf("%v", rr)
				}
			case *dns.PTR:
				if rr.Ptr != "web." {
					t.Errorf("%v", rr)
				}
			default:
				t.Errorf("%v", rr)
			}
		}
		if stranger := p.local(addr("172.20.0.9"), q); stranger != nil && len(stranger.Answer) > 0 {
			t.Errorf("who is on no network gets %v", stranger)
		}
	})
}
