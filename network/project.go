package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// Port is one published port. An invalid or unspecified HostIP means every
// address of the guest, its loopback included.
type Port struct {
	HostIP        netip.Addr
	HostPort      uint16
	ContainerPort uint16
	Proto         string // "tcp", "udp"; empty = tcp
}

// BridgeOptions shape one network of a project.
type BridgeOptions struct {
	Internal bool         // no way out of the bridge
	Subnet   netip.Prefix // zero: a free /24 is chosen
}

// Project is one bridge with the containers on it, and a resolver on the
// bridge's address. A compose project of several networks has several.
type Project struct {
	net       *Net
	bridge    string
	subnet    netip.Prefix
	gateway   netip.Addr
	stub      stub           // the containers' resolver
	listeners []net.Listener // of the egress endpoints; the relays close them too

	mu        sync.Mutex
	closed    bool
	last      netip.Addr // the address given last
	endpoints map[string]*endpoint
}

type endpoint struct {
	addr netip.Addr
	veth string // the guest's end
}

// NewProject makes a bridge with a free subnet and a way out. The name is the
// caller's; interfaces are called hpcr0, hpcr1, …
func (n *Net) NewProject(string) (*Project, error) { return n.NewBridge(BridgeOptions{}) }

// NewBridge is NewProject with options.
func (n *Net) NewBridge(o BridgeOptions) (_ *Project, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil, net.ErrClosed
	}
	taken, err := takenPrefixes()
	if err != nil {
		return nil, err
	}
	for _, b := range n.rules.bridges {
		taken = append(taken, b.subnet)
	}
	for _, a := range n.nameservers() {
		taken = append(taken, hostPrefix(a))
	}
	p := &Project{net: n, subnet: o.Subnet, endpoints: map[string]*endpoint{}}
	if p.subnet == (netip.Prefix{}) {
		p.subnet, err = freeSubnet(taken)
	} else {
		err = checkSubnet(p.subnet, taken)
	}
	if err != nil {
		return nil, err
	}
	p.subnet = p.subnet.Masked()
	p.gateway = p.subnet.Addr().Next()
	p.last = p.gateway
	for i := 0; p.bridge == ""; i++ {
		name := fmt.Sprintf("hpcr%d", i)
		if !slices.ContainsFunc(n.rules.bridges, func(b bridgeRules) bool { return b.name == name }) {
			p.bridge = name
		}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.dismantle())
		}
	}()
	// Rules first: the bridge never exists without them.
	if err := n.applyLocked(func(s *ruleState) {
		s.bridges = append(s.bridges, bridgeRules{p.bridge, p.subnet, p.gateway, o.Internal})
		s.egress = n.egressPorts()
	}); err != nil {
		return nil, err
	}
	if err := p.build(n.mtu()); err != nil {
		return nil, err
	}
	if err := p.serveDNS(); err != nil {
		return nil, err
	}
	if err := p.serveEgress(); err != nil {
		return nil, err
	}
	n.projects = append(n.projects, p)
	return p, nil
}

func (p *Project) build(mtu int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = p.bridge, mtu
	dev := &netlink.Bridge{LinkAttrs: attrs}
	if err := netlink.LinkAdd(dev); err != nil {
		return fmt.Errorf("make the bridge: %w", err)
	}
	if err := disableIPv6(p.bridge); err != nil {
		return err
	}
	// A port published on the guest's loopback leaves through the bridge with
	// a loopback source until it is masqueraded; the chain "martians" keeps
	// everybody else from using this.
	for _, s := range [][2]string{{"ipv4/conf/" + p.bridge + "/route_localnet", "1"}, {"ipv4/ip_forward", "1"}} {
		if err := sysctl(s[0], s[1]); err != nil {
			return err
		}
	}
	if err := hardenStack(); err != nil { // turning forwarding on resets some of it
		return err
	}
	if err := netlink.AddrAdd(dev, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(p.gateway, p.subnet.Bits()))}); err != nil {
		return fmt.Errorf("address the bridge: %w", err)
	}
	if err := netlink.LinkSetUp(dev); err != nil {
		return fmt.Errorf("bring up the bridge: %w", err)
	}
	return nil
}

// mtu is the smallest of the uplinks, so that nothing must be fragmented.
func (n *Net) mtu() int {
	mtu := 1500
	for _, l := range n.links {
		if dev, err := netlink.LinkByName(l.name); err == nil {
			mtu = min(mtu, dev.Attrs().MTU)
		}
	}
	return mtu
}

// Gateway is the guest's address on the bridge: the containers' default route
// and, on port 53, their resolver.
func (p *Project) Gateway() netip.Addr { return p.gateway }

// Subnet is the bridge's network.
func (p *Project) Subnet() netip.Prefix { return p.subnet }

// ResolvConf is the text for a container's /etc/resolv.conf. It names no
// search domain: a service's name must never be asked of the world.
func (p *Project) ResolvConf() []byte {
	return fmt.Appendf(nil, "nameserver %s\noptions ndots:0\n", p.gateway)
}

// Attach gives the network namespace at netnsPath an interface on the bridge,
// makes names resolve to it for its neighbours, and publishes ports. The first
// network of a container becomes its eth0 and default route. The id is the
// container's, the same on each of its networks.
func (p *Project) Attach(id, netnsPath string, names []string, ports []Port) (addr netip.Addr, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return addr, net.ErrClosed
	}
	if p.endpoints[id] != nil {
		return addr, errors.New("the container is on this network already")
	}
	addr, err = p.nextAddress()
	if err != nil {
		return addr, err
	}
	published, err := publishedPorts(p.bridge, addr, ports)
	if err != nil {
		return addr, err
	}
	e := &endpoint{addr: addr}
	p.endpoints[id] = e
	p.last = addr
	defer func() {
		if err != nil {
			err = errors.Join(err, p.detach(id))
		}
	}()
	if e.veth, err = p.plug(netnsPath, addr); err != nil {
		return addr, err
	}
	if err := p.net.publish(published); err != nil {
		return addr, err
	}
	p.net.names.add(id, p, addr, names)
	return addr, p.net.refreshIngress()
}

// nextAddress goes round, so that an address is not reused at once.
func (p *Project) nextAddress() (netip.Addr, error) {
	used := map[netip.Addr]bool{p.gateway: true, p.subnet.Addr(): true, broadcastOf(p.subnet): true}
	for _, e := range p.endpoints {
		used[e.addr] = true
	}
	for a := p.last.Next(); a != p.last; a = a.Next() {
		if !p.subnet.Contains(a) {
			a = p.subnet.Addr()
		}
		if !used[a] {
			return a, nil
		}
	}
	return netip.Addr{}, errors.New("the network has no free address")
}

func publishedPorts(bridge string, addr netip.Addr, ports []Port) ([]publishedPort, error) {
	var out []publishedPort
	for _, port := range ports {
		proto := byte(protoTCP)
		switch port.Proto {
		case "", "tcp":
		case "udp":
			proto = protoUDP
		default:
			return nil, errors.New("only tcp and udp ports can be published")
		}
		if port.HostPort == 0 || port.ContainerPort == 0 {
			return nil, errors.New("a published port needs a number on both sides")
		}
		if port.HostIP.IsValid() && !port.HostIP.Is4() && port.HostIP != netip.IPv6Unspecified() {
			return nil, errors.New("only IPv4 addresses can publish a port")
		}
		out = append(out, publishedPort{bridge, port.HostIP, port.HostPort, proto, netip.AddrPortFrom(addr, port.ContainerPort)})
	}
	return out, nil
}

func (n *Net) publish(ports []publishedPort) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	after := n.rules
	after.published = slices.Clone(n.rules.published)
	for _, p := range ports {
		if err := conflict(after, p); err != nil {
			return err
		}
		after.published = append(after.published, p)
	}
	return n.applyLocked(func(s *ruleState) { s.published = after.published })
}

// conflict finds two containers, or a container and the agent, on one port.
func conflict(s ruleState, p publishedPort) error {
	if p.proto == protoTCP && slices.Contains(s.open, p.hostPort) {
		return fmt.Errorf("port %d belongs to the agent", p.hostPort)
	}
	anywhere := func(a netip.Addr) bool { return !a.IsValid() || a.IsUnspecified() }
	for _, o := range s.published {
		if o.proto == p.proto && o.hostPort == p.hostPort && (o.hostIP == p.hostIP || anywhere(o.hostIP) || anywhere(p.hostIP)) {
			return fmt.Errorf("port %d is published twice", p.hostPort)
		}
	}
	return nil
}

// plug makes the pair of interfaces, configures the container's end inside its
// namespace and returns the name of ours.
func (p *Project) plug(netnsPath string, addr netip.Addr) (string, error) {
	ns, err := netns.GetFromPath(netnsPath)
	if err != nil {
		return "", fmt.Errorf("open the container's network: %w", err)
	}
	defer ns.Close()
	bridge, err := netlink.LinkByName(p.bridge)
	if err != nil {
		return "", fmt.Errorf("find the bridge: %w", err)
	}
	a := addr.As4()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = fmt.Sprintf("v%x", a[:]) // addresses are unique, so are the names
	attrs.MTU, attrs.MasterIndex = bridge.Attrs().MTU, bridge.Attrs().Index
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "p" + attrs.Name[1:], PeerNamespace: netlink.NsFd(int(ns))}
	if err := netlink.LinkAdd(veth); err != nil {
		return "", fmt.Errorf("make the container's interface: %w", err)
	}
	if err := disableIPv6(attrs.Name); err != nil {
		return attrs.Name, err
	}
	if err := netlink.LinkSetUp(veth); err != nil {
		return attrs.Name, fmt.Errorf("bring up the container's interface: %w", err)
	}
	return attrs.Name, inNetns(ns, func() error {
		return insideUp(veth.PeerName, addr, p.subnet.Bits(), p.gateway)
	})
}

// insideUp runs in the container's network namespace.
func insideUp(peer string, addr netip.Addr, bits int, gateway netip.Addr) error {
	dev, err := netlink.LinkByName(peer)
	if err != nil {
		return fmt.Errorf("find the inner interface: %w", err)
	}
	name := ""
	for i := 0; name == ""; i++ {
		if _, err := netlink.LinkByName("eth" + strconv.Itoa(i)); errors.As(err, new(netlink.LinkNotFoundError)) {
			name = "eth" + strconv.Itoa(i)
		} else if err != nil {
			return fmt.Errorf("look for a free interface name: %w", err)
		}
	}
	if err := netlink.LinkSetName(dev, name); err != nil {
		return fmt.Errorf("name the inner interface: %w", err)
	}
	if err := disableIPv6(name); err != nil {
		return err
	}
	if err := netlink.AddrAdd(dev, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(addr, bits))}); err != nil {
		return fmt.Errorf("address the inner interface: %w", err)
	}
	if err := loopbackUp(); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(dev); err != nil {
		return fmt.Errorf("bring up the inner interface: %w", err)
	}
	route := &netlink.Route{LinkIndex: dev.Attrs().Index, Dst: ipNet(netip.PrefixFrom(netip.IPv4Unspecified(), 0)), Gw: gateway.AsSlice()}
	if err := netlink.RouteAdd(route); err != nil && !errors.Is(err, os.ErrExist) { // the first network keeps the default route
		return fmt.Errorf("route the inner interface: %w", err)
	}
	return nil
}

// inNetns runs f on a thread of its own in another network namespace. The
// thread is not given back: it ends with the goroutine.
func inNetns(ns netns.NsHandle, f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(ns); err != nil {
			result <- fmt.Errorf("enter the container's network: %w", err)
			return
		}
		result <- f()
	}()
	return <-result
}

// Detach takes a container off the network; one that is not on it is fine.
func (p *Project) Detach(id string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.detach(id)
}

func (p *Project) detach(id string) error {
	e := p.endpoints[id]
	if e == nil {
		return nil
	}
	delete(p.endpoints, id)
	p.net.names.remove(id, p)
	err := p.net.apply(func(s *ruleState) {
		p.net.openIngress(s)
		s.published = slices.DeleteFunc(s.published, func(o publishedPort) bool { return o.to.Addr() == e.addr })
	})
	if e.veth == "" {
		return err
	}
	return errors.Join(err, deleteLink(e.veth)) // its namespace may have taken it along
}

// Close takes everything back: containers' interfaces, resolver, bridge, rules.
func (p *Project) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	var errs []error
	for id := range p.endpoints {
		errs = append(errs, p.detach(id))
	}
	p.mu.Unlock()
	for _, l := range p.listeners {
		errs = append(errs, p.net.relays.drop(l))
	}
	// Before the lock: an answer under way may wait for it.
	errs = append(errs, p.stub.close())
	n := p.net
	n.mu.Lock()
	defer n.mu.Unlock()
	n.projects = slices.DeleteFunc(n.projects, func(o *Project) bool { return o == p })
	return errors.Join(append(errs, p.dismantle())...)
}

// dismantle is called with Net.mu held. The bridge goes before its rules.
func (p *Project) dismantle() error {
	return errors.Join(deleteLink(p.bridge), p.net.applyLocked(func(s *ruleState) {
		s.bridges = slices.DeleteFunc(s.bridges, func(b bridgeRules) bool { return b.name == p.bridge })
	}))
}

func deleteLink(name string) error {
	dev, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find an interface: %w", err)
	}
	if err := netlink.LinkDel(dev); err != nil && !errors.As(err, new(netlink.LinkNotFoundError)) {
		return fmt.Errorf("remove an interface: %w", err)
	}
	return nil
}
