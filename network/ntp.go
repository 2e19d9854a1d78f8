package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/beevik/ntp"
)

// Bounds on what time servers may tell us.
const (
	maxTimeError = 1500 * time.Millisecond // of one answer; what is worse says nothing
	timeSlack    = 50 * time.Millisecond   // beyond what an answer says of its own error
	timeTries    = 3
	timeWait     = 1500 * time.Millisecond // for one answer
)

// Reading is what time servers agree on.
type Reading struct {
	Offset          time.Duration // what the system's clock lacks
	Agreed, Of      int           // servers that say so, of those that were asked
	Answered, Early int           // usable answers; answers of a time before the floor
}

// Timeservers are those that DHCP named, at most four, in the order of the
// links.
func (n *Net) Timeservers() []netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []netip.Addr
	for _, l := range n.links {
		for _, p := range l.parts {
			out = appendNew(out, p.timeservers)
		}
	}
	return out[:min(len(out), maxTimeservers)]
}

// sample is one server's answer: the offset lies within err of it.
type sample struct {
	offset, err time.Duration
	early       bool
}

// AskTime asks all servers (names or addresses) at once by NTP (RFC 5905), and
// wants more than half of them to agree. Nobody is authenticated: who can
// answer in the servers' place says what he likes, but never a time before
// floor.
func AskTime(ctx context.Context, servers []string, floor time.Time) (Reading, error) {
	return askAll(servers, func(s string) (*sample, error) { return askServer(ctx, s, floor) })
}

func askAll(servers []string, ask func(string) (*sample, error)) (Reading, error) {
	samples := make([]*sample, len(servers))
	errs := make([]error, len(servers))
	var wg sync.WaitGroup
	for i, s := range servers {
		wg.Go(func() { samples[i], errs[i] = ask(s) })
	}
	wg.Wait()
	r, err := agree(samples)
	if err != nil {
		return r, errors.Join(append([]error{err}, errs...)...)
	}
	return r, nil
}

func askServer(ctx context.Context, server string, floor time.Time) (*sample, error) {
	var last error
	for range timeTries {
		r, err := queryNTP(ctx, net.JoinHostPort(server, "123"))
		if err == nil {
			var s *sample
			if s, err = judge(r, floor); err == nil {
				return s, nil
			}
		}
		last = err
		if !pause(ctx, 100*time.Millisecond) {
			break
		}
	}
	return nil, fmt.Errorf("ask a time server: %w", last)
}

func queryNTP(ctx context.Context, at string, extensions ...ntp.Extension) (*ntp.Response, error) {
	return ntp.QueryWithOptions(at, ntp.QueryOptions{Timeout: timeWait, Extensions: extensions, Dialer: func(_, remote string) (net.Conn, error) {
		bounded, stop := context.WithTimeout(ctx, timeWait)
		defer stop()
		// Connected: the kernel takes answers of this address only.
		return (&net.Dialer{}).DialContext(bounded, "udp", remote)
	}})
}

// judge takes a synchronized server's answer with a bounded error.
func judge(r *ntp.Response, floor time.Time) (*sample, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	if r.RTT < 0 || r.RTT > 2*maxTimeError || r.RootDelay < 0 || r.RootDispersion < 0 {
		return nil, errors.New("the answer is too uncertain")
	}
	err := r.RTT/2 + r.RootDelay/2 + r.RootDispersion + timeSlack
	if err > maxTimeError {
		return nil, errors.New("the answer is too uncertain")
	}
	return &sample{offset: r.ClockOffset, err: err, early: r.Time.Before(floor)}, nil
}

// agree finds the time that most answers allow (Marzullo, RFC 5905 section
// 11.2.1) and returns the median of theirs. nil is a server that did not
// answer; it counts against the rest, so that a few liars win nothing by
// silencing others.
func agree(samples []*sample) (Reading, error) {
	r := Reading{Of: len(samples)}
	var usable []*sample
	for _, s := range samples {
		switch {
		case s == nil:
		case s.early:
			r.Early++
		default:
			usable = append(usable, s)
		}
	}
	r.Answered = len(usable)
	var best []time.Duration
	for _, at := range usable { // an edge of the best intersection is some interval's lower end
		point := at.offset - at.err
		var in []time.Duration
		for _, s := range usable {
			if s.offset-s.err <= point && point <= s.offset+s.err {
				in = append(in, s.offset)
			}
		}
		if len(in) > len(best) {
			best = in
		}
	}
	r.Agreed = len(best)
	if 2*len(best) <= len(samples) {
		if r.Early > 0 {
			return r, errors.New("time servers give a time before the image was made")
		}
		return r, errors.New("no majority of the time servers agrees")
	}
	slices.Sort(best)
	r.Offset = best[len(best)/2]
	return r, nil
}
