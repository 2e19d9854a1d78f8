//go:build vm

package test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"hpcr/test/peers"
	"hpcr/test/scenario"
)

var tlsScenarios = []scenario.Scenario{{
	Name:     "plain text in containers is mutual TLS outside, both ways",
	Attacker: "a host that calls the ports without a certificate, with one of its own authority, and in plain text",
	Claim: "curl reaches the page with a certificate of the authority only; the key of the guest's own identity is the one that its signed record names; " +
		"what a container sends in plain text to a name of its project, a server on the host gets as mutual TLS with the guest's certificate; " +
		"the management listener answers health and metrics to its authority's clients alone, who renew a certificate of the same key; the page's own port is closed.",
	Tier:  scenario.Core,
	Archs: []string{scenario.AMD64},
	Cost:  35 * time.Second,
	Run:   tlsBothWays,
}, {
	Name:     "plain text in containers is mutual TLS outside on s390x",
	Attacker: "as on amd64",
	Claim:    "As on amd64.",
	Tier:     scenario.Full,
	Archs:    []string{scenario.S390X},
	Cost:     60 * time.Second,
	Run:      tlsBothWays,
}}

func tlsBothWays(t *testing.T, lab *scenario.Lab) {
	type m = map[string]any
	const site, upstream = "shop.example.com", "db.example.com"
	authority := func(name string) *peers.CA {
		ca, err := peers.NewCA(name)
		if err != nil {
			t.Fatal(err)
		}
		return ca
	}
	ca, stranger := authority("canaryauthority"), authority("the host's")
	save := func(name string, id peers.Identity, err error) (crt, key string) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return lab.File(t, name+".crt", id.Cert), lab.File(t, name+".key", id.Key)
	}
	id, err := ca.Server("site", site, peers.Loopback)
	save("site", id, err)
	guest, err := ca.Client("canaryguest")
	save("guest", guest, err)
	db, err := ca.Server("db", upstream)
	dbCrt, dbKey := save("db", db, err)
	client, err := ca.Client("client")
	clientCrt, clientKey := save("client", client, err)
	wrong, err := stranger.Client("client")
	wrongCrt, wrongKey := save("wrong", wrong, err)
	trust := lab.File(t, "authority.crt", ca.PEM)

	port, err := peers.ClosedPort()
	if err != nil {
		t.Fatal(err)
	}
	serve := exec.CommandContext(t.Context(), "openssl", "s_server", "-quiet", "-accept", fmt.Sprintf("%s:%d", peers.Loopback, port), "-cert", dbCrt, "-key", dbKey,
		"-CAfile", trust, "-Verify", "1", "-verify_return_error", "-www")
	serve.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := serve.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = serve.Process.Kill(), serve.Wait() }() // it has served

	c := lab.Contract(t)
	c.Workload.Volumes, c.Env.Volumes = nil, nil
	c.Workload.Compose = lab.Compose(t, fmt.Sprintf(`services:
  canaryweb:
    image: %[1]s
    environment: {DATA: /tmp/data, GREETING: over TLS}
  canaryrecord:
    image: %[1]s
    entrypoint: [/bin/busybox, httpd, -f, -p, "8080", -h, /var/hyperprotect]
    volumes: ["/var/hyperprotect/:/var/hyperprotect/:ro"]
  canaryclient:
    image: %[1]s
    entrypoint: [/bin/sh, -c, "until page=$$(printf 'GET / HTTP/1.0\\r\\n\\r\\n' | /bin/busybox nc -w 5 canarydb 5432 | /bin/busybox grep 'Subject: .*CN'); do /bin/busybox sleep 1; done; echo \"client: $$page\"; exec /bin/busybox sleep 1000000"]
    stop_grace_period: 1s
    networks: [inner]
networks: {inner: {internal: true}}
`, lab.Web(t)))
	c.Workload.XHPCR = m{"tls": m{
		"ingress": []m{
			{"name": "canarysite", "listen": 8443, "to": "canaryweb:8080", "identity": "canaryid", "clientAuthority": "canaryca", "serverName": site},
			{"name": "own", "listen": 8444, "to": "canaryrecord:8080"},
		},
		"egress": []m{{"name": "canarydb", "listen": 5432, "to": fmt.Sprintf("10.0.2.2:%d", port), "authority": "canaryca", "identity": "canaryguest", "serverName": upstream}},
	}}
	c.Env.XHPCR = m{
		"management": m{"listen": 9443, "clientAuthority": "canaryca"},
		"tls": m{
			"identities":  m{"canaryid": m{"cert": string(id.Cert), "key": string(id.Key), "renewable": true}, "canaryguest": m{"cert": string(guest.Cert), "key": string(guest.Key)}},
			"authorities": m{"canaryca": string(ca.PEM)},
		},
	}
	lab.Boot(t, scenario.Boot{
		UserData: lab.Encrypt(t, c), Publish: []int{8443, 8444, 9443, 8080},
		While: func(g *scenario.Guest) {
			curl := func(url string, port int, args ...string) (string, error) {
				t.Helper()
				out, err := exec.CommandContext(t.Context(), "curl", append([]string{"-sS", "--max-time", "20", "--retry", "20", "--retry-connrefused", "--retry-delay", "1",
					"--connect-to", "::" + g.Address(port), url}, args...)...).CombinedOutput()
				return string(out), err
			}
			as := func(crt, key string) []string { return []string{"--cacert", trust, "--cert", crt, "--key", key} }

			if out, err := curl("https://"+site+"/", 8443, as(clientCrt, clientKey)...); err != nil || !strings.Contains(out, "greeting: over TLS") {
				t.Errorf("the authority's client: %v: %s", err, out)
			}
			for who, args := range map[string][]string{
				"nobody":         {"--cacert", trust},
				"a stranger":     as(wrongCrt, wrongKey),
				"an old client":  append(as(clientCrt, clientKey), "--tls-max", "1.2"),
				"one that skips": {"-k"},
			} {
				for _, port := range []int{8443, 9443} {
					if out, err := curl(fmt.Sprintf("https://%s/livez", site), port, append(args, "--retry", "0")...); err == nil {
						t.Errorf("%s gets an answer of port %d: %s", who, port, out)
					}
				}
			}
			for _, url := range []string{"http://" + site + "/"} {
				for _, port := range []int{8443, 8080} {
					if out, err := curl(url, port, "--retry", "0", "--max-time", "5"); err == nil {
						t.Errorf("plain text reaches port %d: %s", port, out)
					}
				}
			}

			record, err := curl("https://guest/se-checksums.txt", 8444, "-k")
			if err != nil {
				t.Fatalf("the guest's own identity: %v: %s", err, record)
			}
			signature, err := curl("https://guest/se-signature.bin", 8444, "-k")
			if err != nil {
				t.Fatalf("the guest's own identity: %v", err)
			}
			lab.Command(t, "openssl", "x509", "-pubkey", "-noout", "-in", filepath.Join(lab.Keys, "attestation.crt"), "-out", filepath.Join(lab.Dir, "attestation.pub"))
			lab.Command(t, "openssl", "sha256", "-verify", filepath.Join(lab.Dir, "attestation.pub"),
				"-signature", lab.File(t, "se-signature.bin", []byte(signature)), lab.File(t, "se-checksums.txt", []byte(record)))
			fact := regexp.MustCompile(`(?m)^([0-9a-f]{64}) tls:own$`).FindStringSubmatch(record)
			if fact == nil {
				t.Fatalf("the record has no key of the guest's own:\n%s", record)
			}
			sum, err := hex.DecodeString(fact[1])
			if err != nil {
				t.Fatal(err)
			}
			pin := base64.StdEncoding.EncodeToString(sum)
			if out, err := curl("https://guest/se-version", 8444, "-k", "--pinnedpubkey", "sha256//"+pin); err != nil {
				t.Errorf("the record names another key: %v: %s", err, out)
			}
			for _, line := range []string{"Ingress: canarysite port 8443 to canaryweb:8080, clients of the authority ", "Ingress: own port 8444 to canaryrecord:8080, any client\n",
				fmt.Sprintf("Egress: canarydb port 5432 to 10.0.2.2:%d\n", port), "Management: port 9443, clients of the authority "} {
				if !strings.Contains(record, line) {
					t.Errorf("the record has no line %q:\n%s", line, record)
				}
			}
			mine := lab.Command(t, "sh", "-c", "openssl x509 -pubkey -noout -in '"+filepath.Join(lab.Dir, "site.crt")+"' | openssl pkey -pubin -outform der | openssl dgst -sha256 -r | cut -d' ' -f1")
			if !strings.Contains(record, string(bytes.TrimSpace(mine))+" tls:identity/canaryid\n") {
				t.Errorf("the record does not name the key of canaryid:\n%s", record)
			}

			if line := logged(t, lab, "client: "); !strings.Contains(line, "canaryguest") {
				t.Errorf("the server saw another client: %q", line)
			}

			manage := append(as(clientCrt, clientKey), "-k", "--pinnedpubkey", "sha256//"+pin)
			if out, err := curl("https://guest/readyz", 9443, manage...); err != nil || strings.TrimSpace(out) != "ok" {
				t.Errorf("readyz over TLS: %v: %s", err, out)
			}
			out, err := curl("https://guest/metrics", 9443, manage...)
			for _, want := range []string{"hpcr_ready 1\n", `hpcr_tls_accepted_total{endpoint="canarysite"} 1` + "\n", `hpcr_tls_failed_total{endpoint="canarydb"} 0` + "\n",
				`hpcr_certificate_not_after_seconds{certificate="canaryid TLS"} `,
				"hpcr_log_connected 1\n", "hpcr_log_lost_total 0\n"} {
				if err != nil || !strings.Contains(out, want) {
					t.Errorf("the metrics have no %q: %v\n%s", want, err, out)
				}
			}

			// A new certificate of the same key, by a foreign tool; of another key it is none.
			renewed := filepath.Join(lab.Dir, "renewed.crt")
			for _, r := range []struct{ key, name, says string }{{"wrong.key", "canaryid", "does not belong"}, {"site.key", "canaryguest", "no identity"}, {"site.key", "canaryid", "replaced"}} {
				lab.Command(t, "openssl", "req", "-x509", "-new", "-key", filepath.Join(lab.Dir, r.key), "-subj", "/CN=renewed", "-days", "60", "-addext", "subjectAltName=DNS:"+site+",IP:"+peers.Loopback, "-out", renewed)
				if out, err := curl("https://guest/v1/identities/"+r.name, 9443, append(manage, "-T", renewed)...); err != nil || !strings.Contains(out, r.says) {
					t.Errorf("the management listener says of a certificate with %s for %s: %v: %s", r.key, r.name, err, out)
				}
			}
			if out, err := curl("https://"+site+"/", 8443, append(as(clientCrt, clientKey), "--cacert", renewed)...); err != nil || !strings.Contains(out, "greeting: over TLS") {
				t.Errorf("the new certificate is not served: %v: %s", err, out)
			}
			logged(t, lab, "certificate replaced")
		},
	}).Ready(t)
}
