package logship

import (
	"crypto/tls"
	"strings"

	"hpcr/agent/hpl"
	"hpcr/agent/secret"
)

// DNA is /env/logging/logDNA: syslog over TLS without a client certificate, the
// ingestion key in the structured data of each message, as LogDNA's rsyslog
// template has it. Whether the service knows the key cannot be seen: syslog has
// no answer.
type DNA struct {
	Key  *secret.Secret // the caller's; a copy is kept until Close
	Tags []string
	TLS  *tls.Config // whom to trust; the name is set here
}

func (d *DNA) tls(host string) (*tls.Config, error) {
	if d.Key == nil || len(d.Key.Bytes()) == 0 {
		return nil, hpl.New("HPL01004E", "/env/logging/logDNA/ingestionKey", "give the instance's ingestion key")
	}
	c := d.TLS.Clone()
	c.ServerName = host
	return c, nil
}

// mark is the element of each message, in locked memory, and what wipes it.
func (d *DNA) mark() ([]byte, func()) {
	if d.Key == nil {
		return nil, func() {}
	}
	b := append([]byte(`[logdna@48950 key="`), d.Key.Bytes()...)
	b = append(b, '"')
	if len(d.Tags) > 0 {
		b = appendParam(b, "tags", strings.Join(d.Tags, ","))
	}
	s := secret.New(append(b, ']'))
	return s.Bytes(), s.Wipe
}
