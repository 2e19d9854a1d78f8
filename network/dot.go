package network

import (
	"context"
	"crypto/tls"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// SecureServer is a resolver that is asked by TLS alone (RFC 7858).
type SecureServer struct {
	At  netip.AddrPort
	TLS *tls.Config // of ClientConfig or SystemConfig, with its server name
}

const (
	dotIdle     = 4               // connections to one server that wait for the next question
	dotIdleFor  = 8 * time.Second // then they are closed; servers keep them ten seconds and more
	dotPadding  = 128             // questions are padded to a multiple of it, in octets (RFC 8467)
	dotLimit    = 3 * time.Second // for one server, with the handshake
	stubAddress = "127.0.0.1:53"
)

// secureDNS asks servers by TLS, in turn. What fails is never asked in plain
// text: who can break a connection would get the question.
type secureDNS struct {
	servers []*secureServer
	first   atomic.Int64 // of servers: the one that answered last is asked first
	stub    stub
}

type secureServer struct {
	SecureServer

	mu   sync.Mutex
	idle []idleConn
}

type idleConn struct {
	*dns.Conn
	since time.Time
}

// EncryptDNS has every question of guest and containers asked by TLS from now
// on. The guest's own go through a resolver at 127.0.0.1, which resolv.conf
// then names; call it before WriteResolvConf.
func (n *Net) EncryptDNS(servers []SecureServer) error {
	s := &secureDNS{}
	for _, x := range servers {
		s.servers = append(s.servers, &secureServer{SecureServer: x})
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.makeSlots()
	if err := s.stub.serve(netip.MustParseAddrPort(stubAddress), n.log, func(w dns.ResponseWriter, q *dns.Msg) { n.send(w, q, n.stubAnswer(w, q)) }); err != nil {
		return err
	}
	n.secure = s
	return nil
}

func (n *Net) stubAnswer(w dns.ResponseWriter, q *dns.Msg) *dns.Msg {
	if !plainQuestion(q) {
		return new(dns.Msg).SetRcode(q, dns.RcodeNotImplemented)
	}
	return n.forward(w, q)
}

// ways are the servers in the order in which they are asked.
func (s *secureDNS) ways() (out []func(*dns.Msg) (*dns.Msg, error)) {
	first := s.first.Load()
	for i := range s.servers {
		at := (int(first) + i) % len(s.servers)
		out = append(out, func(q *dns.Msg) (*dns.Msg, error) {
			a, err := s.servers[at].ask(q)
			if err == nil {
				s.first.Store(int64(at))
			}
			return a, err
		})
	}
	return out
}

func (s *secureDNS) close() error {
	err := s.stub.close()
	for _, x := range s.servers {
		x.forget(time.Now().Add(dotIdleFor))
	}
	return err
}

// ask pads the question, and hands the answer back as if it had not been.
func (s *secureServer) ask(q *dns.Msg) (*dns.Msg, error) {
	m := q.Copy()
	m.Id = dns.Id()
	added := pad(m)
	a, err := s.exchange(m)
	if err != nil {
		return nil, err
	}
	if added {
		a.Extra = withoutOPT(a.Extra)
	}
	return a, nil
}

// exchange takes a connection that waits, and a new one if that has ended
// meanwhile.
func (s *secureServer) exchange(m *dns.Msg) (*dns.Msg, error) {
	ctx, stop := context.WithTimeout(context.Background(), dotLimit)
	defer stop()
	client := &dns.Client{Net: "tcp-tls", Timeout: dotLimit}
	for {
		c := s.take()
		fresh := c == nil
		if fresh {
			raw, err := dial(ctx, s.At.String())
			if err != nil {
				return nil, err
			}
			conn, err := handshakeTLS(ctx, raw, s.TLS, tls.Client)
			if err != nil {
				return nil, err
			}
			c = &dns.Conn{Conn: conn}
		}
		a, _, err := client.ExchangeWithConnContext(ctx, m, c)
		if err == nil {
			s.give(c)
			return a, nil
		}
		_ = c.Close() // the exchange's own error is the one to tell
		if fresh || ctx.Err() != nil {
			return nil, err
		}
	}
}

func (s *secureServer) take() *dns.Conn {
	s.forget(time.Now())
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.idle) == 0 {
		return nil
	}
	last := len(s.idle) - 1
	c := s.idle[last]
	s.idle = s.idle[:last]
	return c.Conn
}

func (s *secureServer) give(c *dns.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.idle) == dotIdle {
		_ = c.Close() // nothing is under way on it
		return
	}
	s.idle = append(s.idle, idleConn{c, time.Now()})
}

// forget closes what has waited too long at a time.
func (s *secureServer) forget(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.idle) > 0 && now.Sub(s.idle[0].since) >= dotIdleFor {
		_ = s.idle[0].Close() // nothing is under way on it
		s.idle = s.idle[1:]
	}
}

// pad makes a question's length say less of the name (RFC 7830, RFC 8467
// section 4.1). added: the question had no OPT record of its own.
func pad(m *dns.Msg) (added bool) {
	opt := m.IsEdns0()
	if opt == nil {
		m.SetEdns0(maxUDPMessage, false)
		opt, added = m.IsEdns0(), true
	}
	p := &dns.EDNS0_PADDING{}
	opt.Option = append(withoutPadding(opt.Option), p)
	p.Padding = make([]byte, (dotPadding-m.Len()%dotPadding)%dotPadding)
	return added
}

func withoutPadding(list []dns.EDNS0) (out []dns.EDNS0) {
	for _, o := range list {
		if o.Option() != dns.EDNS0PADDING {
			out = append(out, o)
		}
	}
	return out
}

func withoutOPT(list []dns.RR) (out []dns.RR) {
	for _, r := range list {
		if r.Header().Rrtype != dns.TypeOPT {
			out = append(out, r)
		}
	}
	return out
}
