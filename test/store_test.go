//go:build vm

package test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hpcr/test/peers"
	"hpcr/test/scenario"
)

var storeScenarios = []scenario.Scenario{
	{
		Name:     "an image comes from the encrypted store when its registry is gone",
		Attacker: "a host that reads the scratch disk and the image store, and a registry that is switched off",
		Claim: "The first boot pulls into the store, the second starts with the registry's process gone. " +
			"Neither disk shows a piece of manifest, configuration, packed layer or unpacked file; the scratch disk is made anew.",
		Tier:  scenario.Core,
		Archs: []string{scenario.AMD64},
		Cost:  45 * time.Second,
		Run:   stored,
	},
	{
		Name:     "an image store that the host damaged is filled again",
		Attacker: "a host that overwrites the inside of the image store's disk",
		Claim: "The guest's log says that the file system is made anew, the image is pulled again, and the boot after that " +
			"needs no registry. Nothing of the damaged disk was run: each blob has its digest.",
		Tier:  scenario.Full,
		Archs: []string{scenario.AMD64},
		Cost:  70 * time.Second,
		Run:   damagedStore,
	},
	{
		Name:     "somebody's disk with the serial scratch is refused and left as it is",
		Attacker: "a careless operator who attaches the wrong disk",
		Claim:    "HPL02003E and not one changed byte: the serial alone gets no disk formatted.",
		Tier:     scenario.Full,
		Archs:    []string{scenario.AMD64},
		Cost:     12 * time.Second,
		Run: func(t *testing.T, lab *scenario.Lab) {
			disk := sparse(t, lab, "somebody.img", diskSize)
			lab.Command(t, "mkfs.ext4", "-q", "-L", "somebody", disk)
			before := sum(t, disk)
			lab.Boot(t, scenario.Boot{UserData: lab.Plain(t, lab.Small(t)), Disks: []string{"scratch=" + disk}}).Failed(t, "HPL02003E")
			if sum(t, disk) != before {
				t.Error("the disk's content changed")
			}
		},
	},
	{
		Name:     "an image that does not fit into memory is refused, and fits with a scratch disk",
		Attacker: "a workload whose image unpacks to more than the guest's memory",
		Claim: "HPL06004E says that it does not fit and what to do; the guest powers off in order, so its agent had memory left. " +
			"The same contract with a scratch disk is ready.",
		Tier:  scenario.Full,
		Archs: []string{scenario.AMD64},
		Cost:  60 * time.Second,
		Run:   tooLarge,
	},
}

// storeVolume is a volume that is the guest's image store.
const storeVolume = scenario.Canary + "images"

// registryOf starts a registry of the scenario's own, with an image in it.
func registryOf(t *testing.T, lab *scenario.Lab, img *peers.Image) (r *peers.Registry, ref string) {
	t.Helper()
	r, err := peers.StartRegistry(lab.RegistryCA, lab.Registry.User, lab.Registry.Password)
	if err != nil {
		t.Fatal(err)
	}
	name, err := r.Push(t.Context(), scenario.Canary+"repo/own", img)
	if err != nil {
		t.Fatal(errors.Join(err, r.Close()))
	}
	return r, r.Guest() + "/" + name
}

func ownImage(t *testing.T, lab *scenario.Lab) *peers.Image {
	t.Helper()
	busybox, err := peers.Busybox(t.Context(), lab.Arch, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	img, err := peers.WebImage(lab.Arch, busybox)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// ownContract runs one container of this image, with an image store.
func ownContract(t *testing.T, lab *scenario.Lab, registry *peers.Registry, ref string) peers.Contract {
	t.Helper()
	c := lab.Contract(t)
	c.Workload.Auths = map[string]peers.Auth{registry.Guest(): {Username: registry.User, Password: registry.Password}}
	c.Workload.Volumes = map[string]peers.WorkloadVolume{storeVolume: {Mount: "/var/lib/hpcr/images", Filesystem: "ext4", Seed: scenario.WorkloadSeed}}
	c.Env.Volumes = map[string]peers.EnvVolume{storeVolume: {Seed: scenario.EnvSeed}}
	c.Workload.Compose = lab.Compose(t, fmt.Sprintf("services:\n  canaryweb:\n    image: %s\n    environment: {DATA: /tmp/data}\n    ports: ['8080:8080']\n", ref))
	return c
}

func stored(t *testing.T, lab *scenario.Lab) {
	img := ownImage(t, lab)
	registry, ref := registryOf(t, lab, img)
	store, scratch := filepath.Join(lab.Dir, "store.img"), filepath.Join(lab.Dir, "scratch.img")
	c := ownContract(t, lab, registry, ref)
	var ids []string
	for n := 1; n <= 2; n++ {
		lab.Boot(t, scenario.Boot{
			UserData: lab.Encrypt(t, c), Publish: []int{8080},
			Disks: []string{storeVolume + "=" + store + ":300M", "scratch=" + scratch + ":500M"},
			While: func(g *scenario.Guest) {
				// The container's own folder is on the scratch disk: always its first start.
				if page := fetch(t, "http://"+g.Address(8080)+"/"); !strings.HasPrefix(page, "starts: 1\n") {
					t.Errorf("boot %d: the page is %q", n, page)
				}
				logged(t, lab, `images and layers are on the scratch disk`)
				logged(t, lab, "encryption with a key of this boot found")
			},
		}).Ready(t)
		ids = append(ids, strings.Fields(string(lab.Command(t, "sfdisk", "--disk-id", scratch)))...)
		if n == 1 {
			if err := registry.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(ids) != 2 || ids[0] == ids[1] {
		t.Errorf("the scratch disk was not made anew: %v", ids)
	}
	config, layer := img.Blobs[0], img.Blobs[1]
	for _, disk := range []string{store, scratch} {
		lacks(t, disk, img.Manifest[:60], config[:60], layer[1000:1060], []byte("What the test image plays"), []byte(scenario.Canary))
	}
}

func damagedStore(t *testing.T, lab *scenario.Lab) {
	registry, ref := registryOf(t, lab, ownImage(t, lab))
	store := filepath.Join(lab.Dir, "store.img")
	c := ownContract(t, lab, registry, ref)
	boot := func(said string) {
		t.Helper()
		lab.Boot(t, scenario.Boot{
			UserData: lab.Encrypt(t, c), Publish: []int{8080}, Disks: []string{storeVolume + "=" + store + ":300M"},
			While: func(g *scenario.Guest) {
				fetch(t, "http://"+g.Address(8080)+"/")
				logged(t, lab, said)
			},
		}).Ready(t)
	}
	boot("images are kept in the image store")
	// Behind LUKS's headers, which end a MiB into the partition at 101 MiB: the
	// file system's first groups.
	noise := make([]byte, 40<<20)
	rand.Read(noise)
	f, err := os.OpenFile(store, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt(noise, 102<<20)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	boot("the file system is beyond repair and is made anew")
	if err := registry.Close(); err != nil {
		t.Fatal(err)
	}
	boot("image pulled and unpacked")
}

func tooLarge(t *testing.T, lab *scenario.Lab) {
	busybox, err := peers.Busybox(t.Context(), lab.Arch, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	img, err := peers.LargeImage(lab.Arch, busybox, 700<<20)
	if err != nil {
		t.Fatal(err)
	}
	registry, ref := registryOf(t, lab, img)
	defer registry.Close()
	c := ownContract(t, lab, registry, ref)
	c.Workload.Volumes, c.Env.Volumes, c.Env.Logging = nil, nil, nil
	args := []string{"--memory", "768M"}
	r := lab.Boot(t, scenario.Boot{UserData: lab.Encrypt(t, c), Args: args})
	r.Failed(t, "HPL06004E")
	if !strings.Contains(r.Message, "does not fit into the guest's store") {
		t.Errorf("message %q", r.Message)
	}
	scratch := filepath.Join(lab.Dir, "scratch.img")
	lab.Boot(t, scenario.Boot{UserData: lab.Encrypt(t, c), Args: args, Limit: 10 * time.Minute, Disks: []string{"scratch=" + scratch + ":2G"}}).Ready(t)
}

// lacks: nobody who has the disk reads any of these in it.
func lacks(t *testing.T, disk string, texts ...[]byte) {
	t.Helper()
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const chunk, overlap = 4 << 20, 64
	buf := make([]byte, chunk+overlap)
	for at := int64(0); ; at += chunk {
		n, err := f.ReadAt(buf, at)
		for _, text := range texts {
			if len(text) > overlap {
				t.Fatal("text too long")
			}
			if bytes.Contains(buf[:n], text) {
				t.Errorf("%s shows %.30q", filepath.Base(disk), text)
			}
		}
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
