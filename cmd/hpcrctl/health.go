package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"
)

func init() { commands = append(commands, newHealthCmd) }

// status is the guest's answer: fixed fields, no word from contract or workload.
type status struct {
	Schema        int    `json:"schema"`
	Live          bool   `json:"live"`
	Ready         bool   `json:"ready"`
	Phase         string `json:"phase"`
	Code          string `json:"code"`
	Flavour       string `json:"flavour"`
	UptimeSeconds int64  `json:"uptimeSeconds"`
}

// maxHealth bounds the answer that is read.
const maxHealth = 64 << 10

func newHealthCmd() *cobra.Command {
	var asJSON, watch bool
	var ca, cert, key string
	cmd := &cobra.Command{
		Use:   "health ADDRESS",
		Short: "Ask a guest whether it is healthy",
		Long: `Ask a guest's health endpoint. ADDRESS is vsock://CID:PORT (port 9080),
http://HOST:PORT or https://HOST:PORT.

Exit status: 0 ready, 1 reached but not ready, 2 unreachable.`,
		Example: `  hpcrctl health vsock://7:9080
  hpcrctl health http://127.0.0.1:9080 --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, base, err := healthClient(args[0], ca, cert, key)
			if err != nil {
				return usage("%w", err)
			}
			for {
				err := askHealth(cmd, client, base, asJSON)
				if !watch {
					return err
				}
				var exit *exitError
				if errors.As(err, &exit) && exit.err != nil {
					fmt.Fprintln(cmd.ErrOrStderr(), "hpcrctl:", exit.err)
				}
				select {
				case <-cmd.Context().Done():
					return err
				case <-time.After(time.Second):
				}
			}
		},
	}
	f := cmd.Flags()
	f.BoolVar(&asJSON, "json", false, "one JSON object on stdout")
	f.BoolVar(&watch, "watch", false, "ask every second until interrupted")
	f.StringVar(&ca, "tls-ca", "", "CA certificate of the guest's identity (https)")
	f.StringVar(&cert, "cert", "", "client certificate (https)")
	f.StringVar(&key, "key", "", "client key (https)")
	return cmd
}

func askHealth(cmd *cobra.Command, client *http.Client, base string, asJSON bool) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/healthz", nil)
	if err != nil {
		return usage("%w", err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return usage("the guest is not reached: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxHealth))
	if err != nil {
		return usage("the guest's answer breaks off: %w", err)
	}
	var s status
	if err := json.Unmarshal(body, &s); err != nil || s.Schema != 1 {
		return usage("what answers there is no hpcr guest (HTTP status %d)", resp.StatusCode)
	}
	if asJSON {
		b, err := json.Marshal(s)
		if err != nil {
			return err
		}
		if err := emit(cmd, append(b, '\n')); err != nil {
			return err
		}
	} else {
		fmt.Fprintln(cmd.OutOrStdout(), s.sentence())
	}
	if !s.Ready {
		return &exitError{code: 1}
	}
	return nil
}

func (s status) sentence() string {
	word := "not ready"
	if s.Ready {
		word = "ready"
	}
	text := fmt.Sprintf("%s, phase %q, %s image, up %d s", word, s.Phase, s.Flavour, s.UptimeSeconds)
	if s.Code != "" {
		text += fmt.Sprintf(", code %q", s.Code)
	}
	return text
}

// healthClient makes a client for an address, and the base of its URLs.
func healthClient(address, ca, cert, key string) (*http.Client, string, error) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Path != "" && u.Path != "/" {
		return nil, "", errors.New("ADDRESS is vsock://CID:PORT, http://HOST:PORT or https://HOST:PORT")
	}
	t := &http.Transport{DisableKeepAlives: true}
	client := &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	switch u.Scheme {
	case "http":
	case "https":
		t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS13}
		if err := identify(t.TLSClientConfig, ca, cert, key); err != nil {
			return nil, "", err
		}
	case "vsock":
		cid, err1 := strconv.ParseUint(u.Hostname(), 10, 32)
		port, err2 := strconv.ParseUint(u.Port(), 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			return nil, "", fmt.Errorf("vsock://CID:PORT: %w", err)
		}
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialVsock(ctx, uint32(cid), uint32(port))
		}
		return client, "http://guest", nil
	default:
		return nil, "", fmt.Errorf("no way to reach %q", u.Scheme)
	}
	return client, u.Scheme + "://" + u.Host, nil
}

func identify(c *tls.Config, ca, cert, key string) error {
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return err
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return fmt.Errorf("%s holds no certificate", ca)
		}
	}
	if (cert == "") != (key == "") {
		return errors.New("--cert and --key belong together")
	}
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return err
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return nil
}
