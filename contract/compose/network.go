package compose

import (
	"math"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
)

func (c *converter) network() error {
	cfg := c.cfg
	switch cfg.NetworkMode {
	case "", "bridge", "default":
	case "host", "none":
		c.out.NetworkMode = cfg.NetworkMode
	default:
		other, ok := strings.CutPrefix(cfg.NetworkMode, "service:")
		if !ok {
			return c.refuse("network_mode", "only bridge, host, none and service:NAME are supported")
		}
		if err := c.shares(other); err != nil {
			return err
		}
	}
	if c.out.NetworkMode == "" && c.out.Share == "" {
		names := cfg.NetworksByPriority()
		if len(names) == 0 {
			names = []string{"default"} // network_mode bridge
		}
		for _, name := range names {
			m := Membership{Network: name}
			if n := cfg.Networks[name]; n != nil {
				m.Aliases = n.Aliases
			}
			for _, a := range m.Aliases {
				if !hostRE.MatchString(a) {
					return c.refuse("networks", "an alias is not a host name: use letters, digits, dot and dash")
				}
			}
			if n, ok := c.p.Networks[name]; ok {
				if n.EnableIPv4 != nil && !*n.EnableIPv4 {
					return c.refuse("networks", "a network without IPv4 would be none: remove enable_ipv4")
				}
				if bool(n.External) || (n.Driver != "" && n.Driver != "bridge" && n.Driver != "default") {
					return c.refuse("networks", "only bridge networks of the project itself are supported")
				}
			}
			c.out.Join = append(c.out.Join, m)
		}
	}
	for _, link := range cfg.Links {
		if strings.Contains(link, ":") {
			return c.refuse("links", "links under another name are not supported: use network aliases")
		}
	}
	return c.names()
}

// shares uses the network of another service, with its address and its names.
func (c *converter) shares(other string) error {
	on, ok := c.p.Services[other]
	if !ok || other == c.cfg.Name {
		return c.refuse("network_mode", "the service whose network is shared is not there: correct its name")
	}
	if m := on.NetworkMode; m != "" && m != "bridge" && m != "default" {
		return c.refuse("network_mode", "the service whose network is shared must have one of its own: remove its network_mode")
	}
	for field, set := range map[string]bool{
		"ports": len(c.cfg.Ports) > 0, "hostname": c.cfg.Hostname != "", "domainname": c.cfg.DomainName != "",
		"extra_hosts": len(c.cfg.ExtraHosts) > 0, "dns": len(c.cfg.DNS) > 0, "dns_search": len(c.cfg.DNSSearch) > 0,
		"dns_opt": len(c.cfg.DNSOpts) > 0, "links": len(c.cfg.Links) > 0,
	} {
		if set {
			return c.refuse(field, "with network_mode service:NAME this belongs to the other service: write it there")
		}
	}
	c.out.Share = other
	return nil
}

// names covers extra_hosts and the resolver's settings.
func (c *converter) names() error {
	cfg := c.cfg
	for _, name := range sortedKeys(cfg.ExtraHosts) {
		if !hostRE.MatchString(name) {
			return c.refuse("extra_hosts", "a name is not a host name: use letters, digits, dot and dash")
		}
		for _, text := range cfg.ExtraHosts[name] {
			if text == "host-gateway" {
				c.out.ExtraHosts = append(c.out.ExtraHosts, Host{Name: name, Gateway: true})
				continue
			}
			ip, err := netip.ParseAddr(strings.Trim(text, "[]"))
			if err != nil {
				return c.refuse("extra_hosts", "an address is not an IP address: correct it")
			}
			c.out.ExtraHosts = append(c.out.ExtraHosts, Host{Name: name, Addr: ip})
		}
	}
	for _, text := range cfg.DNS {
		ip, err := netip.ParseAddr(text)
		if err != nil {
			return c.refuse("dns", "a name server is not an IP address: correct it")
		}
		c.out.DNS = append(c.out.DNS, ip)
	}
	for field, list := range map[string][]string{"dns_search": cfg.DNSSearch, "dns_opt": cfg.DNSOpts} {
		for _, text := range list {
			if !resolvRE.MatchString(text) {
				return c.refuse(field, "an entry does not fit into resolv.conf: correct it")
			}
		}
	}
	c.out.DNSSearch, c.out.DNSOptions = cfg.DNSSearch, cfg.DNSOpts
	return nil
}

var resolvRE = word{253, regexp.MustCompile(`^[A-Za-z0-9._:-]+$`)}

func (c *converter) ports() error {
	if len(c.cfg.Ports) > 0 && c.out.NetworkMode != "" {
		return c.refuse("ports", "ports cannot be published with this network_mode: remove one of the two")
	}
	for _, p := range c.cfg.Ports {
		proto := p.Protocol
		if proto == "" {
			proto = "tcp"
		}
		if proto != "tcp" && proto != "udp" {
			return c.refuse("ports", "only tcp and udp ports can be published")
		}
		if p.Published == "" || p.Published == "0" {
			return c.refuse("ports", "give the port on the guest too, as in 8080:80: a random one would be known to nobody")
		}
		host, err := strconv.ParseUint(p.Published, 10, 16)
		if err != nil || host == 0 || p.Target == 0 || p.Target > math.MaxUint16 {
			return c.refuse("ports", "a port is not a number from 1 to 65535, or a range is not written port by port")
		}
		out := Port{HostPort: uint16(host), ContainerPort: uint16(p.Target), Proto: proto}
		if p.HostIP != "" {
			ip, err := netip.ParseAddr(p.HostIP)
			if err != nil {
				return c.refuse("ports", "the address in front of a port is not an IP address: correct it")
			}
			if !ip.IsUnspecified() {
				out.HostIP = ip
			}
		}
		c.out.Ports = append(c.out.Ports, out)
	}
	return nil
}
