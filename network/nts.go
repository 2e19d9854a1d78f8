package network

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/jacobsa/crypto/siv"
)

// NTS asks time servers that prove who they are (RFC 8915): keys and cookies by
// TLS, then NTP that nobody on the way can forge. One AEAD is offered,
// AES-SIV-CMAC-256, which every server has.
type NTS struct {
	trust *tls.Config // of RegistryConfig
	now   func() time.Time

	mu       sync.Mutex
	sessions map[string]*ntsSession // by server
}

// ntsSession is what one key exchange gave. It belongs to one question at a
// time.
type ntsSession struct {
	at       string // of the NTP server
	c2s, s2c []byte
	cookies  [][]byte
	from, to time.Time // for which the server's chain is valid
}

// Numbers of RFC 8915 sections 4.1, 5 and 7, and our bounds.
const (
	ntskePort    = "4460"
	ntskeALPN    = "ntske/1"
	ntskeLimit   = 16 << 10 // octets of an answer
	ntsCookies   = 8        // that are kept
	ntsCookieMax = 1 << 10  // octets

	recordEnd, recordNextProtocol, recordError, recordWarning, recordAEAD, recordCookie, recordServer, recordPort = 0, 1, 2, 3, 4, 5, 6, 7
	recordCritical                                                                                                = 0x8000

	aeadSIVCMAC256 = 15
	ntsKeySize     = 32
	ntsNonceSize   = 16

	fieldUniqueID, fieldCookie, fieldPlaceholder, fieldAuthenticator = 0x0104, 0x0204, 0x0304, 0x0404
	ntpHeader                                                        = 48 // octets
)

var (
	errNTSAnswer = errors.New("the answer is not authentic")
	errNTSCookie = errors.New("the server does not know its cookie any more")
	ntsHost      = regexp.MustCompile(`^[A-Za-z0-9.:-]{1,253}$`)
)

// NewNTS trusts what trust does; now is the clock.
func NewNTS(trust *tls.Config, now func() time.Time) *NTS {
	return &NTS{trust: trust, now: now, sessions: map[string]*ntsSession{}}
}

// Ask is AskTime of servers that are asked by NTS.
func (n *NTS) Ask(ctx context.Context, servers []string, floor time.Time) (Reading, error) {
	return askAll(servers, func(s string) (*sample, error) { return n.askServer(ctx, s, floor) })
}

func (n *NTS) askServer(ctx context.Context, server string, floor time.Time) (*sample, error) {
	n.mu.Lock()
	s := n.sessions[server]
	delete(n.sessions, server)
	n.mu.Unlock()
	var last error
	for range timeTries {
		if s == nil || len(s.cookies) == 0 {
			if s, last = n.exchangeKeys(ctx, server, floor); last != nil {
				return nil, fmt.Errorf("ask a time server for keys: %w", last)
			}
		}
		x := &ntsQuestion{session: s}
		r, err := queryNTP(ctx, s.at, x)
		if err == nil {
			var out *sample
			if out, err = judge(r, floor); err == nil {
				// A chain that is not valid now was judged by a time of its own.
				if r.Time.Before(s.from) || r.Time.After(s.to) {
					return nil, errors.New("the server's time is not one at which its certificate is valid")
				}
				n.mu.Lock()
				n.sessions[server] = s
				n.mu.Unlock()
				return out, nil
			}
		}
		if x.forgotten {
			err, s = errNTSCookie, nil
		}
		last = err
		if !pause(ctx, 100*time.Millisecond) {
			break
		}
	}
	return nil, fmt.Errorf("ask a time server: %w", last)
}

// exchangeKeys runs NTS-KE. Who does not know the time cannot tell a
// certificate that has ended: a chain that is sound but for its dates counts
// with a time of its own, not before floor, and the server's answer must then
// lie within its dates (RFC 8915 section 8.5).
func (n *NTS) exchangeKeys(ctx context.Context, server string, floor time.Time) (*ntsSession, error) {
	s, err := n.exchangeKeysAt(ctx, server, n.now())
	var invalid x509.CertificateInvalidError
	if !errors.As(err, &invalid) || invalid.Reason != x509.Expired {
		return s, err
	}
	at := invalid.Cert.NotBefore.Add(time.Second)
	if at.Before(floor) {
		at = floor
	}
	return n.exchangeKeysAt(ctx, server, at)
}

func (n *NTS) exchangeKeysAt(ctx context.Context, server string, at time.Time) (*ntsSession, error) {
	ctx, stop := context.WithTimeout(ctx, handshakeLimit)
	defer stop()
	raw, err := dial(ctx, net.JoinHostPort(server, ntskePort))
	if err != nil {
		return nil, err
	}
	c := n.trust.Clone()
	c.ServerName, c.NextProtos, c.MinVersion, c.Time = server, []string{ntskeALPN}, tls.VersionTLS13, func() time.Time { return at }
	conn := tls.Client(raw, c)
	defer conn.Close()
	if end, ok := ctx.Deadline(); ok {
		if err := raw.SetDeadline(end); err != nil {
			return nil, err
		}
	}
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	state := conn.ConnectionState()
	if state.NegotiatedProtocol != ntskeALPN {
		return nil, errors.New("the server speaks no NTS")
	}
	question := slices.Concat(ntsRecord(recordCritical|recordNextProtocol, []byte{0, 0}), ntsRecord(recordAEAD, []byte{0, aeadSIVCMAC256}), ntsRecord(recordCritical|recordEnd, nil))
	if _, err := conn.Write(question); err != nil {
		return nil, err
	}
	s, err := readKeyExchange(io.LimitReader(conn, ntskeLimit), server)
	if err != nil {
		return nil, err
	}
	for direction, key := range []*[]byte{&s.c2s, &s.s2c} {
		if *key, err = state.ExportKeyingMaterial("EXPORTER-network-time-security", []byte{0, 0, 0, aeadSIVCMAC256, byte(direction)}, ntsKeySize); err != nil {
			return nil, err
		}
	}
	for i, cert := range state.VerifiedChains[0] {
		if i == 0 || cert.NotBefore.After(s.from) {
			s.from = cert.NotBefore
		}
		if i == 0 || cert.NotAfter.Before(s.to) {
			s.to = cert.NotAfter
		}
	}
	return s, nil
}

func ntsRecord(kind uint16, body []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, kind)
	return append(binary.BigEndian.AppendUint16(b, uint16(len(body))), body...)
}

// readKeyExchange reads the records of an answer (RFC 8915 section 4).
func readKeyExchange(r io.Reader, server string) (*ntsSession, error) {
	s, host, port := &ntsSession{}, server, "123"
	var protocol, aead bool
	for {
		var head [4]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return nil, fmt.Errorf("the server's answer ends early: %w", err)
		}
		kind := binary.BigEndian.Uint16(head[:])
		body := make([]byte, binary.BigEndian.Uint16(head[2:]))
		if _, err := io.ReadFull(r, body); err != nil {
			return nil, fmt.Errorf("the server's answer ends early: %w", err)
		}
		switch kind &^ recordCritical {
		case recordEnd:
			if !protocol || !aead || len(s.cookies) == 0 {
				return nil, errors.New("the server offers no NTPv4 with AES-SIV-CMAC-256")
			}
			s.at = net.JoinHostPort(host, port)
			return s, nil
		case recordNextProtocol:
			protocol = bytes.Equal(body, []byte{0, 0})
		case recordAEAD:
			aead = bytes.Equal(body, []byte{0, aeadSIVCMAC256})
		case recordCookie:
			if len(body) > 0 && len(body) <= ntsCookieMax && len(s.cookies) < ntsCookies {
				s.cookies = append(s.cookies, body)
			}
		case recordServer:
			if !ntsHost.Match(body) {
				return nil, errors.New("the server names another one by no name")
			}
			host = string(body)
		case recordPort:
			if len(body) != 2 || binary.BigEndian.Uint16(body) == 0 {
				return nil, errors.New("the server names no port")
			}
			port = strconv.Itoa(int(binary.BigEndian.Uint16(body)))
		case recordError:
			return nil, errors.New("the server refuses")
		case recordWarning:
		default:
			if kind&recordCritical != 0 {
				return nil, errors.New("the server wants what is not known here")
			}
		}
	}
}

// ntsQuestion is an ntp.Extension: one question and its answer.
type ntsQuestion struct {
	session   *ntsSession
	id        [32]byte
	forgotten bool // the server says so: its keys are others now
}

// ProcessQuery uses a cookie up, and asks for as many as are missing.
func (q *ntsQuestion) ProcessQuery(buf *bytes.Buffer) error {
	s := q.session
	if len(s.cookies) == 0 {
		return errNTSCookie
	}
	cookie := s.cookies[0]
	s.cookies = s.cookies[1:]
	if _, err := rand.Read(q.id[:]); err != nil {
		return err
	}
	appendField(buf, fieldUniqueID, q.id[:])
	appendField(buf, fieldCookie, cookie)
	for range min(ntsCookies-1-len(s.cookies), 3) { // more would not fit beside what some networks pass
		appendField(buf, fieldPlaceholder, make([]byte, len(cookie)))
	}
	nonce := make([]byte, ntsNonceSize)
	if _, err := rand.Read(nonce); err != nil {
		return err
	}
	sealed, err := siv.Encrypt(nil, s.c2s, nil, [][]byte{buf.Bytes(), nonce})
	if err != nil {
		return err
	}
	body := binary.BigEndian.AppendUint16(nil, uint16(len(nonce)))
	body = binary.BigEndian.AppendUint16(body, uint16(len(sealed)))
	appendField(buf, fieldAuthenticator, slices.Concat(body, nonce, sealed))
	return nil
}

// appendField pads to four octets (RFC 7822).
func appendField(buf *bytes.Buffer, kind uint16, body []byte) {
	size := 4 + (len(body)+3)/4*4
	b := binary.BigEndian.AppendUint16(nil, kind)
	b = append(binary.BigEndian.AppendUint16(b, uint16(size)), body...)
	buf.Write(append(b, make([]byte, size-len(b))...))
}

// ProcessResponse wants the question's number and the server's seal over it.
func (q *ntsQuestion) ProcessResponse(b []byte) error {
	asked := false
	sealed := false
	err := eachField(b, ntpHeader, func(kind uint16, at int, body []byte) (bool, error) {
		switch kind {
		case fieldUniqueID:
			if !bytes.Equal(body, q.id[:]) {
				return false, errNTSAnswer
			}
			asked = true
		case fieldAuthenticator:
			if !asked {
				return false, errNTSAnswer
			}
			sealed = true // what follows is not
			return true, q.open(b[:at], body)
		}
		return false, nil
	})
	if err == nil && !sealed {
		err = errNTSAnswer
	}
	// "NTSN" is not sealed, for there is no key to do it with.
	q.forgotten = err != nil && asked && len(b) >= ntpHeader && b[1] == 0 && string(b[12:16]) == "NTSN"
	return err
}

// open unseals what the server adds: cookies.
func (q *ntsQuestion) open(ad, body []byte) error {
	if len(body) < 4 {
		return errNTSAnswer
	}
	nonce, sealed := int(binary.BigEndian.Uint16(body)), int(binary.BigEndian.Uint16(body[2:]))
	body = body[4:]
	padded := (nonce + 3) / 4 * 4
	if nonce == 0 || padded > len(body) || sealed > len(body)-padded {
		return errNTSAnswer
	}
	plain, err := siv.Decrypt(q.session.s2c, body[padded:padded+sealed], [][]byte{ad, body[:nonce]})
	if err != nil {
		return errNTSAnswer
	}
	return eachField(plain, 0, func(kind uint16, _ int, body []byte) (bool, error) {
		if s := q.session; kind == fieldCookie && len(body) <= ntsCookieMax && len(s.cookies) < ntsCookies {
			s.cookies = append(s.cookies, bytes.Clone(body))
		}
		return false, nil
	})
}

// eachField goes over extension fields until one is the last.
func eachField(b []byte, at int, f func(kind uint16, at int, body []byte) (last bool, err error)) error {
	for at < len(b) {
		if len(b)-at < 4 {
			return errNTSAnswer
		}
		kind, size := binary.BigEndian.Uint16(b[at:]), int(binary.BigEndian.Uint16(b[at+2:]))
		if size < 4 || size%4 != 0 || size > len(b)-at {
			return errNTSAnswer
		}
		if last, err := f(kind, at, b[at+4:at+size]); last || err != nil {
			return err
		}
		at += size
	}
	return nil
}
