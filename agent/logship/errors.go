package logship

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"

	"hpcr/agent/hpl"
	"hpcr/network"
)

const at = "/env/logging/syslog"

// tlsConfig maps what is wrong with the contract's PEM fields to their codes.
func tlsConfig(c Config) (*tls.Config, error) {
	if len(c.CA) == 0 {
		return nil, hpl.New("HPL01007E", at+"/server", "give the certificate of the authority that signed the log server's certificate")
	}
	if _, err := network.ParseCertificates(c.CA); err != nil {
		if errors.Is(err, network.ErrNoPEM) {
			return nil, hpl.Wrap(err, "HPL01005E", at+"/server", "this must be PEM: -----BEGIN CERTIFICATE-----")
		}
		return nil, hpl.Wrap(err, "HPL01007E", at+"/server", "this must hold one or more X.509 certificates in PEM, none of them damaged")
	}
	if len(c.Cert) == 0 {
		return nil, hpl.New("HPL01008E", at+"/cert", "give the client certificate for the log server")
	}
	if _, err := network.ParseCertificates(c.Cert); err != nil {
		if errors.Is(err, network.ErrNoPEM) {
			return nil, hpl.Wrap(err, "HPL01005E", at+"/cert", "this must be PEM: -----BEGIN CERTIFICATE-----")
		}
		return nil, hpl.Wrap(err, "HPL01008E", at+"/cert", "this must hold the X.509 client certificate in PEM, undamaged")
	}
	config, err := network.ClientConfig(c.CA, c.Cert, c.Key, c.Host, c.Now)
	switch {
	case err == nil:
		return config, nil
	case errors.Is(err, network.ErrNoKey):
		return nil, hpl.Wrap(err, "HPL01009E", at+"/key", "give the private key of the client certificate")
	case errors.Is(err, network.ErrNoPEM):
		return nil, hpl.Wrap(err, "HPL01005E", at+"/key", "this must be PEM: -----BEGIN PRIVATE KEY-----")
	case errors.Is(err, network.ErrKeyType):
		return nil, hpl.Wrap(err, "HPL01006E", at+"/key", "take an unencrypted RSA, EC or Ed25519 key in PKCS#8: openssl pkcs8 -topk8 -nocrypt")
	case errors.Is(err, network.ErrKeyMismatch):
		return nil, hpl.Wrap(err, "HPL01011E", at+"/key", "this private key does not belong to the client certificate in cert")
	default:
		return nil, hpl.Wrap(err, "HPL01011E", at+"/hostname", "the TLS settings for the log server cannot be used")
	}
}

type dialError struct{ err error }

func (e *dialError) Error() string { return "connect: " + e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// refusedError is an end of the connection right after our side of the
// handshake.
type refusedError struct{ err error }

func (e *refusedError) Error() string { return "after the handshake: " + e.err.Error() }
func (e *refusedError) Unwrap() error { return e.err }

// probeError is HPL01011E with the class of the cause.
func probeError(err error) error {
	return hpl.Wrap(err, "HPL01011E", at+"/hostname", plainCause(err))
}

// dnaError is HPL01004E with the class of the cause.
func dnaError(err error) error {
	return hpl.Wrap(err, "HPL01004E", "/env/logging/logDNA/hostname", plainCause(err))
}

const cloudAt = "/env/logging/logRouter"

// cloudError is HPL01004E with the field that is probably wrong.
func cloudError(err error) error {
	var (
		st      *stageError
		refused *batchRefused
		dns     *net.DNSError
		at      = cloudAt + "/hostname"
		what    = "the log service"
	)
	switch {
	case errors.As(err, &refused):
		return hpl.Wrap(err, "HPL01004E", at, fmt.Sprintf("the log service does not accept messages in this form (HTTP status %d); check that this is the ingress host of IBM Cloud Logs", refused.status))
	case errors.As(err, &st) && st.stage == stageToken:
		at, what = cloudAt+"/iamApiKey", "IAM"
	}
	switch {
	case st == nil:
		return hpl.Wrap(err, "HPL01004E", at, "the log service did not answer in time")
	case st.status == 400 && st.stage == stageToken:
		return hpl.Wrap(err, "HPL01004E", at, "IAM does not know this API key; give one that exists and is not locked")
	case st.status == 401, st.status == 403:
		return hpl.Wrap(err, "HPL01004E", cloudAt+"/iamApiKey", what+" refuses the API key; its owner must have the role Sender for the log service")
	case st.status == 404:
		return hpl.Wrap(err, "HPL01004E", at, what+" has no such address; check that the host name is the ingress host of IBM Cloud Logs")
	case st.status != 0:
		return hpl.Wrap(err, "HPL01004E", at, fmt.Sprintf("%s answers with HTTP status %d; try again later", what, st.status))
	case errors.Is(err, errToken):
		return hpl.Wrap(err, "HPL01004E", at, "IAM's answer holds no token; check x-hpcr.logging.iam")
	case errors.As(err, &dns):
		return hpl.Wrap(err, "HPL01004E", at, "the name of "+what+" cannot be resolved; check it and the name servers of the guest's network")
	}
	cause := plainCause(err)
	if err := st.err; errors.As(err, new(*net.OpError)) && !errors.As(err, new(*tls.CertificateVerificationError)) {
		cause = "it cannot be reached; check its port, and the way through firewalls"
	} else if errors.As(err, new(x509.UnknownAuthorityError)) {
		cause = "its certificate is by an authority that is neither the system's nor in cacerts"
	}
	return hpl.Wrap(err, "HPL01004E", at, what+" could not be used: "+strings.ReplaceAll(cause, "the log server", what))
}

func plainCause(err error) string {
	var (
		dns       *net.DNSError
		dial      *dialError
		refused   *refusedError
		remote    *net.OpError
		authority x509.UnknownAuthorityError
		host      x509.HostnameError
		invalid   x509.CertificateInvalidError
		weak      *network.WeakPeerError
		record    tls.RecordHeaderError
	)
	switch {
	case errors.As(err, &dns):
		return "the log server's name cannot be resolved; check the name and the name servers of the guest's network"
	case errors.As(err, &dial):
		return "the log server cannot be reached; check that it runs, its port, and the way through firewalls"
	case errors.As(err, &authority):
		return "the log server's certificate is by another authority than the one in server"
	case errors.As(err, &host):
		if host.Certificate != nil && len(host.Certificate.DNSNames)+len(host.Certificate.IPAddresses) == 0 {
			return "the log server's certificate has no subject alternative name; it must name the host (the common name does not count)"
		}
		return "the log server's certificate is for other names; its subject alternative names must hold this host name or IP address"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "the log server's certificate has expired or is not valid yet; renew it, or correct the host's clock"
	case errors.As(err, &invalid):
		return "the log server's certificate may not be used for a TLS server; check its key usages and its chain"
	case errors.As(err, &weak):
		return "the log server's certificate is too weak; RSA needs 2048 bits"
	case errors.As(err, &record):
		return "the log server does not speak TLS on this port; the usual port is 6514"
	case errors.As(err, &remote) && remote.Op == "remote error":
		return alertCause(remote.Err.Error())
	case errors.As(err, &refused):
		return "the log server closed the connection after the handshake: it probably refuses our client certificate; it must be signed by the authority that the server trusts"
	case errors.Is(err, context.DeadlineExceeded):
		return "the log server did not answer in time"
	default:
		return "the TLS handshake with the log server failed; it must offer TLS 1.3, or 1.2 with ECDHE and AES-GCM or ChaCha20"
	}
}

// alertCause: the texts are crypto/tls's, one for each alert number.
func alertCause(alert string) string {
	for _, word := range []string{"certificate", "unknown authority", "unknown certificate", "access denied", "decrypt error"} {
		if strings.Contains(alert, word) {
			return "the log server refused our client certificate; it must be valid and signed by an authority that the server trusts"
		}
	}
	return "the log server refused the TLS handshake; it must offer TLS 1.3, or 1.2 with ECDHE and AES-GCM or ChaCha20"
}
