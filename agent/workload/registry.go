package workload

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"

	"hpcr/agent/secret"
	"hpcr/contract/trust"
)

// Auth is one registry's credentials. The caller owns and wipes the secrets,
// after the images are pulled; the registry client holds copies of its own.
type Auth struct {
	Host               string // "registry.example.com:5000"; "docker.io" for Docker Hub
	Username, Password *secret.Secret
}

const (
	hub     = "docker.io"
	hubHost = "registry-1.docker.io"
)

var errPlain = errors.New("not https")

// onlyTLS refuses every request that would leave in clear: a registry's own
// answers name the token server and where blobs lie.
type onlyTLS struct{ next http.RoundTripper }

func (o onlyTLS) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" {
		return nil, errPlain
	}
	return o.next.RoundTrip(r)
}

func (o onlyTLS) CloseIdleConnections() {
	if c, ok := o.next.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// registryClient is the one HTTP client of all pulls. It reads no proxy
// settings: the environment is not the contract's.
func registryClient(conf *tls.Config, stall time.Duration) *http.Client {
	return &http.Client{Transport: unstalled{limit: stall, next: onlyTLS{&http.Transport{
		DialContext:           (&net.Dialer{Timeout: 15 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:       conf,
		ForceAttemptHTTP2:     true,
		MaxIdleConnsPerHost:   8,
		IdleConnTimeout:       30 * time.Second,
		TLSHandshakeTimeout:   15 * time.Second,
		ResponseHeaderTimeout: 30 * time.Second,
	}}}}
}

// registries is how this machine speaks to registries, and to the servers that
// hold their signatures.
type registries struct {
	client    *http.Client
	hosts     docker.RegistryHosts
	resolver  remotes.Resolver
	lookaside map[string]string // registry → address
}

// newRegistries speaks the registry protocol with the contract's credentials,
// each only to the host that it belongs to.
func newRegistries(client *http.Client, auths []Auth, lookaside map[string]string) *registries {
	hosts := docker.ConfigureDefaultRegistries(
		docker.WithClient(client),
		docker.WithPlainHTTP(func(string) (bool, error) { return false, nil }),
		docker.WithAuthorizer(docker.NewDockerAuthorizer(
			docker.WithAuthClient(client), docker.WithAuthCreds(func(host string) (string, string, error) {
				user, password := credentials(auths, host)
				return user, password, nil
			}))),
	)
	return &registries{client, hosts, docker.NewResolver(docker.ResolverOptions{Hosts: hosts}), lookaside}
}

// credentials are those of one host, "" and "" without any.
func credentials(auths []Auth, host string) (user, password string) {
	if host == hubHost {
		host = hub
	}
	for _, a := range auths {
		if strings.EqualFold(a.Host, host) {
			return string(a.Username.Bytes()), string(a.Password.Bytes())
		}
	}
	return "", ""
}

// pullCause says in one sentence for the host's eyes why an image could not
// be had, and whether trying again may help.
func pullCause(err error) (detail string, retry bool) {
	var (
		authority x509.UnknownAuthorityError
		hostname  x509.HostnameError
		invalid   x509.CertificateInvalidError
		status    remoteerrors.ErrUnexpectedStatus
		header    tls.RecordHeaderError
		network   net.Error
		untrusted *trust.Error
		text      = err.Error()
	)
	switch {
	case errors.As(err, &untrusted):
		return untrusted.Detail, false
	case errors.Is(err, errDiskBytes), strings.Contains(text, errDiskBytes.Error()):
		return "the disk with images holds other bytes than the digest promises: nothing of them is used, make the disk again", false
	case errors.Is(err, errDiskSilent), strings.Contains(text, errDiskSilent.Error()):
		return "the disk with images does not answer, or cannot be read: check it on the host", false
	case errors.Is(err, errNotOnDisk) && (errors.As(err, &network) || isDial(err)):
		return "the disk with images does not hold it, and the registry cannot be reached: pack it with hpcrctl images pack", true
	case errors.Is(err, errNoTag):
		return "the registry does not know this tag: check the image's name and tag", false
	case errors.As(err, &authority):
		return "the registry's certificate comes from an unknown authority: give its CA certificate in env.cacerts", false
	case errors.As(err, &hostname):
		return "the registry's certificate is for another host name: correct the image's name or the certificate", false
	case errors.As(err, &invalid):
		return "the registry's certificate is not valid now, or not valid for a server: renew it", false
	case errors.As(err, &header), strings.Contains(text, "HTTP response to HTTPS client"), errors.Is(err, errPlain):
		return "the registry does not speak TLS, or sends its users on without it: only TLS is used", false
	case errors.Is(err, docker.ErrInvalidAuthorization), errors.As(err, &status) && (status.StatusCode == 401 || status.StatusCode == 403),
		strings.Contains(text, "401 Unauthorized"), strings.Contains(text, "403 Forbidden"):
		return "the registry refused access: check the user name and password in auths", false
	case errors.As(err, &status) && (status.StatusCode == http.StatusTooManyRequests || status.StatusCode >= 500):
		return "the registry is busy or broken: try again, or use another registry", true
	case strings.Contains(text, "no match for platform"):
		return "the image has no build for this machine's architecture: give the digest of one that has", false
	case errors.Is(err, errOtherDigest), errors.Is(err, errEndless), strings.Contains(text, "read past expected size"), strings.Contains(text, "unexpected commit digest"), strings.Contains(text, "failed size validation"), strings.Contains(text, "unexpected commit size"):
		return "the registry delivered other bytes than the digest promises: nothing of them is used", false
	case strings.Contains(text, "short read"), strings.Contains(text, "unexpected EOF"), strings.Contains(text, "connection reset"):
		return "the registry broke off in the middle: try again, or use another registry", true
	case errdefs.IsNotFound(err):
		return "the registry does not know this digest: check the image's name and digest", false
	case errors.Is(err, errNoRoom), strings.Contains(text, errNoRoom.Error()), outOfSpace(err), strings.Contains(text, "no space left"):
		return "the image does not fit into the guest's store: attach a scratch disk or a larger one, give the guest more memory, or make the image smaller", false
	case errors.Is(err, context.DeadlineExceeded) && !isDial(err):
		return "the pull took too long: check the way to the registry", false
	case errors.As(err, &network), isDial(err):
		return "the registry cannot be reached: check its name, its port and the guest's network", true
	}
	return "the image could not be pulled or unpacked: the guest's log has the cause", false
}

func isDial(err error) bool {
	var op *net.OpError
	var dns *net.DNSError
	return errors.As(err, &dns) || (errors.As(err, &op) && op.Op == "dial")
}

var errOtherDigest = fmt.Errorf("the registry's manifest has another digest")
