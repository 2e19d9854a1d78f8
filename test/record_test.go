//go:build vm

package test

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v4"

	"hpcr/initramfs"
	"hpcr/test/scenario"
)

var recordScenarios = []scenario.Scenario{{
	Name:     "the record names this contract and its signature holds",
	Attacker: "a host that boots another contract than it says",
	Claim: "A container that mounts /var/hyperprotect reads se-checksums.txt, whose lines are the hashes of the very tokens and files " +
		"that were delivered, whose policy hash is the manifest's, and which names the service with power beyond its own; openssl verifies " +
		"its signature by the image's attestation certificate; no seed is in the files beside it; modes and owners are HPCR's. The provider's condition lets " +
		"its one signing key pass, and the owner reads that the signing certificate ends in 20 days.",
	Tier:  scenario.Core,
	Archs: []string{scenario.AMD64},
	Cost:  32 * time.Second,
	Run:   record,
}}

func record(t *testing.T, lab *scenario.Lab) {
	c := lab.Contract(t)
	c.Workload.Compose = lab.Compose(t, fmt.Sprintf(`services:
  canaryrecord:
    image: %[1]s
    entrypoint: [/bin/sh, -c, "cd /var/hyperprotect; busybox find . -exec busybox stat -c '%%n %%a %%u:%%g' {} + > /tmp/modes; exec busybox httpd -f -p 8080 -h /"]
    ports: ["8080:8080"]
    volumes: ["/var/hyperprotect/:/var/hyperprotect/:ro"]
  canarypower:
    image: %[1]s
    command: [idle]
    privileged: true
    cap_add: [net_admin, sys_admin]
`, lab.Web(t)))
	crt := filepath.Join(lab.Dir, "sign.crt")
	lab.Command(t, "openssl", "req", "-x509", "-new", "-key", lab.Signing, "-subj", "/CN=canarysigner", "-days", "20", "-out", crt)
	pem, err := os.ReadFile(crt)
	if err != nil {
		t.Fatal(err)
	}
	c.Workload.XHPCR = map[string]any{"require": map[string]any{"signingKeys": []string{string(pem)}, "envEncrypted": true}}
	userData := lab.File(t, "user-data", lab.Hpcrctl(t, "contract", "sign", "--signing-key", lab.Signing, "--signing-cert", crt,
		"--cert", filepath.Join(lab.Keys, "contract.crt"), lab.Plain(t, c)))
	files, modes := map[string]string{}, ""
	r := lab.Boot(t, scenario.Boot{
		UserData: userData, Disks: []string{scenario.Volume + "=" + filepath.Join(lab.Dir, "data.img") + ":512M"}, Publish: []int{8080},
		While: func(g *scenario.Guest) {
			for _, name := range []string{"se-checksums.txt", "se-signature.bin", "se-version", "user-data.decrypted", "workload-data.decrypted", "cidata/meta-data", "certificate_expiry_date.json"} {
				files[name] = fetch(t, "http://"+g.Address(8080)+"/var/hyperprotect/"+name)
			}
			modes = fetch(t, "http://"+g.Address(8080)+"/tmp/modes")
		},
	})
	r.Ready(t)

	messages, err := lab.LogHost.Messages()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(messages, func(m string) bool {
		return strings.Contains(m, " "+lab.Hostname()+" ") && strings.Contains(m, " certificate.expiry ") && strings.Contains(m, "HPL12006W: ")
	}) {
		t.Error("the log host was not told of the signing certificate's end")
	}

	text := files["se-checksums.txt"]
	lab.Command(t, "openssl", "x509", "-pubkey", "-noout", "-in", filepath.Join(lab.Keys, "attestation.crt"), "-out", filepath.Join(lab.Dir, "attestation.pub"))
	lab.Command(t, "openssl", "sha256", "-verify", filepath.Join(lab.Dir, "attestation.pub"),
		"-signature", lab.File(t, "se-signature.bin", []byte(files["se-signature.bin"])), lab.File(t, "se-checksums.txt", []byte(text)))

	// The lines, as IBM's reader takes them.
	lines := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^\s*([0-9a-f]+)\s+([^\s]+)\s*$`).FindAllStringSubmatch(text, -1) {
		lines[m[2]] = m[1]
	}
	raw, err := os.ReadFile(userData)
	if err != nil {
		t.Fatal(err)
	}
	var sections map[string]string
	if err := yaml.Unmarshal(raw, &sections); err != nil {
		t.Fatal(err)
	}
	want := map[string][]byte{"cidata/user-data": raw, "cidata/meta-data": []byte(files["cidata/meta-data"]), "certificate_expiry_date.json": []byte(files["certificate_expiry_date.json"])}
	for key, value := range sections {
		want["contract:"+key] = []byte(value)
	}
	for name, bytes := range want {
		if sum := fmt.Sprintf("%x", sha256.Sum256(bytes)); lines[name] != sum {
			t.Errorf("%s is %q in the record, want %s", name, lines[name], sum)
		}
	}
	manifest, err := initramfs.ReadManifest(filepath.Join(lab.Image(t), initramfs.ManifestFile))
	if err != nil {
		t.Fatal(err)
	}
	if lines["policy"] != manifest.PolicyFile.SHA256 {
		t.Errorf("the policy is %q in the record, the manifest says %s", lines["policy"], manifest.PolicyFile.SHA256)
	}
	if !strings.Contains(text, "\nPrivileged: canarypower privileged cap_add\n") || strings.Contains(text, "Privileged: canaryrecord") {
		t.Errorf("the record does not name the one service with power beyond its own:\n%s", text)
	}
	if !strings.Contains(text, "\nVolume: "+scenario.Volume+" created sealed generation 2\n") {
		t.Errorf("the record does not say what became of the volume:\n%s", text)
	}
	if !strings.Contains(text, "\nFlavour: dev\n") {
		t.Errorf("the record does not say its flavour:\n%s", text)
	}
	if lines["/dev/disk/by-label/cidata"] == "" || !strings.HasPrefix(text, strings.TrimSpace(files["se-version"])+"\n") {
		t.Errorf("the record lacks the device or the version:\n%s", text)
	}
	wantModes := map[string]string{".": "500 0:0", "./cidata": "500 0:0", "./cidata/vendor-data": "400 0:0"}
	for name := range files {
		wantModes["./"+name] = "400 0:0"
	}
	wantModes["./workload-data.decrypted"] = "600 0:0"
	gotModes := map[string]string{}
	for line := range strings.Lines(modes) {
		name, mode, _ := strings.Cut(strings.TrimSpace(line), " ")
		gotModes[name] = mode
	}
	if !maps.Equal(gotModes, wantModes) {
		t.Errorf("the files' modes and owners:\n%s", modes)
	}
	for name, text := range files {
		for _, seed := range []string{c.Env.Volumes[scenario.Volume].Seed, c.Workload.Volumes[scenario.Volume].Seed} {
			if seed == "" || strings.Contains(text, seed) {
				t.Errorf("%s holds a seed", name)
			}
		}
	}
}
