// Package network owns everything between the guest and the wire: links and
// addresses, DHCP, the firewall, the bridges on which containers live, their
// resolver, and how TLS is set up.
//
// It trusts nothing that arrives. Of a DHCP answer it takes an address, a
// mask, a router, resolvers, an MTU and search domains, each within bounds;
// all else is ignored. What a name resolves to is the network's word: whoever
// uses it authenticates the peer by TLS.
//
// The firewall is one nftables table that a pure function derives from state
// (ruleset) and that is replaced as a whole, in one transaction, on each
// change. It stands before the first link is up and stays after Close.
//
// Not promised: IPv6 (switched off on every link, as network-config knows only
// IPv4), protection of one container from another on the same bridge against
// forged ARP, and privacy of DNS questions.
package network
