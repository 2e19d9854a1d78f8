package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/netutil"
)

const (
	maxConnections = 64 // of one bridge to the resolver by TCP

	localTTL      = 5 // seconds: a restarted container may have another address
	forwardLimit  = 2 * time.Second
	forwardSlots  = 64 // questions under way to the guest's resolvers, all containers together
	maxUDPMessage = 1232
)

// nameTable knows which container is on which networks and what its names are
// there. A container sees the names of its own networks only.
type nameTable struct {
	mu      sync.RWMutex
	entries []nameEntry
	slots   chan struct{}
}

type nameEntry struct {
	id    string
	net   *Project
	addr  netip.Addr
	names []string // lower case
}

func (t *nameTable) add(id string, p *Project, addr netip.Addr, names []string) {
	e := nameEntry{id: id, net: p, addr: addr}
	for _, n := range names {
		e.names = append(e.names, strings.ToLower(strings.TrimSuffix(n, ".")))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.entries = append(t.entries, e)
}

func (t *nameTable) remove(id string, p *Project) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.entries = slices.DeleteFunc(t.entries, func(e nameEntry) bool { return e.id == id && e.net == p })
}

// visible calls f for each entry on a network of the container that asks.
func (t *nameTable) visible(asking netip.Addr, f func(nameEntry)) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	id := ""
	for _, e := range t.entries {
		if e.addr == asking {
			id = e.id
		}
	}
	if id == "" {
		return
	}
	var nets []*Project
	for _, e := range t.entries {
		if e.id == id {
			nets = append(nets, e.net)
		}
	}
	for _, e := range t.entries {
		if slices.Contains(nets, e.net) {
			f(e)
		}
	}
}

// lookup: known says that the name exists, whatever type is asked for.
func (t *nameTable) lookup(asking netip.Addr, name string) (addrs []netip.Addr, known bool) {
	t.visible(asking, func(e nameEntry) {
		if slices.Contains(e.names, name) {
			addrs = append(addrs, e.addr)
		}
	})
	return addrs, len(addrs) > 0
}

func (t *nameTable) reverse(asking, addr netip.Addr) string {
	name := ""
	t.visible(asking, func(e nameEntry) {
		if e.addr == addr && name == "" && len(e.names) > 0 {
			name = e.names[0]
		}
	})
	return name
}

// stub is a resolver of the guest's own at one address.
type stub struct {
	servers []*dns.Server
	serving sync.WaitGroup
}

func (s *stub) serve(at netip.AddrPort, log *slog.Logger, handler dns.HandlerFunc) error {
	pc, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return fmt.Errorf("open a resolver: %w", err)
	}
	l, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(at))
	if err != nil {
		return fmt.Errorf("open a resolver: %w (%w)", err, pc.Close())
	}
	for _, d := range []*dns.Server{
		{PacketConn: pc},
		{Listener: netutil.LimitListener(l, maxConnections), MaxTCPQueries: 16, IdleTimeout: func() time.Duration { return 2 * time.Second }},
	} {
		started := make(chan struct{})
		d.NotifyStartedFunc = func() { close(started) }
		d.Handler = handler
		d.ReadTimeout, d.WriteTimeout = 2*time.Second, 2*time.Second
		s.servers = append(s.servers, d)
		s.serving.Go(func() {
			if err := d.ActivateAndServe(); err != nil {
				log.Error("a resolver ended", "at", at, "error", err)
			}
		})
		<-started
	}
	return nil
}

// close waits for answers under way; call it without Net.mu.
func (s *stub) close() error {
	var errs []error
	for _, d := range s.servers {
		errs = append(errs, d.Shutdown())
	}
	s.serving.Wait()
	s.servers = nil
	return errors.Join(errs...)
}

// serveDNS listens on the bridge's address; the firewall admits only the
// bridge's own containers.
func (p *Project) serveDNS() error {
	p.net.makeSlots()
	return p.stub.serve(netip.AddrPortFrom(p.gateway, portDNS), p.net.log, func(w dns.ResponseWriter, q *dns.Msg) { p.net.send(w, q, p.answer(w, q)) })
}

// makeSlots: Net.mu is held.
func (n *Net) makeSlots() {
	if n.names.slots == nil {
		n.names.slots = make(chan struct{}, forwardSlots)
	}
}

func (n *Net) send(w dns.ResponseWriter, q, answer *dns.Msg) {
	_, tcp := w.RemoteAddr().(*net.TCPAddr)
	if !tcp {
		size := dns.MinMsgSize
		if opt := q.IsEdns0(); opt != nil {
			size = min(max(size, int(opt.UDPSize())), maxUDPMessage)
		}
		answer.Truncate(size)
	}
	if err := w.WriteMsg(answer); err != nil {
		n.log.Debug("resolver answer not sent", "error", err)
	}
}

// plainQuestion: one of the Internet's names, as everybody asks.
func plainQuestion(q *dns.Msg) bool {
	return q.Opcode == dns.OpcodeQuery && len(q.Question) == 1 && q.Question[0].Qclass == dns.ClassINET
}

func (p *Project) answer(w dns.ResponseWriter, q *dns.Msg) *dns.Msg {
	if !plainQuestion(q) {
		return new(dns.Msg).SetRcode(q, dns.RcodeNotImplemented)
	}
	peer := netip.MustParseAddrPort(w.RemoteAddr().String()).Addr().Unmap()
	if local := p.local(peer, q); local != nil {
		return local
	}
	return p.net.forward(w, q)
}

// local answers for the project's own names, and denies every other name of
// one label: the world must not be asked where "db" is while db starts.
// Nil = not ours.
func (p *Project) local(asking netip.Addr, q *dns.Msg) *dns.Msg {
	question := q.Question[0]
	name := strings.ToLower(strings.TrimSuffix(question.Name, "."))
	m := new(dns.Msg).SetReply(q)
	m.Authoritative, m.RecursionAvailable = true, true
	header := func(t uint16) dns.RR_Header {
		return dns.RR_Header{Name: question.Name, Rrtype: t, Class: dns.ClassINET, Ttl: localTTL}
	}
	addrs, known := p.net.names.lookup(asking, name)
	if !known && p.net.hasEgress(name) {
		addrs, known = []netip.Addr{p.gateway}, true
	}
	if known {
		for _, a := range addrs {
			if question.Qtype == dns.TypeA {
				m.Answer = append(m.Answer, &dns.A{Hdr: header(dns.TypeA), A: a.AsSlice()})
			}
		}
		return m
	}
	if addr, ok := fromReverse(name); ok && p.subnet.Contains(addr) {
		host := p.net.names.reverse(asking, addr)
		if host == "" {
			return m.SetRcode(q, dns.RcodeNameError)
		}
		if question.Qtype == dns.TypePTR {
			m.Answer = append(m.Answer, &dns.PTR{Hdr: header(dns.TypePTR), Ptr: dns.Fqdn(host)})
		}
		return m
	}
	if name != "" && !strings.Contains(name, ".") {
		return m.SetRcode(q, dns.RcodeNameError)
	}
	return nil
}

func fromReverse(name string) (netip.Addr, bool) {
	digits, ok := strings.CutSuffix(name, ".in-addr.arpa")
	if !ok {
		return netip.Addr{}, false
	}
	parts := strings.Split(digits, ".")
	slices.Reverse(parts)
	a, err := netip.ParseAddr(strings.Join(parts, "."))
	return a, err == nil && a.Is4()
}

func answers(a, q *dns.Msg) bool {
	return len(a.Question) == 1 && a.Question[0].Qtype == q.Question[0].Qtype && strings.EqualFold(a.Question[0].Name, q.Question[0].Name)
}

// forward asks the guest's resolvers in turn, within a number of slots in all.
func (n *Net) forward(w dns.ResponseWriter, q *dns.Msg) *dns.Msg {
	select {
	case n.names.slots <- struct{}{}:
		defer func() { <-n.names.slots }()
	default:
		return new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
	}
	for _, ask := range n.upstreams(w) {
		answer, err := ask(q)
		if err != nil {
			n.log.Debug("resolver does not answer", "error", err)
			continue
		}
		if !answers(answer, q) {
			n.log.Debug("resolver answers another question")
			continue
		}
		answer.Id, answer.Response = q.Id, true
		return answer
	}
	return new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
}

// upstreams are the ways to ask: by TLS, or else over the transport of the
// question, within two seconds each.
func (n *Net) upstreams(w dns.ResponseWriter) (ways []func(*dns.Msg) (*dns.Msg, error)) {
	n.mu.Lock()
	secure := n.secure
	n.mu.Unlock()
	if secure != nil {
		return secure.ways()
	}
	client := &dns.Client{Net: "udp", Timeout: forwardLimit, UDPSize: maxUDPMessage}
	if _, tcp := w.RemoteAddr().(*net.TCPAddr); tcp {
		client.Net = "tcp"
	}
	for _, server := range n.Nameservers() {
		ways = append(ways, func(q *dns.Msg) (*dns.Msg, error) {
			ctx, stop := context.WithTimeout(context.Background(), forwardLimit)
			defer stop()
			answer, _, err := client.ExchangeContext(ctx, q.Copy(), netip.AddrPortFrom(server, portDNS).String())
			return answer, err
		})
	}
	return ways
}
