package network

import (
	"bytes"
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables/expr"
)

// rule is one nftables rule; the functions below are its vocabulary, each the
// counterpart of a few words of nft(8).
type rule []expr.Any

// Numbers of the kernel's ABI: linux/in.h, linux/netfilter.h and
// linux/netfilter/nf_conntrack_common.h.
const (
	protoTCP = 6
	protoUDP = 17

	nfprotoIPv4 = 2

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

// ipv4Addr matches an address field of the IPv4 header; an inet table sees
// IPv6 too, whose header has other bytes at this offset.
func ipv4Addr(offset uint32, p netip.Prefix) rule {
	r := rule{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{nfprotoIPv4}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
	}
	if p.Bits() < 32 {
		mask := binary.BigEndian.AppendUint32(nil, ^uint32(0)<<(32-p.Bits()))
		if p.Bits() == 0 {
			mask = make([]byte, 4)
		}
		r = append(r, &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)})
	}
	return append(r, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()})
}

func saddr(p netip.Prefix) rule { return ipv4Addr(12, p) }
func daddr(p netip.Prefix) rule { return ipv4Addr(16, p) }

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
