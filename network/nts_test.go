package network

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jacobsa/crypto/siv"
)

// TestNTS: chronyd is the server; what comes from another, from somebody on the
// way, or at a time at which its certificate does not hold, counts for nothing.
func TestNTS(t *testing.T) {
	c := wire(t, "isp", "eth0", "192.0.2.1/24")
	for _, a := range []string{"192.0.2.2/24", "192.0.2.3/24", "192.0.2.4/24", "192.0.2.5/24"} {
		ip(t, "-n isp addr add "+a+" dev out")
	}
	if _, err := up(t, Config{Links: []LinkConfig{{Name: "enc1", Addresses: nil, DHCP: false}}}, c); err != nil {
		t.Fatal(err)
	}
	ip(t, "addr add 192.0.2.10/24 dev enc1")
	p, other := newPKI(t), newPKI(t)
	p.issue("one", "IP:192.0.2.1", "serverAuth", 1)
	p.issue("two", "IP:192.0.2.2", "serverAuth", 1)
	other.issue("three", "IP:192.0.2.3", "serverAuth", 1)
	p.issue("four", "IP:192.0.2.4", "serverAuth", -1)
	p.issue("five", "IP:192.0.2.5", "serverAuth", 1)
	nts := func(p pki, name string) []string {
		return []string{"ntsserverkey " + p.file(name+".key"), "ntsservercert " + p.file(name+".crt"), "ntsprocesses 0"}
	}
	t.Run("servers", func(t *testing.T) {
		chrony(t, "isp", "192.0.2.1", 0, nts(p, "one")...)
		// Somebody on the way to the second adds an hour to what it says.
		chrony(t, "isp", "192.0.2.2", 0, nts(p, "two")...)
		lying(t, "192.0.2.2:124", "192.0.2.2:123")
		for _, rule := range []string{"add table ip liar", "add chain ip liar in { type nat hook prerouting priority -100; }", "add rule ip liar in ip daddr 192.0.2.2 udp dport 123 dnat to 192.0.2.2:124"} {
			run(t, "ip", append([]string{"netns", "exec", "isp", "nft"}, strings.Fields(rule)...)...)
		}
		chrony(t, "isp", "192.0.2.3", 0, nts(other, "three")...)
		chrony(t, "isp", "192.0.2.4", 0, nts(p, "four")...)
		chrony(t, "isp", "192.0.2.5", -72*time.Hour, nts(p, "five")...)

		trust, err := ClientConfig(p.read("ca.crt"), nil, nil, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		floor := time.Now().Add(-100 * 24 * time.Hour)
		now := time.Now()
		n := NewNTS(trust, func() time.Time { return now })
		var r Reading
		waitFor(t, "the server", func() bool {
			r, err = n.Ask(t.Context(), []string{"192.0.2.1"}, floor)
			return err == nil
		})
		if r.Agreed != 1 || r.Of != 1 || r.Offset.Abs() > time.Second {
			t.Errorf("%+v", r)
		}
		// Each answer brings the cookies for the next questions.
		keys := n.sessions["192.0.2.1"].c2s
		for range 2 * ntsCookies {
			if r, err = n.Ask(t.Context(), []string{"192.0.2.1"}, floor); err != nil {
				t.Fatal(err)
			}
		}
		if s := n.sessions["192.0.2.1"]; !bytes.Equal(s.c2s, keys) || len(s.cookies) != ntsCookies {
			t.Errorf("%d cookies are left, the keys are new: %v", len(s.cookies), !bytes.Equal(s.c2s, keys))
		}
		for server, says := range map[string]string{
			"192.0.2.2": "not authentic", "192.0.2.3": "unknown authority", "192.0.2.4": "has expired", "192.0.2.5": "at which its certificate is valid", "192.0.2.9": "",
		} {
			waitFor(t, server+" to start", func() bool {
				r, err = n.Ask(t.Context(), []string{server}, floor)
				return err == nil || strings.Contains(err.Error(), says)
			})
			if err == nil {
				t.Errorf("%s: %+v", server, r)
			}
		}
		if r, err := n.Ask(t.Context(), []string{"192.0.2.1"}, now.Add(time.Hour)); err == nil || r.Early != 1 {
			t.Errorf("a time before the floor: %+v, %v", r, err)
		}
		// A clock that is wrong by decades ends no certificate.
		for name, wrong := range map[string]time.Time{"behind": floor, "ahead": now.AddDate(70, 0, 0)} {
			now = wrong
			if r, err := NewNTS(trust, func() time.Time { return now }).Ask(t.Context(), []string{"192.0.2.1"}, floor); err != nil || r.Offset.Abs() > time.Second {
				t.Errorf("the clock is %s: %+v, %v", name, r, err)
			}
		}
		now = time.Now()
		// A server that was started anew knows its cookies no longer, and says so.
		n.sessions["192.0.2.1"].cookies = [][]byte{bytes.Repeat([]byte{7}, 100), n.sessions["192.0.2.1"].cookies[0]}
		if _, err := n.Ask(t.Context(), []string{"192.0.2.1"}, floor); err != nil || bytes.Equal(n.sessions["192.0.2.1"].c2s, keys) {
			t.Errorf("after its cookie is unknown: %v", err)
		}
	})
}

// lying passes NTP on and moves the time of the answers.
func lying(t *testing.T, at, to string) {
	t.Helper()
	if err := inNS(t, "isp", func() error {
		near, err := net.ListenPacket("udp4", at)
		if err != nil {
			return err
		}
		far, err := net.Dial("udp4", to)
		if err != nil {
			return err
		}
		t.Cleanup(func() { near.Close(); far.Close() })
		go func() {
			b := make([]byte, 2048)
			for {
				n, from, err := near.ReadFrom(b)
				if err != nil {
					return
				}
				if _, err = far.Write(b[:n]); err == nil {
					n, err = far.Read(b)
				}
				if err != nil || n < ntpHeader {
					continue // the client asks again
				}
				for _, stamp := range []int{32, 40} { // received, sent
					binary.BigEndian.PutUint32(b[stamp:], binary.BigEndian.Uint32(b[stamp:])+3600)
				}
				_, _ = near.WriteTo(b[:n], from) // as above
			}
		}()
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// RFC 5297 appendix A.1, also on big-endian machines.
func TestSIV(t *testing.T) {
	b := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	key, ad, plain := b("fffefdfcfbfaf9f8f7f6f5f4f3f2f1f0f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"), b("101112131415161718191a1b1c1d1e1f2021222324252627"), b("112233445566778899aabbccddee")
	want := b("85632d07c6e8f37f950acd320a2ecc9340c02b9690c4dc04daef7f6afe5c")
	got, err := siv.Encrypt(nil, key, plain, [][]byte{ad})
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%x, %v", got, err)
	}
	if p, err := siv.Decrypt(key, want, [][]byte{ad}); err != nil || !bytes.Equal(p, plain) {
		t.Errorf("%x, %v", p, err)
	}
	want[3] ^= 1
	if _, err := siv.Decrypt(key, want, [][]byte{ad}); err == nil {
		t.Error("a forgery opens")
	}
}

// FuzzNTS: whatever a server says, its records and its packets are bounded, and
// no packet without its seal counts.
func FuzzNTS(f *testing.F) {
	good := append(ntsRecord(recordCritical|recordNextProtocol, []byte{0, 0}), ntsRecord(recordAEAD, []byte{0, aeadSIVCMAC256})...)
	good = append(append(good, ntsRecord(recordCookie, bytes.Repeat([]byte{1}, 100))...), ntsRecord(recordServer, []byte("a.example"))...)
	f.Add(append(append(good, ntsRecord(recordPort, []byte{0, 123})...), ntsRecord(recordCritical|recordEnd, nil)...))
	f.Add(append(good, ntsRecord(recordCritical|9, nil)...))
	packet := bytes.NewBuffer(make([]byte, ntpHeader))
	appendField(packet, fieldUniqueID, make([]byte, 32))
	appendField(packet, fieldAuthenticator, append([]byte{0, 16, 0, 16}, make([]byte, 32)...))
	f.Add(packet.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		if s, err := readKeyExchange(bytes.NewReader(data), "a.example"); err == nil {
			if len(s.cookies) == 0 || len(s.cookies) > ntsCookies || s.at == "" {
				t.Errorf("%+v", s)
			}
		}
		q := &ntsQuestion{session: &ntsSession{s2c: make([]byte, ntsKeySize)}}
		if err := q.ProcessResponse(data); err == nil {
			t.Error("an answer that nobody sealed")
		} else if !errors.Is(err, errNTSAnswer) {
			t.Error(err)
		}
	})
}
