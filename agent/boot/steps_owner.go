package boot

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"

	"hpcr/agent/event"
	"hpcr/agent/hpl"
	"hpcr/contract"
	"hpcr/network"
)

const (
	resolvConf = "/run/hpcr/resolv.conf" // changes with each lease, when / is read-only
	healthPort = 9080
)

// openNetwork brings up the links and, since from here on somebody may ask,
// the health endpoint.
func (g *Guest) openNetwork(ctx context.Context) error {
	cfg := networkConfig(g.plan.Network)
	if cfg.Links != nil && !g.plan.Network.FromContract {
		g.Console.Message("HPL13000I", "", "Validation of Schema is Successful")
	}
	cfg.Notify = g.linkChanged
	g.Console.Message("HPL14001I", "", "")
	n, err := network.Up(ctx, cfg, g.log)
	if err != nil {
		return err
	}
	g.net = n
	if err := g.encryptDNS(); err != nil {
		return err
	}
	if err := n.WriteResolvConf(resolvConf); err != nil {
		return err
	}
	if err := os.Symlink(resolvConf, "/etc/resolv.conf"); err != nil {
		return err
	}
	if err := writeHosts(g.plan.Hostname); err != nil {
		return err
	}
	if cfg.Links != nil {
		// Names are encN and vlanN by the schemas, never free text.
		g.Console.Message("HPL13004I", "", fmt.Sprintf("configured IP parameters - [%s]", strings.Join(n.Links(), " ")))
	}
	g.Console.Message("HPL14000I", "", "")
	g.serveHealth()
	return nil
}

// encryptDNS has names resolved by TLS, where the contract says by whom.
func (g *Guest) encryptDNS() error {
	if len(g.plan.DNS) == 0 {
		return nil
	}
	var servers []network.SecureServer
	for i, s := range g.plan.DNS {
		var c *tls.Config
		var err error
		if s.CA != nil {
			c, err = network.ClientConfigAs(s.CA, nil, s.ServerName, g.now)
		} else if c, err = network.RegistryConfig(rootsFile, g.plan.CACerts, g.now); err == nil {
			c.ServerName = s.ServerName
		}
		if err != nil {
			return hpl.Wrap(err, "HPL14001E", fmt.Sprintf("/env/x-hpcr/dns/servers/%d", i), "the resolver cannot be trusted: give its authority as PEM certificates")
		}
		servers = append(servers, network.SecureServer{At: s.Address, TLS: c})
	}
	if err := g.net.EncryptDNS(servers); err != nil {
		return hpl.Wrap(err, "HPL14001E", "/env/x-hpcr/dns", "the guest's own resolver could not be opened")
	}
	return nil
}

func (g *Guest) closeLinks(context.Context) error { return g.net.Close() }

// linkChanged tells the owner what happened to an uplink. Health stays what it
// is: containers that need the network say so themselves.
func (g *Guest) linkChanged(c network.Change) {
	severity, text := event.Warning, "a network link was lost"
	attrs := []slog.Attr{slog.String("link", c.Link), slog.String("state", c.State)}
	switch c.State {
	case "up":
		severity, text = event.Notice, "a network link is back"
	case "addresses":
		severity, text = event.Notice, "the addresses of a network link changed"
		attrs = append(attrs, slog.Any("addresses", c.Addresses))
	}
	g.note(event.LinkChanged, severity, text, attrs...)
}

// networkConfig hands the contract's links to the room that knows no contract.
func networkConfig(n *contract.Network) network.Config {
	if n == nil {
		return network.Config{}
	}
	file := ""
	if n.FromContract {
		file = "/env/x-hpcr"
	}
	cfg := network.Config{Links: []network.LinkConfig{}}
	cards := 0
	for i, l := range n.Links {
		path := fmt.Sprintf("%s/network/ethernets/#%d", file, i+1)
		if l.VLAN == 0 {
			cards++
		} else {
			path = fmt.Sprintf("%s/network/vlans/#%d", file, i+1-cards)
		}
		link := network.LinkConfig{
			Name: l.Name, Path: path, VLAN: l.VLAN, Parent: l.Parent,
			DHCP: l.DHCP, DHCP6: l.DHCP6, AcceptRA: l.AcceptRA, MTU: l.MTU, Addresses: l.Addresses,
			Gateway: l.Gateway, Nameservers: l.Nameservers, Search: l.Search,
		}
		for _, r := range l.Routes {
			link.Routes = append(link.Routes, network.Route(r))
		}
		cfg.Links = append(cfg.Links, link)
	}
	return cfg
}

func writeHosts(name string) error {
	text := "127.0.0.1 localhost\n"
	if name != "" {
		text += "127.0.1.1 " + name + "\n"
	}
	return os.WriteFile("/etc/hosts", []byte(text), 0o644)
}

// serveHealth answers the host on vsock and, in dev images, on TCP. A machine
// without a vsock device has its console.
func (g *Guest) serveHealth() {
	serve := func(kind string, f func() error) {
		go func() {
			if err := f(); err != nil {
				g.log.Info("health is not served", "on", kind, "error", err)
			}
		}()
	}
	serve("vsock", func() error { return g.Health.ServeVsock(context.Background(), healthPort) })
	if !g.Dev {
		return
	}
	if err := g.net.Allow(healthPort); err != nil {
		g.log.Warn("the firewall keeps the health port closed", "error", err)
	}
	serve("tcp", func() error {
		return g.Health.ServeTCP(context.Background(), net.JoinHostPort("", strconv.Itoa(healthPort)))
	})
}

// checkExpiry looks again, now that the clock is as good as it gets.
func (g *Guest) checkExpiry(context.Context) error { return g.verified.CheckExpiry(g.now()) }

// warn tells host and owner of a finding that does not stop the boot.
func (g *Guest) warn(w contract.Warning) {
	text := w.Detail
	if w.Path != "" {
		text = w.Path + ": " + text
	}
	if w.Code != "" {
		text = hpl.Message(w.Code, w.Path, w.Detail)
	}
	g.Console.Unit("hpcr-contract", "Warning: "+text)
	g.note(event.ContractWarning, event.Warning, "contract warning", slog.String("warning", text))
}
