//go:build vm

package test

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"hpcr/test/peers"
	"hpcr/test/scenario"
)

var secretScenarios = []scenario.Scenario{{
	Name:     "secrets are in the guest's memory where the document says and nowhere else",
	Attacker: "a host that one day finds a way to read the memory of a guest that has been running for long",
	Claim: "Every kind of secret is a random canary, looked for in all forms that it passes through, in the whole of the guest's memory as " +
		"QEMU holds it: page cache, freed pages and kernel included. What is found lies in the processes and files of docs/secrets-in-memory.md; " +
		"nothing is found on the disk.",
	Tier:  scenario.Core,
	Archs: []string{scenario.AMD64},
	Cost:  20 * time.Second,
	Run:   secrets,
}}

// needles collects the forms of each kind of secret.
type needles struct {
	arch string
	all  []scenario.Needle
}

func (n *needles) add(kind, form string, b []byte) {
	n.all = append(n.all, scenario.Needle{Kind: kind, Form: form, Bytes: b})
}

// text is a secret that is written as it is, or in base64 at any offset.
func (n *needles) text(kind, s string) {
	n.add(kind, "text", []byte(s))
	n.add(kind, "hex", []byte(hex.EncodeToString([]byte(s))))
	for skip := range 3 { // whatever stands before shifts the alphabet
		n.add(kind, "base64", []byte(base64.RawStdEncoding.EncodeToString([]byte(s)[skip:len(s)-(len(s)-skip)%3])))
	}
}

const window = 24 // bytes that are enough to know a number by

// number is a part of a private key: big-endian as in DER, and the limbs of Go's
// big.Int and bigmod, least first, each in the machine's byte order.
func (n *needles) number(kind, name string, i *big.Int) {
	b := i.FillBytes(make([]byte, (i.BitLen()+63)/64*8))
	limbs := make([]byte, 0, len(b))
	for at := len(b) - 8; at >= 0; at -= 8 {
		limb := b[at : at+8]
		if n.arch == scenario.AMD64 {
			limbs = binary.LittleEndian.AppendUint64(limbs, binary.BigEndian.Uint64(limb))
		} else {
			limbs = append(limbs, limb...)
		}
	}
	for _, at := range []int{len(b)/8/3*8 - 8, len(b)/8/2*8 - 8} {
		n.add(kind, name+" big-endian", b[at:at+min(window, len(b)-at)])
		n.add(kind, name+" limbs", limbs[at:at+min(window, len(limbs)-at)])
	}
}

// key is a private key in PEM.
func (n *needles) key(t *testing.T, kind string, text []byte) *rsa.PrivateKey {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	for _, at := range []int{len(lines) / 3, len(lines) / 2, len(lines) - 2} {
		n.add(kind, "PEM", []byte(lines[at]))
	}
	whole := base64.StdEncoding.EncodeToString(text) // as contracts hold it
	n.add(kind, "base64 of PEM", []byte(whole[len(whole)/2:][:64]))
	block, _ := pem.Decode(text)
	any, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	switch k := any.(type) {
	case *rsa.PrivateKey:
		n.number(kind, "d", k.D)
		n.number(kind, "p", k.Primes[0])
		n.number(kind, "q", k.Primes[1])
		n.number(kind, "dp", k.Precomputed.Dp)
		n.number(kind, "dq", k.Precomputed.Dq)
		n.number(kind, "qinv", k.Precomputed.Qinv)
		return k
	case *ecdsa.PrivateKey:
		d, err := k.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		n.number(kind, "d", new(big.Int).SetBytes(d))
	default:
		t.Fatalf("a key of type %T", any)
	}
	return nil
}

// fresh is a canary that no earlier run can have left anywhere.
func fresh(kind string) string {
	return scenario.Canary + "-" + strings.ReplaceAll(kind, " ", "-") + "-" + rand.Text()
}

func secrets(t *testing.T, lab *scenario.Lab) {
	n := &needles{arch: lab.Arch}
	c := lab.Contract(t)
	own := func(kind string) string {
		s := fresh(kind)
		n.text(kind, s)
		return s
	}
	envSeed, workSeed := own("seed"), own("seed")
	c.Env.Volumes = map[string]peers.EnvVolume{scenario.Volume: {Seed: envSeed, Previous: own("seed")}}
	c.Workload.Volumes = map[string]peers.WorkloadVolume{scenario.Volume: {Mount: scenario.Mount, Seed: workSeed, Previous: own("seed")}}
	c.Env.Env = map[string]string{"CANARY_ENV": own("environment of a container"), "CANARY_ENV_UNUSED": own("environment that no container has")}
	c.Workload.Env = map[string]string{"CANARY_WORKLOAD": own("environment of a container"), "CANARY_WORKLOAD_UNUSED": own("environment that no container has")}
	archive, err := peers.Archive(map[string]string{
		"docker-compose.yaml": fmt.Sprintf(`# %s
services:
  canaryweb:
    image: %s
    environment: ["DATA=%s", "CANARY_ENV", "CANARY_WORKLOAD"]
    volumes: ["%[3]s:%[3]s"]
`, own("compose archive"), lab.Web(t), scenario.Mount),
		"extra.txt": own("compose archive"),
	})
	if err != nil {
		t.Fatal(err)
	}
	c.Workload.Compose = &peers.Compose{Archive: archive}
	n.add("contract's text", "base64 of the archive", []byte(archive[len(archive)/2:][:48]))

	n.text("registry password", lab.Registry.Password)
	n.add("registry password", "basic", []byte(base64.StdEncoding.EncodeToString([]byte(lab.Registry.User+":"+lab.Registry.Password))))
	n.key(t, "key of the log's client", lab.LogClient.Key)
	id, err := lab.LogCA.Server("canaryid", "canary.example.com")
	if err != nil {
		t.Fatal(err)
	}
	n.key(t, "key of a TLS identity", id.Key)
	c.Workload.XHPCR = map[string]any{"tls": map[string]any{"ingress": []any{map[string]any{"name": "site", "listen": 8443, "to": "canaryweb:8080", "identity": "canaryid"}}}}
	c.Env.XHPCR = map[string]any{"tls": map[string]any{"identities": map[string]any{"canaryid": map[string]any{"cert": string(id.Cert), "key": string(id.Key)}}}}
	image := n.key(t, "contract key", read(t, filepath.Join(lab.Keys, "contract.key")))
	n.key(t, "attestation key", read(t, filepath.Join(lab.Keys, "attestation.key")))

	userData := lab.Sign(t, c)
	for _, token := range sections(t, userData) {
		if password := tokenPassword(t, image, token); password != nil {
			n.text("token password", string(password))
		}
	}
	for _, mix := range [][2]string{{envSeed, workSeed}, {workSeed, envSeed}} {
		sum := sha256.Sum256([]byte(mix[0] + mix[1]))
		n.add("passphrase of a volume", "raw", sum[:])
		n.text("passphrase of a volume", hex.EncodeToString(sum[:]))
	}

	table := secretsTable(t, lab)
	disk := sparse(t, lab, "data.img", 512<<20)
	d := lab.DirectBare(t, userData, disk, func(d *scenario.Direct, phase string) {
		if phase == "keys" || phase == "disks" {
			agrees(t, table, phase, d.Search(t, n.all))
		}
	})
	logged(t, lab, "serving on port 8080")
	master := masterKey(t, lab, disk, userData)
	for _, half := range [][]byte{master[:32], master[32:]} {
		n.add("key of a volume", "raw", half)
		if lab.Arch == scenario.S390X { // the kernel's key schedule: little-endian words, as this machine writes numbers
			n.add("key of a volume", "words", swapWords(half))
		}
	}
	n.add("key of a volume", "hex", []byte(hex.EncodeToString(master[8:32])))
	hits := d.Search(t, n.all)
	agrees(t, table, "ready", hits)
	// A search that finds nothing proves nothing: what is in use is found.
	for _, kind := range []string{"key of a volume", "key of the log's client", "key of a TLS identity", "environment of a container"} {
		if !slices.ContainsFunc(hits, func(h scenario.Hit) bool { return h.Kind == kind }) {
			t.Errorf("%s: not found at all, although it is in use", kind)
		}
	}
	for _, needle := range n.all {
		if _, known := table[needle.Kind]; !known {
			t.Errorf("%s does not name the kind %q", secretsDoc, needle.Kind)
		}
	}
	for kind := range table {
		if !slices.ContainsFunc(n.all, func(n scenario.Needle) bool { return n.Kind == kind }) {
			t.Errorf("%s names the kind %q, which no canary stands for", secretsDoc, kind)
		}
	}
	d.Stop(t)
	for _, h := range scenario.SearchFile(t, disk, n.all) {
		t.Errorf("the disk holds %s as %s at byte %d", h.Kind, h.Form, h.Address)
	}
}

func swapWords(b []byte) []byte {
	var out []byte
	for word := range slices.Chunk(b, 4) {
		out = binary.BigEndian.AppendUint32(out, binary.LittleEndian.Uint32(word))
	}
	return out
}

const secretsDoc = "docs/secrets-in-memory.md"

// unsearched are the kinds without a canary: this guest has no log service, the
// record's scenario mounts the
// one, nobody outside knows the others.
var unsearched = []string{"API key of the log service", "what a container mounts", "keys of TLS connections", "key of the scratch disk"}

// secretRow is a kind's row in the document.
type secretRow struct {
	places []string // processes, "kernel", and paths
	until  string   // the phase at whose end nothing is left, or "power-off"
}

var backticked = regexp.MustCompile("`([^`]+)`")

// secretsTable reads the document's table.
func secretsTable(t *testing.T, lab *scenario.Lab) map[string]secretRow {
	t.Helper()
	table := map[string]secretRow{}
	for line := range strings.Lines(string(read(t, filepath.Join(lab.Root, secretsDoc)))) {
		cells := strings.Split(line, "|")
		if len(cells) != 7 || strings.HasPrefix(line, "|---") || strings.HasPrefix(line, "| secret |") {
			continue
		}
		kind, row := strings.TrimSpace(cells[1]), secretRow{until: strings.TrimSpace(cells[4])}
		for _, m := range backticked.FindAllStringSubmatch(cells[2], -1) {
			row.places = append(row.places, m[1])
		}
		if slices.Contains(unsearched, kind) {
			continue
		}
		if row.until != "power-off" && !slices.Contains(phases, row.until) {
			t.Errorf("%s: %q ends with %q, which is no phase", secretsDoc, kind, row.until)
		}
		table[kind] = row
	}
	return table
}

// agrees compares what was found at a phase's end with the table.
func agrees(t *testing.T, table map[string]secretRow, phase string, hits []scenario.Hit) {
	t.Helper()
	count := map[string]int{}
	for _, h := range hits {
		row, place, verdict := table[h.Kind], h.Page.Place(), ""
		allowed := slices.ContainsFunc(row.places, func(p string) bool {
			return p == place || strings.HasPrefix(p, "/") && strings.HasPrefix(place, p)
		})
		switch {
		case row.until != "power-off" && slices.Index(phases, row.until) <= slices.Index(phases, phase):
			verdict = "  ← should be gone since " + row.until
		case !allowed:
			verdict = "  ← not there"
		}
		if verdict != "" {
			verdict += fmt.Sprintf(" (flags %x, users %q)", h.Page.Flags, h.Page.Users)
		}
		count[fmt.Sprintf("%-34s %-16s %s%s", h.Kind, h.Form, place, verdict)]++
	}
	var lines []string
	for l, n := range count {
		lines = append(lines, fmt.Sprintf("%4d × %s", n, l))
	}
	slices.SortFunc(lines, func(a, b string) int { return strings.Compare(a[5:], b[5:]) })
	text := strings.Join(lines, "\n")
	if strings.Contains(text, "←") {
		t.Errorf("at the end of %s secrets are where %s has none:\n%s", phase, secretsDoc, text)
		return
	}
	t.Logf("at the end of %s:\n%s", phase, text)
}

// tokenPassword is what a token's first part holds; nil if it is no token.
func tokenPassword(t *testing.T, key *rsa.PrivateKey, token string) []byte {
	t.Helper()
	parts := strings.Split(strings.TrimSpace(token), ".")
	if len(parts) != 3 || parts[0] != "hyper-protect-basic" {
		return nil
	}
	sealed, err := base64.StdEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	//lint:ignore SA1019 the format of tokens
	password, err := rsa.DecryptPKCS1v15(nil, key, sealed)
	if err != nil {
		t.Fatal(err)
	}
	return password
}

// masterKey takes the volume's key out of its disk with Debian's cryptsetup.
func masterKey(t *testing.T, lab *scenario.Lab, disk, userData string) []byte {
	t.Helper()
	passphrase := lab.Hpcrctl(t, "volume", "passphrase", "--contract", userData, "--key", filepath.Join(lab.Keys, "contract.key"), "--volume", scenario.Volume)
	part, out := dataPartition(t, lab, disk), filepath.Join(lab.Dir, "volume.key")
	lab.Command(t, "cryptsetup", "luksDump", "-q", "--dump-volume-key", "--volume-key-file", out, "--key-file", lab.File(t, "passphrase", passphrase), part)
	key := read(t, out)
	if len(key) != 64 {
		t.Fatalf("the volume's key has %d bytes", len(key))
	}
	return key
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
