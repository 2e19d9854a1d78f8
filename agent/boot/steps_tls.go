package boot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"

	"hpcr/agent/attest"
	"hpcr/agent/event"
	"hpcr/agent/health"
	"hpcr/agent/hpl"
	"hpcr/contract"
	"hpcr/network"
)

// endpoints are the identities of the TLS endpoints, by the contract's names.
type endpoints struct {
	own *network.OwnIdentity // nil = nobody needs one
	ids map[string]*network.LiveIdentity

	renewable map[string]bool // of ids: what clients of the management listener may replace
}

// recordEndpoints puts into the record which endpoints of TLS there are, and
// by which keys one knows that it is this guest that answers.
func (g *Guest) recordEndpoints() error {
	t := g.plan.TLS
	g.tls.ids, g.tls.renewable = map[string]*network.LiveIdentity{}, map[string]bool{}
	for _, id := range t.Identities {
		c, err := network.Identity(id.Cert, id.Key)
		id.Key.Wipe() // TLS keeps the key as numbers
		if err != nil {
			return hpl.Wrap(err, "HPL05001E", id.Path, "give a certificate and the key that belongs to it")
		}
		live := network.NewLiveIdentity(c, g.now)
		g.tls.ids[id.Name], g.tls.renewable[id.Name] = live, id.Renewable
		sum := sha256.Sum256(c.Leaf.RawSubjectPublicKeyInfo)
		g.record.Add(attest.Fact{Name: "tls:identity/" + id.Name, SHA256: hex.EncodeToString(sum[:])})
		g.ends = append(g.ends, certificate{name: id.Name + " TLS", schedule: func() contract.Schedule { return contract.SignerSchedule(live.NotAfter()) }, plain: true})
	}
	var own []string // names that the guest's own certificate is for
	need := false
	for _, i := range t.Ingress {
		g.record.Add(attest.Fact{Name: "Ingress", Text: fmt.Sprintf("%s port %d to %s:%d, %s", i.Name, i.Listen, i.Service, i.Port, clients(i.ClientCA))})
		if i.Identity == "" {
			need = true
			if i.ServerName != "" && !slices.Contains(own, i.ServerName) {
				own = append(own, i.ServerName)
			}
		}
	}
	for _, e := range t.Egress {
		g.record.Add(attest.Fact{Name: "Egress", Text: fmt.Sprintf("%s port %d to %s", e.Name, e.Listen, net.JoinHostPort(e.Host, strconv.Itoa(e.Port)))})
	}
	if m := t.Management; m != nil {
		g.record.Add(attest.Fact{Name: "Management", Text: fmt.Sprintf("port %d, %s", m.Listen, clients(m.ClientCA))})
		need = need || m.Identity == ""
	}
	if !need {
		return nil
	}
	if g.plan.Hostname != "" {
		own = append(own, g.plan.Hostname)
	}
	for _, p := range g.net.Addresses() {
		own = append(own, p.Addr().String())
	}
	var err error
	if g.tls.own, err = network.NewOwnIdentity(own, g.now); err != nil {
		return err
	}
	g.record.Add(attest.Fact{Name: "tls:own", SHA256: g.tls.own.SPKI()})
	return nil
}

func clients(authority []byte) string {
	if authority == nil {
		return "any client"
	}
	sum := sha256.Sum256(authority)
	return "clients of the authority " + hex.EncodeToString(sum[:])
}

func (g *Guest) certificateOf(identity string) network.Certificate {
	if identity == "" {
		return g.tls.own.Certificate
	}
	return g.tls.ids[identity].Certificate
}

// openEndpoints starts the TLS endpoints of the containers. Their ports open
// with their containers.
func (g *Guest) openEndpoints() error {
	for n, i := range g.plan.TLS.Ingress {
		path := fmt.Sprintf("/workload/x-hpcr/tls/ingress/%d", n)
		c, err := network.ServerConfig(g.certificateOf(i.Identity), i.ClientCA, i.ServerName, g.now)
		if err == nil {
			err = g.net.Ingress(network.Ingress{Name: i.Name, Listen: uint16(i.Listen), TLS: c, To: i.Service, Port: uint16(i.Port)})
		}
		if err != nil {
			return hpl.Wrap(err, "HPL11000E", path, "the endpoint could not be opened: take another port")
		}
		g.note(event.PortOpened, event.Notice, "TLS endpoint ready", slog.String("endpoint", i.Name), slog.Int("port", i.Listen), slog.String("service", i.Service), slog.Bool("mutual", i.ClientCA != nil))
	}
	for n, e := range g.plan.TLS.Egress {
		path := fmt.Sprintf("/workload/x-hpcr/tls/egress/%d", n)
		c, err := network.ClientConfigAs(e.CA, g.tls.client(e.Identity), e.ServerName, g.now)
		if err != nil {
			return hpl.Wrap(err, "HPL11000E", path, "the endpoint could not be opened: give its authority as PEM certificates")
		}
		g.net.Egress(network.Egress{Name: e.Name, Listen: uint16(e.Listen), TLS: c, Host: e.Host, Port: uint16(e.Port)})
	}
	return nil
}

func (e *endpoints) client(identity string) network.Certificate {
	if identity == "" {
		return nil
	}
	return e.ids[identity].Certificate
}

// renew replaces the certificate of an identity whose contract allows it.
func (g *Guest) renew(name string, certPEM []byte) error {
	if !g.tls.renewable[name] {
		return health.ErrNoIdentity
	}
	live := g.tls.ids[name]
	if err := live.Replace(certPEM); err != nil {
		return err
	}
	g.note(event.CertificateReplaced, event.Notice, "certificate replaced", slog.String("identity", name), slog.String("until", attest.ValidUntil(live.NotAfter())))
	return nil
}

// serveManagement answers health over mutual TLS, once the guest is known by
// its record.
func (g *Guest) serveManagement() error {
	m := g.plan.TLS.Management
	if m == nil {
		return nil
	}
	c, err := network.ServerConfig(g.certificateOf(m.Identity), m.ClientCA, "", g.now)
	if err != nil {
		return hpl.Wrap(err, "HPL11000E", "/env/x-hpcr/management", "the listener could not be opened: give its authority as PEM certificates")
	}
	l, err := network.Listen(uint16(m.Listen))
	if err == nil {
		err = g.net.Allow(uint16(m.Listen))
	}
	if err != nil {
		return hpl.Wrap(err, "HPL11000E", "/env/x-hpcr/management/listen", "the listener could not be opened: take another port")
	}
	go func() {
		if err := g.Health.ServeManagement(context.Background(), tls.NewListener(l, c), health.Management{Metrics: g.metrics, Renew: g.renew}); err != nil {
			g.log.Warn("the management listener ended", "error", err)
		}
	}()
	g.note(event.PortOpened, event.Notice, "management listener ready", slog.Int("port", m.Listen))
	return nil
}

// metrics are of the Prometheus text format 0.0.4. Only those who may know the
// contract's names read them.
func (g *Guest) metrics() []byte {
	var b bytes.Buffer
	family := func(name, kind, help string) { fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind) }
	r := g.Health.Report()
	family("hpcr_ready", "gauge", "1 from ready until the guest fails or stops.")
	fmt.Fprintf(&b, "hpcr_ready %d\n", map[bool]int{true: 1}[r.Ready])
	family("hpcr_uptime_seconds", "gauge", "Time since the agent started.")
	fmt.Fprintf(&b, "hpcr_uptime_seconds %d\n", r.UptimeSeconds)
	family("hpcr_certificate_not_after_seconds", "gauge", "End of a certificate, Unix time.")
	for _, c := range g.ends {
		fmt.Fprintf(&b, "hpcr_certificate_not_after_seconds{certificate=%q} %d\n", c.name, c.schedule().End.Unix())
	}
	stats := g.net.Endpoints()
	family("hpcr_tls_connections", "gauge", "Open connections of an endpoint.")
	for _, s := range stats {
		fmt.Fprintf(&b, "hpcr_tls_connections{endpoint=%q} %d\n", s.Name, s.Open)
	}
	family("hpcr_tls_accepted_total", "counter", "Connections whose handshakes and dials succeeded.")
	for _, s := range stats {
		fmt.Fprintf(&b, "hpcr_tls_accepted_total{endpoint=%q} %d\n", s.Name, s.Accepted)
	}
	family("hpcr_tls_failed_total", "counter", "Connections that failed before, or were one too many.")
	for _, s := range stats {
		fmt.Fprintf(&b, "hpcr_tls_failed_total{endpoint=%q} %d\n", s.Name, s.Failed)
	}
	if g.ship == nil {
		return b.Bytes()
	}
	log := g.ship.Stats()
	for _, m := range []struct {
		name, kind, help string
		value            any
	}{
		{"hpcr_log_connected", "gauge", "1 while the log host is connected.", map[bool]int{true: 1}[log.Connected]},
		{"hpcr_log_sent_total", "counter", "Messages written to the log host.", log.Sent},
		{"hpcr_log_repeated_total", "counter", "Messages written again after a break.", log.Repeated},
		{"hpcr_log_lost_total", "counter", "Messages dropped for want of room.", log.Lost},
		{"hpcr_log_reconnects_total", "counter", "Connections after the first.", log.Reconnects},
		{"hpcr_log_spooled", "gauge", "Messages that wait.", log.Spooled},
		{"hpcr_log_kept", "gauge", "Messages of them that are on a disk.", log.Kept},
		{"hpcr_log_lag_seconds", "gauge", "Age of the oldest message that waits.", log.Lag.Seconds()},
	} {
		family(m.name, m.kind, m.help)
		fmt.Fprintf(&b, "%s %v\n", m.name, m.value)
	}
	return b.Bytes()
}
