package workload

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"

	"hpcr/contract/compose"
)

// gated says whether the container counts as ready only when a probe says so.
func gated(s *compose.Service) bool { return s.Startup != nil || s.Readiness != nil }

// podProbes runs Kubernetes' probes beside a run: the startup probe holds the
// other two back, startup and liveness end the container, readiness says
// whether it is healthy.
func (s *service) podProbes(ctx context.Context, r *run) {
	if p := s.def.Startup; p != nil {
		started, ended := false, false
		s.repeat(ctx, r, "startup", p, func(ok bool) bool {
			started, ended = ok, !ok
			return false
		})
		if ended {
			s.condemn(ctx, "startup")
		}
		if !started {
			return
		}
	}
	if s.def.Startup != nil && s.def.Readiness == nil {
		s.update(func(st *State) { st.Health = HealthHealthy })
	}
	var wg sync.WaitGroup
	if p := s.def.Liveness; p != nil {
		wg.Go(func() {
			s.repeat(ctx, r, "liveness", p, func(ok bool) bool {
				if !ok {
					s.condemn(ctx, "liveness")
				}
				return ok
			})
		})
	}
	if p := s.def.Readiness; p != nil {
		wg.Go(func() {
			s.repeat(ctx, r, "readiness", p, func(ok bool) bool {
				now := HealthUnhealthy
				if ok {
					now = HealthHealthy
				}
				if st, _ := s.snapshot(); st.Health != now {
					s.w.opt.Log.Info("health of a container changed", "service", s.def.Name, "health", now)
					s.update(func(st *State) { st.Health = now })
				}
				return true
			})
		})
	}
	wg.Wait()
}

// repeat runs a probe until ctx is over or verdict, which is told when so many
// results in a row agree, says stop.
func (s *service) repeat(ctx context.Context, r *run, name string, p *compose.Probe, verdict func(ok bool) bool) {
	good, bad := 0, 0
	wait := p.Delay
	for n := 0; ; n++ {
		if sleep(ctx, wait) != nil {
			return
		}
		wait = p.Period
		err := s.once(ctx, r, p, fmt.Sprintf("%s-%d-%d", name, r.begin.UnixNano(), n))
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			good, bad = good+1, 0
		} else {
			good, bad = 0, bad+1
			s.w.opt.Log.Info("a probe failed", "service", s.def.Name, "probe", name, "err", err)
		}
		if (good >= p.Successes || bad >= p.Failures) && !verdict(err == nil) {
			return
		}
	}
}

func (s *service) once(ctx context.Context, r *run, p *compose.Probe, id string) error {
	if p.Kind == compose.ProbeExec {
		return s.probe(ctx, r.task, &compose.Health{Test: append([]string{"CMD"}, p.Exec...), Timeout: p.Timeout}, id)
	}
	ctx, cancel := context.WithTimeout(ctx, p.Timeout)
	defer cancel()
	netns := s.w.netnsPath(s.def)
	return ask(ctx, p, s.addr, func(ctx context.Context, addr string) (net.Conn, error) {
		return dialIn(ctx, netns, addr)
	})
}

// ask runs a probe over the network. The container's answer is bounded: of HTTP
// only the head is read, gRPC's messages have the library's limit.
func ask(ctx context.Context, p *compose.Probe, ip netip.Addr, dial func(context.Context, string) (net.Conn, error)) error {
	addr := netip.AddrPortFrom(ip, p.Port).String()
	switch p.Kind {
	case compose.ProbeTCP:
		c, err := dial(ctx, addr)
		if err != nil {
			return err
		}
		return c.Close()
	case compose.ProbeHTTP:
		scheme := "http"
		if p.TLS {
			scheme = "https"
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+addr+p.Path, nil)
		if err != nil {
			return err
		}
		req.Header.Set("User-Agent", "kube-probe/1")
		for _, h := range p.Headers {
			if http.CanonicalHeaderKey(h.Name) == "Host" {
				req.Host = h.Value
				continue
			}
			req.Header.Add(h.Name, h.Value)
		}
		client := http.Client{
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			Transport: &http.Transport{
				DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10,
				DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) { return dial(ctx, addr) },
				// As Kubernetes: the probe asks whether somebody answers, not who.
				TLSClientConfig: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12},
			},
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		if err := resp.Body.Close(); err != nil {
			return err
		}
		if resp.StatusCode < 200 || resp.StatusCode >= 400 {
			return errors.New("status " + strconv.Itoa(resp.StatusCode))
		}
		return nil
	}
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(dial))
	if err != nil {
		return err
	}
	defer conn.Close()
	resp, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: p.Service})
	if err != nil {
		return err
	}
	if resp.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		return errFailed
	}
	return nil
}

// condemn ends the run: by its stop signal, after the grace by force. What
// follows is the restart policy's. ctx ends with the run.
func (s *service) condemn(ctx context.Context, probe string) {
	s.w.opt.Log.Warn("a probe ends the container", "service", s.def.Name, "probe", probe)
	if s.signal(ctx, s.stopSignal()) == nil && sleep(ctx, s.def.StopGrace) != nil {
		return
	}
	for ctx.Err() == nil {
		if err := s.signal(ctx, syscall.SIGKILL, containerd.WithKillAll); err != nil {
			s.w.opt.Log.Warn("a container could not be killed", "service", s.def.Name, "err", err)
		}
		if sleep(ctx, time.Second) != nil {
			return
		}
	}
}

// allReady waits until every pod's readiness probe has had its say once.
func (w *Workload) allReady(ctx context.Context) error {
	for _, s := range w.services {
		for gated(s.def) {
			st, changed := s.snapshot()
			if st.Health == HealthHealthy || st.Phase == Exited || st.Phase == Stopped {
				break
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return s.failed(ctx.Err(), "", "the container did not become ready in time: check its probes; the guest's log has its output")
			}
		}
	}
	return nil
}
