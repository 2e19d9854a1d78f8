// Package network owns everything between the guest and the wire: links and
// addresses, DHCP, the firewall, the bridges on which containers live, their
// resolver, and how TLS is set up.
//
// It trusts nothing that arrives. Of a DHCP answer or a router advertisement
// it takes addresses, a router, resolvers, an MTU, search domains and time
// servers, each within bounds; all else is ignored. What a name resolves to is
// the network's word: whoever uses it authenticates the peer by TLS.
//
// The firewall is one nftables table that a pure function derives from state
// (ruleset) and that is replaced as a whole, in one transaction, on each
// change. It stands before the first link is up and stays after Close.
//
// IPv6 is off on every link that does not ask for it, and on all bridges.
//
// Not promised: IPv6 for containers, protection of one container from another
// on the same bridge against forged ARP, and privacy of DNS questions.
package network
