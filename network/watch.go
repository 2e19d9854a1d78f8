package network

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
)

// Change is what happened to an uplink while the guest runs.
type Change struct {
	Link      string         // as the configuration names it
	State     string         // "up", "down", "gone": the cable; "addresses": those it has now
	Addresses []netip.Prefix // of State "addresses"
}

// A host can pull a cable as often as it likes: the links are looked at once a
// second at most, and only the difference is told.
const watchPause = time.Second

// watchLinks tells of cables that are pulled and put back until Close. A
// message of the kernel only says that something has changed.
func (n *Net) watchLinks() error {
	ctx := n.keep
	states := make([]string, len(n.links))
	for i, l := range n.links {
		states[i] = l.state()
	}
	n.mu.Lock()
	n.running = true
	n.mu.Unlock()
	dirty := make(chan struct{}, 1)
	mark := func() {
		select {
		case dirty <- struct{}{}:
		default:
		}
	}
	subscribe := func() error {
		updates := make(chan netlink.LinkUpdate, 16)
		err := netlink.LinkSubscribeWithOptions(updates, ctx.Done(), netlink.LinkSubscribeOptions{ErrorCallback: func(error) {}})
		if err != nil {
			return fmt.Errorf("subscribe to the links: %w", err)
		}
		n.wg.Go(func() {
			for range updates {
				mark()
			}
			mark() // the subscription broke: too many messages
		})
		return nil
	}
	if err := subscribe(); err != nil {
		return err
	}
	n.wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-dirty:
			}
			for i, l := range n.links {
				now := l.state()
				if now == states[i] {
					continue
				}
				back := states[i] == "down" && now == "up"
				states[i] = now
				n.notify(Change{Link: l.cfg.Name, State: now})
				if back {
					n.comeBack(l)
				}
			}
			if !pause(ctx, watchPause) {
				return
			}
		}
	})
	return nil
}

// waker is for one keeper of the link's: it is told when the link is whole
// again after a break.
func (n *Net) waker(l *link) <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := make(chan struct{}, 1)
	l.wakers = append(l.wakers, c)
	return c
}

// comeBack wakes the keepers of the link's leases: it may be another network.
func (n *Net) comeBack(l *link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range l.wakers {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

func (l *link) state() string {
	dev, err := netlink.LinkByName(l.name)
	switch {
	case errors.As(err, new(netlink.LinkNotFoundError)):
		return "gone"
	case err != nil || dev.Attrs().RawFlags&rawLowerUp == 0:
		return "down"
	}
	return "up"
}
