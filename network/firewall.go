package network

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
)

// TableName is the one nftables table that is ours, of family inet.
const TableName = "hpcr"

// nftLimit bounds one transaction: a kernel without nf_tables never answers.
const nftLimit = 10 * time.Second

// ruleState is all that the rules depend on.
type ruleState struct {
	open      []uint16     // the agent's own TCP ports, for peers beyond the uplinks
	ingress   []uint16     // likewise, of containers that are up
	egress    []uint16     // TCP ports of every bridge's gateway, for its containers
	local     []netip.Addr // the guest's IPv4 addresses on its uplinks
	ipv6      []ipv6Rules  // the uplinks that speak IPv6
	bridges   []bridgeRules
	published []publishedPort
}

type bridgeRules struct {
	name     string
	subnet   netip.Prefix
	gateway  netip.Addr
	internal bool // no way out
}

// ipv6Rules say what an uplink hears of its neighbours.
type ipv6Rules struct {
	name    string
	routers bool // router advertisements
	dhcp    bool // answers of DHCPv6, which come from another address than was asked
}

type publishedPort struct {
	bridge   string
	hostIP   netip.Addr // unspecified or invalid = every address of the guest
	hostPort uint16
	proto    byte
	to       netip.AddrPort
}

// chain is one chain of the table; base chains have a hook.
type chain struct {
	name     string
	kind     nftables.ChainType
	hook     *nftables.ChainHook
	priority *nftables.ChainPriority
	drop     bool
	rules    []rule
}

var linkLocal = netip.MustParsePrefix("fe80::/10")

// Firewall lets nothing in and nothing through: input only from the loopback
// and in answer to what the guest itself asked; nothing is forwarded. Call it
// before the first link is up. It needs the kernel's nf_tables and nft_ct and
// fails after ten seconds where they are missing.
func Firewall() error { return applyRules(ruleState{}) }

// applyRules replaces the table in one transaction, so that there is no moment
// without rules.
func applyRules(s ruleState) error {
	conn, err := nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error {
		return c.SetDeadline(time.Now().Add(nftLimit))
	}))
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	// Adding before deleting makes the deletion valid on the first run.
	table := &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet}
	conn.AddTable(table)
	conn.DelTable(table)
	conn.AddTable(table)
	for _, c := range ruleset(s) {
		nc := &nftables.Chain{Name: c.name, Table: table, Type: c.kind, Hooknum: c.hook, Priority: c.priority}
		if c.hook != nil {
			policy := nftables.ChainPolicyAccept
			if c.drop {
				policy = nftables.ChainPolicyDrop
			}
			nc.Policy = &policy
		}
		conn.AddChain(nc)
		for _, r := range c.rules {
			conn.AddRule(&nftables.Rule{Table: table, Chain: nc, Exprs: r})
		}
	}
	done := make(chan error, 1)
	go func() { done <- conn.Flush() }()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("set the firewall: %w", err)
		}
		return nil
	case <-time.After(nftLimit + time.Second):
		return errors.New("set the firewall: the kernel does not answer; is nf_tables loaded?")
	}
}

// ruleset derives the whole table. Chains that need NAT exist only where there
// is a bridge, so a guest without containers needs no NAT modules.
func ruleset(s ruleState) []chain {
	input := []rule{
		join(ctState(ctEstablished|ctRelated), accept),
		join(ctState(ctInvalid), drop),
		join(iif("lo"), accept),
	}
	forward := []rule{
		join(ctState(ctEstablished|ctRelated), accept),
		join(ctState(ctInvalid), drop),
	}
	for _, l := range s.ipv6 {
		for _, kind := range []byte{icmpNeighbSol, icmpNeighbAdv} {
			input = append(input, join(iif(l.name), icmpv6(kind), fromLink(), accept))
		}
		// A switch that listens to these forgets a guest that stays silent.
		input = append(input, join(iif(l.name), icmpv6(icmpMLDQuery), saddr(linkLocal), accept))
		if l.routers {
			input = append(input, join(iif(l.name), icmpv6(icmpRouterAdv), fromLink(), saddr(linkLocal), accept))
		}
		if l.dhcp {
			input = append(input, join(iif(l.name), saddr(linkLocal), daddr(linkLocal), dport(protoUDP, portDHCPv6), accept))
		}
	}
	for _, b := range s.bridges {
		// A container reaches the resolver and nothing else of the guest:
		// no listener of the agent, on no address.
		for _, proto := range []byte{protoUDP, protoTCP} {
			input = append(input, join(iif(b.name), saddr(b.subnet), daddr(hostPrefix(b.gateway)), dport(proto, portDNS), accept))
		}
		for _, port := range s.egress {
			input = append(input, join(iif(b.name), saddr(b.subnet), daddr(hostPrefix(b.gateway)), dport(protoTCP, port), accept))
		}
		input = append(input, join(iif(b.name), drop))
		forward = append(forward, join(iif(b.name), oif(b.name), accept))
	}
	for _, p := range s.published {
		forward = append(forward, join(oif(p.bridge), ctDNAT(), daddr(hostPrefix(p.to.Addr())), dport(p.proto, p.to.Port()), accept))
	}
	for _, b := range s.bridges {
		forward = append(forward, join(oif(b.name), drop))
	}
	for _, b := range s.bridges {
		if !b.internal {
			forward = append(forward, join(iif(b.name), saddr(b.subnet), accept))
		}
	}
	for _, port := range slices.Concat(s.open, s.ingress) {
		input = append(input, join(dport(protoTCP, port), accept))
	}
	chains := []chain{
		{name: "input", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookInput, priority: nftables.ChainPriorityFilter, drop: true, rules: input},
		{name: "forward", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookForward, priority: nftables.ChainPriorityFilter, drop: true, rules: forward},
	}
	if len(s.bridges) > 0 {
		chains = append(chains, natChains(s)...)
	}
	return chains
}

// natChains: published ports are found by the guest's own addresses only, so
// that traffic to the same port of a stranger is never caught.
func natChains(s ruleState) []chain {
	loopback := netip.MustParsePrefix("127.0.0.0/8")
	// route_localnet on the bridges would let a container, or a neighbour on
	// the wire, address the guest's loopback.
	raw := []rule{
		join(notIif("lo"), daddr(loopback), drop),
		join(notIif("lo"), saddr(loopback), drop),
	}
	published := make([]rule, 0, len(s.published))
	for _, p := range s.published {
		var match rule
		if p.hostIP.IsValid() && !p.hostIP.IsUnspecified() {
			match = daddr(hostPrefix(p.hostIP))
		}
		published = append(published, join(match, dport(p.proto, p.hostPort), dnat(p.to)))
	}
	var pre, out, post []rule
	own := append([]netip.Addr(nil), s.local...)
	for _, b := range s.bridges {
		own = append(own, b.gateway)
		for _, proto := range []byte{protoUDP, protoTCP} {
			pre = append(pre, join(iif(b.name), daddr(hostPrefix(b.gateway)), dport(proto, portDNS), accept))
		}
		if !b.internal {
			post = append(post, join(saddr(b.subnet), notOif(b.name), masquerade()))
		}
		post = append(post,
			join(oif(b.name), saddr(loopback), masquerade()),
			join(oif(b.name), saddr(b.subnet), ctDNAT(), masquerade()), // a container through the guest's address to its neighbour
		)
	}
	for _, a := range own {
		pre = append(pre, join(daddr(hostPrefix(a)), jump("published")))
		out = append(out, join(daddr(hostPrefix(a)), jump("published")))
	}
	out = append(out, join(daddr(loopback), jump("published")))
	nat := nftables.ChainTypeNAT
	return []chain{
		{name: "published", rules: published},
		{name: "martians", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookPrerouting, priority: nftables.ChainPriorityRaw, rules: raw},
		{name: "prerouting", kind: nat, hook: nftables.ChainHookPrerouting, priority: nftables.ChainPriorityNATDest, rules: pre},
		{name: "output", kind: nat, hook: nftables.ChainHookOutput, priority: nftables.ChainPriorityNATDest, rules: out},
		{name: "postrouting", kind: nat, hook: nftables.ChainHookPostrouting, priority: nftables.ChainPriorityNATSource, rules: post},
	}
}

func hostPrefix(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
