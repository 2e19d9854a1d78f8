package network

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Ingress is TLS from outside the guest, plain text to a container. The port
// is open while the container is on its network.
type Ingress struct {
	Name   string // for the log
	Listen uint16
	TLS    *tls.Config // of ServerConfig
	To     string      // a container's first name
	Port   uint16
}

// Egress is plain text from the containers, who find it by its name on every
// network of theirs, TLS to Host. A network without a way out has this one.
type Egress struct {
	Name   string
	Listen uint16
	TLS    *tls.Config // of ClientConfig
	Host   string      // name or IP address
	Port   uint16
}

// errDown is what an ingress says of a container that does not run.
var errDown = errors.New("the container is not on its network")

// Ingress starts an endpoint. It needs the uplinks; the container may come
// later, and come and go.
func (n *Net) Ingress(i Ingress) error {
	l, err := Listen(i.Listen)
	if err != nil {
		return fmt.Errorf("listen for an ingress: %w", err)
	}
	p := &relayPoint{name: i.Name, open: func(ctx context.Context, c net.Conn) (near, far net.Conn, err error) {
		near, err = handshakeTLS(ctx, c, i.TLS, tls.Server)
		if err != nil {
			return nil, nil, err
		}
		// After the handshake: a stranger does not learn what runs.
		to, ok := n.names.primary(i.To)
		if !ok {
			return nil, nil, errDown
		}
		far, err = dial(ctx, netip.AddrPortFrom(to, i.Port).String())
		return near, far, err
	}}
	if err := n.relays.serve(l, p); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ingress = append(n.ingress, i)
	return n.applyLocked(n.openIngress)
}

// openIngress opens the ports whose containers are up.
func (n *Net) openIngress(s *ruleState) {
	s.ingress = nil
	for _, i := range n.ingress {
		if _, ok := n.names.primary(i.To); ok {
			s.ingress = append(s.ingress, i.Listen)
		}
	}
}

// refreshIngress follows a container that came or went.
func (n *Net) refreshIngress() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.ingress) == 0 {
		return nil
	}
	return n.applyLocked(n.openIngress)
}

// Egress adds an endpoint to every bridge that is made from now on.
func (n *Net) Egress(e Egress) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.egress = append(n.egress, e)
}

func (n *Net) egressPorts() (ports []uint16) {
	for _, e := range n.egress {
		ports = append(ports, e.Listen)
	}
	return ports
}

// hasEgress says whether containers know an egress by this name.
func (n *Net) hasEgress(name string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.ContainsFunc(n.egress, func(e Egress) bool { return e.Name == name })
}

// serveEgress opens the bridge's endpoints; Net.mu is held.
func (p *Project) serveEgress() error {
	for _, e := range p.net.egress {
		l, err := listenTCP(netip.AddrPortFrom(p.gateway, e.Listen))
		if err != nil {
			return fmt.Errorf("listen for an egress: %w", err)
		}
		host := net.JoinHostPort(e.Host, strconv.Itoa(int(e.Port)))
		point := &relayPoint{name: e.Name, open: func(ctx context.Context, c net.Conn) (near, far net.Conn, err error) {
			raw, err := dial(ctx, host)
			if err != nil {
				return nil, nil, err
			}
			far, err = handshakeTLS(ctx, raw, e.TLS, tls.Client)
			return c, far, err
		}}
		if err := p.net.relays.serve(l, point); err != nil {
			return err
		}
		p.listeners = append(p.listeners, l)
	}
	return nil
}

// Listen opens a TCP port of the guest on every address that it has or will
// have, of both families; the firewall lets nobody in before Allow.
func Listen(port uint16) (net.Listener, error) {
	l, err := (&net.ListenConfig{KeepAliveConfig: keepAlive}).Listen(context.Background(), "tcp", net.JoinHostPort("", strconv.Itoa(int(port))))
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return l, nil
}

func listenTCP(at netip.AddrPort) (net.Listener, error) {
	return (&net.ListenConfig{KeepAliveConfig: keepAlive}).Listen(context.Background(), "tcp4", at.String())
}

var keepAlive = net.KeepAliveConfig{Enable: true, Idle: keepAliveIdle, Interval: keepAliveProbe, Count: 4}

func dial(ctx context.Context, to string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialLimit)
	defer cancel()
	return (&net.Dialer{KeepAliveConfig: keepAlive}).DialContext(ctx, "tcp", to)
}

// handshakeTLS bounds a handshake's time and closes the connection if it fails.
func handshakeTLS(ctx context.Context, raw net.Conn, c *tls.Config, side func(net.Conn, *tls.Config) *tls.Conn) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeLimit)
	defer cancel()
	under := &gather{Conn: raw}
	t := joined{side(under, c), under}
	if err := t.HandshakeContext(ctx); err != nil {
		_ = raw.Close() // the handshake's own error is the one to tell
		return nil, err
	}
	return t, nil
}

// primary is the address of the container whose first name this is, on the
// network that it joined first.
func (t *nameTable) primary(name string) (netip.Addr, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	i := slices.IndexFunc(t.entries, func(e nameEntry) bool { return len(e.names) > 0 && strings.EqualFold(e.names[0], name) })
	if i < 0 {
		return netip.Addr{}, false
	}
	return t.entries[i].addr, true
}
