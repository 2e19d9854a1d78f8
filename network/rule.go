package network

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"

	"github.com/google/nftables/expr"
)

// rule is one nftables rule; the functions below are its vocabulary, each the
// counterpart of a few words of nft(8).
type rule []expr.Any

// Numbers of the kernel's ABI: linux/in.h, linux/netfilter.h and
// linux/netfilter/nf_conntrack_common.h.
const (
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58

	nfprotoIPv4 = 2
	nfprotoIPv6 = 10

	icmpMLDQuery  = 130 // RFC 2710, RFC 4861
	icmpRouterAdv = 134
	icmpNeighbSol = 135
	icmpNeighbAdv = 136
	portDHCPv6    = 546

	ctInvalid     = expr.CtStateBitINVALID
	ctEstablished = expr.CtStateBitESTABLISHED
	ctRelated     = expr.CtStateBitRELATED
	ctStatusDNAT  = 1 << 5

	portDNS = 53
)

var (
	accept = rule{&expr.Verdict{Kind: expr.VerdictAccept}}
	drop   = rule{&expr.Verdict{Kind: expr.VerdictDrop}}
)

func jump(name string) rule { return rule{&expr.Verdict{Kind: expr.VerdictJump, Chain: name}} }

func join(parts ...rule) rule {
	var r rule
	for _, p := range parts {
		r = append(r, p...)
	}
	return r
}

func ifname(key expr.MetaKey, op expr.CmpOp, name string) rule {
	data := make([]byte, 16) // IFNAMSIZ
	copy(data, name)
	return rule{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: op, Register: 1, Data: data},
	}
}

func iif(name string) rule    { return ifname(expr.MetaKeyIIFNAME, expr.CmpOpEq, name) }
func oif(name string) rule    { return ifname(expr.MetaKeyOIFNAME, expr.CmpOpEq, name) }
func notIif(name string) rule { return ifname(expr.MetaKeyIIFNAME, expr.CmpOpNeq, name) }
func notOif(name string) rule { return ifname(expr.MetaKeyOIFNAME, expr.CmpOpNeq, name) }

// ctBits matches when any of the bits is set. Conntrack values are in the
// machine's byte order.
func ctBits(key expr.CtKey, bits uint32) rule {
	return rule{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binary.NativeEndian.AppendUint32(nil, bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

func ctState(bits uint32) rule { return ctBits(expr.CtKeySTATE, bits) }

// ctDNAT matches connections that one of our published ports redirected.
func ctDNAT() rule { return ctBits(expr.CtKeySTATUS, ctStatusDNAT) }

// ipAddr matches an address field of the IP header of p's family; an inet
// table sees both families, whose headers differ.
func ipAddr(v4, v6 uint32, p netip.Prefix) rule {
	family, offset, size := byte(nfprotoIPv4), v4, uint32(4)
	if p.Addr().Is6() {
		family, offset, size = nfprotoIPv6, v6, 16
	}
	r := rule{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
	}
	if p.Bits() < int(size)*8 {
		r = append(r, &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: net.CIDRMask(p.Bits(), int(size)*8), Xor: make([]byte, size)})
	}
	return append(r, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()})
}

func icmpv6(kind byte) rule {
	return rule{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{nfprotoIPv6}},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{protoICMPv6}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{kind}},
	}
}

// fromLink matches an IPv6 packet that no router has forwarded (RFC 4861
// section 6.1); join it to a rule that matches IPv6 only.
func fromLink() rule {
	return rule{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 7, Len: 1}, // hop limit
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{255}},
	}
}

func saddr(p netip.Prefix) rule { return ipAddr(12, 8, p) }
func daddr(p netip.Prefix) rule { return ipAddr(16, 24, p) }

func dport(proto byte, port uint16) rule {
	return rule{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: be16(port)},
	}
}

func dnat(to netip.AddrPort) rule {
	return rule{
		&expr.Immediate{Register: 1, Data: bytes.Clone(to.Addr().AsSlice())},
		&expr.Immediate{Register: 2, Data: be16(to.Port())},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: nfprotoIPv4, RegAddrMin: 1, RegProtoMin: 2},
	}
}

// masquerade is IPv4's: the address family of the match before it holds.
func masquerade() rule { return rule{&expr.Masq{}} }

func be16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }
