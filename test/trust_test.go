//go:build vm

package test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"hpcr/test/peers"
	"hpcr/test/scenario"
)

var trustScenarios = []scenario.Scenario{
	{
		Name:     "images that their owners signed run by their tags, and no others",
		Attacker: "a registry, or a host in its place, that moves a tag to an image of its own",
		Claim: "A service whose image skopeo signed with gpg, and one whose image is signed as cosign does, run by their tags; the record " +
			"names the digests and the keys. When one tag names another image, with the first one's signature beside it, the boot ends " +
			"with HPL06004E and the registry was not asked for a byte of it.",
		Tier:  scenario.Full,
		Archs: []string{scenario.AMD64},
		Cost:  48 * time.Second,
		Run:   signedImages,
	},
	{
		Name:     "a pod's signed image runs on s390x, and an unsigned, a wrongly signed and a neighbour's are refused",
		Attacker: "a registry, or a host in its place",
		Claim: "A pod runs by a tag that skopeo signed. HPL15005E, and no byte of the image, for an image without a signature, one that " +
			"a stranger signed, one with the signature of another tag, and one with both kinds of keys and one kind of signature.",
		Tier:  scenario.Full,
		Archs: scenario.Both,
		Cost:  300 * time.Second,
		Run:   signedPod,
	},
}

// signed is one scenario's surroundings: the lab's web image under two names,
// one on the standard port, and who signs.
type signed struct {
	*scenario.Lab
	image  *peers.Image
	repo   string
	gpg    *peers.GPG
	cosign *peers.Cosign
}

func newSigned(t *testing.T, lab *scenario.Lab) *signed {
	t.Helper()
	s := &signed{Lab: lab, repo: scenario.Canary + "repo/signed-" + lab.Arch}
	s.image = webImage(t, lab.Arch)
	s.push(t, "1", s.image)
	port, err := lab.Registry.Standard(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := port.Close(); err != nil {
			t.Error(err)
		}
	})
	if s.gpg, err = peers.NewGPG(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.gpg.Close(); err != nil {
			t.Error(err)
		}
	})
	if s.cosign, err = peers.NewCosign(); err != nil {
		t.Fatal(err)
	}
	return s
}

func webImage(t *testing.T, arch string) *peers.Image {
	t.Helper()
	busybox, err := peers.Busybox(t.Context(), arch, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	image, err := peers.WebImage(arch, busybox)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

func (s *signed) push(t *testing.T, tag string, image *peers.Image) {
	t.Helper()
	if _, err := s.Registry.Push(t.Context(), s.repo, image); err != nil {
		t.Fatal(err)
	}
	if err := s.Registry.Tag(t.Context(), s.repo, tag, image); err != nil {
		t.Fatal(err)
	}
}

// plainName is the repository by the registry's standard port.
func (s *signed) plainName() string { return peers.GuestHost + "/" + s.repo }

// simple keeps gpg's signature of an image under a reference, beside another
// image, which it may not be for.
func (s *signed) simple(t *testing.T, gpg *peers.GPG, image *peers.Image, tag string, beside *peers.Image) {
	t.Helper()
	signature, err := gpg.Sign(t.Context(), image, s.plainName()+":"+tag)
	if err != nil {
		t.Fatal(err)
	}
	s.Registry.Keep(s.repo, beside, signature)
}

// contract trusts the two signers.
func (s *signed) contract(t *testing.T) peers.Contract {
	c := s.Lab.Contract(t)
	c.Workload.Volumes, c.Env.Volumes = nil, nil
	c.Workload.Auths[peers.GuestHost] = c.Workload.Auths[s.Registry.Guest()]
	c.Workload.Images = map[string]any{"rhs": map[string]any{s.plainName(): map[string]string{"publicKey": peers.Base64(s.gpg.PublicKey)}}}
	c.Workload.XHPCR = map[string]any{"images": map[string]any{
		"cosign":    map[string]any{s.Registry.Guest() + "/*": map[string]string{"publicKey": string(s.cosign.PublicKey)}},
		"lookaside": map[string]string{peers.GuestHost: "https://" + peers.GuestHost + peers.Lookaside},
	}}
	return c
}

// fetched says whether a byte of an image was asked for: its manifest or a blob.
func (s *signed) fetched(image *peers.Image) bool {
	return slices.ContainsFunc(s.Registry.Requests(), func(r string) bool {
		if !strings.Contains(r, " GET ") || !strings.Contains(r, "/"+s.repo+"/") {
			return false
		}
		return strings.HasSuffix(r, image.Digest()) || slices.ContainsFunc(image.Blobs, func(b []byte) bool {
			return strings.HasSuffix(r, digest.FromBytes(b).String())
		})
	})
}

func signedImages(t *testing.T, lab *scenario.Lab) {
	s := newSigned(t, lab)
	s.simple(t, s.gpg, s.image, "1", s.image)
	if err := s.cosign.Sign(t.Context(), lab.Registry, s.repo, s.image); err != nil {
		t.Fatal(err)
	}
	c := s.contract(t)
	c.Workload.Compose = lab.Compose(t, fmt.Sprintf(`services:
  canaryrecord:
    image: %s/%s:1
    entrypoint: [/bin/sh, -c, "exec busybox httpd -f -p 8080 -h /var/hyperprotect"]
    ports: ["8080:8080"]
    volumes: ["/var/hyperprotect/:/var/hyperprotect/:ro"]
  canaryidle:
    image: %s:1
    command: [idle]
`, lab.Registry.Guest(), s.repo, s.plainName()))
	lab.Boot(t, scenario.Boot{UserData: lab.Encrypt(t, c), Publish: []int{8080}, While: func(g *scenario.Guest) {
		record := fetch(t, "http://"+g.Address(8080)+"/se-checksums.txt")
		for _, want := range []string{
			"Image: " + lab.Registry.Guest() + "/" + s.repo + "@" + s.image.Digest() + " verifiedBy x-hpcr.images.cosign " + s.cosign.Fingerprint(),
			"Image: " + s.plainName() + "@" + s.image.Digest() + " verifiedBy images.rhs " + s.gpg.Fingerprint,
		} {
			if !strings.Contains(record, "\n"+want+"\n") {
				t.Errorf("the record lacks %q:\n%s", want, record)
			}
		}
	}}).Ready(t)

	evil, err := peers.ProgramImage(lab.Arch, []byte("evil"))
	if err != nil {
		t.Fatal(err)
	}
	s.push(t, "1", evil)
	s.simple(t, s.gpg, s.image, "1", evil)
	lab.Boot(t, scenario.Boot{UserData: lab.Encrypt(t, c)}).Failed(t, "HPL06004E")
	if s.fetched(evil) {
		t.Errorf("the registry was asked for the image that nobody signed: %q", lab.Registry.Requests())
	}
}

func signedPod(t *testing.T, lab *scenario.Lab) {
	s := newSigned(t, lab)
	stranger, err := peers.NewGPG(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stranger.Close(); err != nil {
			t.Error(err)
		}
	})
	boot := func(name string) *scenario.Result {
		c := s.contract(t)
		c.Workload.Compose = nil
		c.Workload.Play = &peers.Play{Resources: []map[string]any{{"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": "canarypod"},
			"spec": map[string]any{"containers": []any{map[string]any{"name": "canaryidle", "image": name, "args": []any{"idle"}}}}}}}
		return lab.Boot(t, scenario.Boot{UserData: lab.Encrypt(t, c)})
	}
	boot(s.plainName()+":1").Failed(t, "HPL15005E") // unsigned
	s.simple(t, stranger, s.image, "1", s.image)
	boot(s.plainName()+":1").Failed(t, "HPL15005E")
	s.simple(t, s.gpg, s.image, "2", s.image)
	boot(s.plainName()+":1").Failed(t, "HPL15005E")
	boot(lab.Registry.Guest()+"/"+s.repo+":1").Failed(t, "HPL15005E") // cosign's key, no signature
	if s.fetched(s.image) {
		t.Errorf("the registry was asked for the image that nobody signed: %q", lab.Registry.Requests())
	}
	s.simple(t, s.gpg, s.image, "1", s.image)
	boot(s.plainName() + ":1").Ready(t)
}
