package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"hpcr/agent/hpl"
)

// Config says how the uplinks are set up. Nil Links: DHCP on every card, and
// no IPv6.
type Config struct {
	Links  []LinkConfig // a VLAN behind its card
	Notify func(Change) // called of what happens to the links after Up; nil = nobody cares
}

// LinkConfig is one interface of network-config or of the contract. Name is
// "encN": on s390x the card with ccw device number N, elsewhere the N-th card
// in PCI order; for a VLAN it is free. IPv6 is off on a link that neither has
// an address of it nor asks for one.
type LinkConfig struct {
	Name        string
	Path        string // where a user finds the link, for messages
	VLAN        int    // 802.1Q tag; 0 = a card
	Parent      string // name of a VLAN's card
	DHCP        bool   // DHCPv4
	DHCP6       bool
	AcceptRA    bool // SLAAC (RFC 4862)
	MTU         int  // 0 = leave, or what DHCP or the router says
	Addresses   []netip.Prefix
	Gateway     netip.Addr // IPv4; invalid = none
	Routes      []Route
	Nameservers []netip.Addr
	Search      []string
}

// Route is one static route; To 0.0.0.0/0 or ::/0 is the default route.
type Route struct {
	To  netip.Prefix
	Via netip.Addr
}

// Limits of Up, within which a network must come to life.
const (
	linkWait   = 10 * time.Second // for a card to appear after its driver is loaded
	leaseWait  = 30 * time.Second
	leaseGrace = 2 * time.Second // for further cards, once one has a lease and no configuration names them
)

// Net is the guest's network. Its methods may be called from any goroutine.
type Net struct {
	log    *slog.Logger
	keep   context.Context // of what wg counts
	cancel context.CancelFunc
	wg     sync.WaitGroup // keepers of leases, listeners to routers, the watch of the links

	mu       sync.Mutex
	closed   bool
	links    []*link // in the order of the configuration
	rules    ruleState
	projects []*Project
	names    nameTable
	relays   *relays
	ingress  []Ingress
	egress   []Egress
	secure   *secureDNS // nil = questions go out in plain text
	resolv   string     // path of the resolv.conf that we keep, "" = none
	notify   func(Change)
	running  bool // changes are told
}

// Up sets the firewall, brings up the loopback and the cards, and returns when
// every configured link has its addresses. Without configuration it returns as
// soon as one card has a lease (the others get a short grace, then go on in the
// background). Errors are *hpl.Error: HPL14001E, or HPL14002E where a card is
// there but DHCP stays silent for 30 s.
func Up(ctx context.Context, cfg Config, log *slog.Logger) (*Net, error) {
	n, err := start(log)
	if err != nil {
		return nil, err
	}
	cards, err := waitForCards(ctx, cfg, discoverCards, linkWait)
	if err != nil {
		return nil, errors.Join(err, n.Close())
	}
	err = n.up(ctx, cfg, cards, leaseWait)
	if err == nil {
		err = n.watchLinks()
	}
	if err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// start does what needs no card: rules first, then the loopback.
func start(log *slog.Logger) (*Net, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	n := &Net{log: log, keep: context.Background(), cancel: func() {}, relays: newRelays(log), notify: func(Change) {}}
	if err := n.apply(func(*ruleState) {}); err != nil {
		return nil, hpl.Wrap(err, "HPL14001E", "", "the kernel refused the firewall; the image lacks the modules nf_tables and nft_ct")
	}
	if err := hardenStack(); err != nil {
		return nil, hpl.Wrap(err, "HPL14001E", "", "the kernel refused the network settings of the guest")
	}
	if err := loopbackUp(); err != nil {
		return nil, hpl.Wrap(err, "HPL14001E", "", "the loopback interface could not be brought up")
	}
	return n, nil
}

// up configures cards. With a configuration, cards[i] belongs to cfg.Links[i].
func (n *Net) up(ctx context.Context, cfg Config, cards []card, limit time.Duration) error {
	configured := cfg.Links != nil
	if cfg.Notify != nil {
		n.notify = cfg.Notify
	}
	keep, cancel := context.WithCancel(context.WithoutCancel(ctx))
	n.keep, n.cancel = keep, cancel
	ctx, stop := context.WithTimeout(ctx, limit)
	defer stop()

	type result struct {
		index int
		err   error
	}
	results := make(chan result, len(cards))
	for i, c := range cards {
		l := &link{card: c, metric: 100 + i}
		if configured {
			l.cfg = cfg.Links[i]
		} else {
			l.cfg = LinkConfig{Name: c.target, DHCP: true}
		}
		n.links = append(n.links, l)
	}
	for i, l := range n.links {
		// One by one, as a VLAN needs its card.
		if err := n.raise(l); err != nil {
			results <- result{i, err}
			continue
		}
		go func() { results <- result{i, n.bringUp(ctx, keep, l)} }()
	}

	errs := make([]error, len(cards))
	working := 0
	var grace <-chan time.Time
	for pending := len(cards); pending > 0; pending-- {
		select {
		case r := <-results:
			errs[r.index] = r.err
			if r.err == nil {
				working++
				if !configured && grace == nil {
					grace = time.After(leaseGrace)
				}
			}
		case <-grace:
			stop() // the rest continue in the background
			grace = nil
			pending++
		}
	}
	if working == 0 || configured {
		if err := errors.Join(errs...); err != nil {
			return firstError(errs)
		}
		return nil
	}
	for i, err := range errs {
		if err != nil {
			n.log.Warn("network card has no address yet", "card", n.links[i].cfg.Name, "error", err)
			n.keepLease(keep, n.links[i], dhcp4{n, n.links[i]}, nil)
		}
	}
	return nil
}

func firstError(errs []error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// Nameservers are those of the configuration or of the leases, at most three
// (resolv.conf's limit), in the order of the links.
func (n *Net) Nameservers() []netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.nameservers()
}

func (n *Net) nameservers() []netip.Addr {
	var out []netip.Addr
	for _, l := range n.links {
		for _, a := range l.nameservers {
			if !slices.Contains(out, a) && len(out) < maxNameservers {
				out = append(out, a)
			}
		}
	}
	return out
}

// Search are the search domains, at most six.
func (n *Net) Search() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.search()
}

func (n *Net) search() []string {
	var out []string
	for _, l := range n.links {
		for _, s := range l.search {
			if !slices.Contains(out, s) && len(out) < maxSearch {
				out = append(out, s)
			}
		}
	}
	return out
}

// Addresses are the guest's own addresses on its uplinks.
func (n *Net) Addresses() []netip.Prefix {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []netip.Prefix
	for _, l := range n.links {
		out = append(out, l.addresses...)
	}
	return out
}

// Links names the uplinks that have an address, as network-config names them.
func (n *Net) Links() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []string
	for _, l := range n.links {
		if len(l.addresses) > 0 {
			out = append(out, l.cfg.Name)
		}
	}
	return out
}

// WriteResolvConf writes the guest's resolv.conf and rewrites it whenever a
// lease changes it.
func (n *Net) WriteResolvConf(path string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.resolv = path
	return n.writeResolv()
}

func (n *Net) writeResolv() error {
	if n.resolv == "" {
		return nil
	}
	temp := filepath.Join(filepath.Dir(n.resolv), ".resolv.conf.new")
	servers, options := n.nameservers(), "timeout:2 attempts:2"
	if n.secure != nil { // all of whose servers are tried within one question
		servers, options = []netip.Addr{netip.MustParseAddrPort(stubAddress).Addr()}, "timeout:10 attempts:1"
	}
	if err := os.WriteFile(temp, resolvConf(servers, n.search(), options), 0o644); err != nil {
		return fmt.Errorf("write resolv.conf: %w", err)
	}
	if err := os.Rename(temp, n.resolv); err != nil {
		return fmt.Errorf("write resolv.conf: %w", err)
	}
	return nil
}

func resolvConf(servers []netip.Addr, search []string, options string) []byte {
	var b strings.Builder
	for _, s := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(search, " "))
	}
	fmt.Fprintf(&b, "options %s\n", options)
	return []byte(b.String())
}

// Allow opens a TCP port of the guest for peers beyond its uplinks. Containers
// still do not reach it.
func (n *Net) Allow(port uint16) error {
	return n.apply(func(s *ruleState) {
		if !slices.Contains(s.open, port) {
			s.open = append(s.open, port)
		}
	})
}

// apply changes the state of the rules and sets them; a refused change is
// taken back.
func (n *Net) apply(change func(*ruleState)) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.applyLocked(change)
}

func (n *Net) applyLocked(change func(*ruleState)) error {
	next := ruleState{
		open:      slices.Clone(n.rules.open),
		ingress:   slices.Clone(n.rules.ingress),
		ipv6:      slices.Clone(n.rules.ipv6),
		egress:    n.rules.egress,
		local:     slices.Clone(n.rules.local),
		bridges:   slices.Clone(n.rules.bridges),
		published: slices.Clone(n.rules.published),
	}
	change(&next)
	if err := applyRules(next); err != nil {
		return err
	}
	n.rules = next
	return nil
}

// Close ends the projects and the lease keepers and takes the links down. The
// firewall stays, closed.
func (n *Net) Close() error {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return nil
	}
	n.closed = true
	projects, secure := slices.Clone(n.projects), n.secure
	n.mu.Unlock()

	errs := []error{n.relays.close()}
	for _, p := range projects {
		errs = append(errs, p.Close())
	}
	if secure != nil {
		errs = append(errs, secure.close())
	}
	n.cancel()
	n.wg.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, l := range slices.Backward(n.links) { // a VLAN before its card
		errs = append(errs, l.down())
	}
	errs = append(errs, n.applyLocked(func(s *ruleState) { *s = ruleState{} }))
	return errors.Join(errs...)
}
