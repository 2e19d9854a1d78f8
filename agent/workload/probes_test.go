package workload

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"hpcr/contract/compose"
)

func plainDial(ctx context.Context, addr string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", addr)
}

func TestProbesOverTheNetwork(t *testing.T) {
	answer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/slow":
			<-r.Context().Done()
		case r.URL.Path == "/moved":
			http.Redirect(w, r, "http://192.0.2.1/", http.StatusFound)
		case r.Host != "asked.example" || r.Header.Get("X-A") != "b":
			w.WriteHeader(http.StatusTeapot)
		}
	})
	plain, secure := httptest.NewServer(answer), httptest.NewTLSServer(answer)
	defer plain.Close()
	defer secure.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, states := grpc.NewServer(), health.NewServer()
	grpc_health_v1.RegisterHealthServer(server, states)
	states.SetServingStatus("bad", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	go server.Serve(l)
	defer server.Stop()
	port := func(a net.Addr) uint16 { return netip.MustParseAddrPort(a.String()).Port() }
	web, tls, rpc := port(plain.Listener.Addr()), port(secure.Listener.Addr()), port(l.Addr())
	shut, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := port(shut.Addr())
	shut.Close()
	headers := compose.Env{{Name: "host", Value: "asked.example"}, {Name: "X-A", Value: "b"}}
	for name, tt := range map[string]struct {
		probe compose.Probe
		ok    bool
	}{
		"a port that listens":              {compose.Probe{Kind: compose.ProbeTCP, Port: web}, true},
		"a port that does not":             {compose.Probe{Kind: compose.ProbeTCP, Port: nobody}, false},
		"a page, with headers":             {compose.Probe{Kind: compose.ProbeHTTP, Port: web, Path: "/", Headers: headers}, true},
		"a page over TLS":                  {compose.Probe{Kind: compose.ProbeHTTP, Port: tls, Path: "/", TLS: true, Headers: headers}, true},
		"a page that is refused":           {compose.Probe{Kind: compose.ProbeHTTP, Port: web, Path: "/"}, false},
		"a redirection is not followed":    {compose.Probe{Kind: compose.ProbeHTTP, Port: web, Path: "/moved"}, true},
		"a page that does not come":        {compose.Probe{Kind: compose.ProbeHTTP, Port: web, Path: "/slow"}, false},
		"a gRPC service that serves":       {compose.Probe{Kind: compose.ProbeGRPC, Port: rpc}, true},
		"a gRPC service that does not":     {compose.Probe{Kind: compose.ProbeGRPC, Port: rpc, Service: "bad"}, false},
		"a gRPC service that nobody knows": {compose.Probe{Kind: compose.ProbeGRPC, Port: rpc, Service: "none"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if err := ask(ctx, &tt.probe, netip.MustParseAddr("127.0.0.1"), plainDial); (err == nil) != tt.ok {
				t.Error(err)
			}
		})
	}
}
