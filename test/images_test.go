//go:build vm

package test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hpcr/test/peers"
	"hpcr/test/scenario"
)

var imageDiskScenarios = []scenario.Scenario{
	{
		Name:     "an image comes from a disk, and no registry is asked",
		Attacker: "a host without any registry, which gives the guest a disk instead",
		Claim: "hpcrctl images pack takes the image from a registry, which is then switched off; the contract names one that does not exist. " +
			"The container runs, the record says by what the image was verified and that it came from the disk, of which no byte has changed.",
		Tier:  scenario.Core,
		Archs: []string{scenario.AMD64},
		Cost:  14 * time.Second,
		Run:   fromDisk,
	},
	{
		Name:     "a disk with images that the host changed is refused, though the registry has the image",
		Attacker: "a host that changes one bit of a layer, gives the volume's disk as the one with images, or cuts the disk",
		Claim: "HPL06004E for each, with a sentence of its own; the registry is not asked for the image, and a data volume with the wrong " +
			"serial stays as it is. The other way round a disk with images in a volume's place is HPL02003E and keeps every byte.",
		Tier:  scenario.Full,
		Archs: []string{scenario.AMD64},
		Cost:  75 * time.Second,
		Run:   hostileDisk,
	},
	{
		Name:     "a disk with images that hangs ends the boot within its limit",
		Attacker: "a host that lets the disk answer nothing from the moment on at which it is to be read",
		Claim:    "HPL02120E and a power-off: a child hangs, not the agent.",
		Tier:     scenario.Full,
		Archs:    []string{scenario.AMD64},
		Cost:     160 * time.Second,
		Run:      hungImages,
	},
}

// packed is a disk with the lab's web image, by its digest, and the registry
// that it comes from.
func packed(t *testing.T, lab *scenario.Lab) (disk string, image *peers.Image, registry *peers.Registry, ref string) {
	t.Helper()
	image = ownImage(t, lab)
	registry, ref = registryOf(t, lab, image)
	disk = filepath.Join(lab.Dir, "images.img")
	auth := fmt.Sprintf(`{"auths":{%q:{"username":%q,"password":%q}}}`, registry.Host(), registry.User, registry.Password)
	got := lab.Hpcrctl(t, "images", "pack", "--out", disk, "--tls-ca", lab.File(t, "ca.pem", lab.RegistryCA.PEM),
		"--auth-file", lab.File(t, "auth.json", []byte(auth)), registry.Host()+"/"+scenario.Canary+"repo/own@"+image.Digest())
	if want := registry.Host() + "/" + scenario.Canary + "repo/own@" + image.Digest() + "\n"; string(got) != want {
		t.Errorf("images pack says %q, want %q", got, want)
	}
	return disk, image, registry, ref
}

func fromDisk(t *testing.T, lab *scenario.Lab) {
	disk, image, registry, _ := packed(t, lab)
	if err := registry.Close(); err != nil {
		t.Fatal(err)
	}
	before := sum(t, disk)
	c := lab.Contract(t)
	c.Workload.Auths, c.Workload.Volumes, c.Env.Volumes, c.Env.Logging = nil, nil, nil, nil
	ref := "registry.invalid/" + scenario.Canary + "repo/web@" + image.Digest()
	c.Workload.Compose = lab.Compose(t, fmt.Sprintf(`services:
  canaryrecord:
    image: %s
    entrypoint: [/bin/sh, -c, "exec busybox httpd -f -p 8080 -h /var/hyperprotect"]
    ports: ["8080:8080"]
    volumes: ["/var/hyperprotect/:/var/hyperprotect/:ro"]
`, ref))
	lab.Boot(t, scenario.Boot{UserData: lab.Encrypt(t, c), Publish: []int{8080}, Disks: []string{"images=" + disk}, While: func(g *scenario.Guest) {
		record := fetch(t, "http://"+g.Address(8080)+"/se-checksums.txt")
		if want := "\nImage: " + ref + " verifiedBy digest from disk\n"; !strings.Contains(record, want) {
			t.Errorf("the record lacks %q:\n%s", want, record)
		}
	}}).Ready(t)
	if sum(t, disk) != before {
		t.Error("the disk was written to")
	}
}

func hostileDisk(t *testing.T, lab *scenario.Lab) {
	disk, image, registry, ref := packed(t, lab)
	defer registry.Close()
	c := ownContract(t, lab, registry, ref)
	c.Workload.Volumes, c.Env.Volumes, c.Env.Logging = nil, nil, nil
	asked := len(registry.Requests())
	good, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	layer := image.Blobs[1]
	at := bytes.Index(good, layer)
	if at < 0 {
		t.Fatal("the disk does not hold the layer")
	}
	changed := bytes.Clone(good)
	changed[at+len(layer)/2] ^= 1
	boot := func(file, detail string) {
		t.Helper()
		r := lab.Boot(t, scenario.Boot{UserData: lab.Encrypt(t, c), Disks: []string{"images=" + file}})
		r.Failed(t, "HPL06004E")
		if !strings.Contains(r.Message, detail) {
			t.Errorf("message %q, want %q", r.Message, detail)
		}
	}
	boot(lab.File(t, "changed.img", changed), "other bytes than the digest promises")
	boot(lab.File(t, "cut.img", good[:at+1024]), "it was cut")
	volume := sparse(t, lab, "volume.img", diskSize)
	lab.Command(t, "mkfs.ext4", "-q", "-L", "somebody", volume)
	before := sum(t, volume)
	boot(volume, "holds no archive of images")
	if sum(t, volume) != before {
		t.Error("a disk that is none with images was written to")
	}
	if got := registry.Requests(); len(got) != asked {
		t.Errorf("the registry was asked: %q", got[asked:])
	}

	v := ownContract(t, lab, registry, ref)
	lab.Boot(t, scenario.Boot{UserData: lab.Encrypt(t, v), Disks: []string{storeVolume + "=" + disk}}).Failed(t, "HPL02003E")
	if now, err := os.ReadFile(disk); err != nil || !bytes.Equal(now, good) {
		t.Errorf("the disk with images was written to as a volume: %v", err)
	}
}

func hungImages(t *testing.T, lab *scenario.Lab) {
	disk, _, registry, ref := packed(t, lab)
	defer registry.Close()
	c := ownContract(t, lab, registry, ref)
	c.Workload.Volumes, c.Env.Volumes, c.Env.Logging = nil, nil, nil
	server, args := served(t, disk, "images")
	off := poweredOff(lab, server)
	go func() {
		if awaitLine(lab, ": lockdown done", 3*time.Minute) {
			hang(t, server)
		}
	}()
	start := time.Now()
	lab.Boot(t, scenario.Boot{UserData: lab.Encrypt(t, c), Limit: 6 * time.Minute, Args: args}).Failed(t, "HPL02120E")
	offWithin(t, off, start, 5*time.Minute)
}
