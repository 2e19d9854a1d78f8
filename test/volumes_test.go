//go:build vm

package test

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hpcr/test/peers"
	"hpcr/test/scenario"
)

const diskSize = 300 << 20

var volumeScenarios = []scenario.Scenario{
	foreign("a disk with somebody's file system is refused and left as it is", scenario.Core, "HPL02003E", func(t *testing.T, lab *scenario.Lab, disk string) {
		lab.Command(t, "mkfs.ext4", "-q", "-L", "somebody", disk)
	}),
	foreign("a disk with one partition is refused and left as it is", scenario.Core, "HPL07006E", func(t *testing.T, lab *scenario.Lab, disk string) {
		lab.Command(t, "sh", "-c", "echo 'label: gpt\nsize=100M, name=metadata' | sfdisk -q '"+disk+"'")
	}),
	foreign("a disk with three partitions is refused and left as it is", scenario.Full, "HPL07006E", func(t *testing.T, lab *scenario.Lab, disk string) {
		lab.Command(t, "sh", "-c", "echo 'label: gpt\nsize=50M\nsize=50M\nsize=50M' | sfdisk -q '"+disk+"'")
	}),
	foreign("a disk that holds noise is refused and left as it is", scenario.Full, "HPL02003E", func(t *testing.T, lab *scenario.Lab, disk string) {
		noise := make([]byte, 4<<20)
		if _, err := rand.Read(noise); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(disk, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(noise); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}),
	foreign("a disk that somebody else encrypted is refused and left as it is", scenario.Full, "HPL02003E", func(t *testing.T, lab *scenario.Lab, disk string) {
		key := lab.File(t, "key", []byte("somebody's passphrase"))
		lab.Command(t, "timeout", "-s", "KILL", "120", "cryptsetup", "luksFormat", "-q", "--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", key, disk)
	}),
	{
		Name:     "a volume keeps its data while its seeds roll and its disk grows",
		Attacker: "a host that shows a disk from before the contract's minGeneration",
		Claim: "Each boot finds the file of the boot before: made, rolled by the deployer, rolled by the provider and grown, opened. " +
			"The owner's log says which it was, and the hourly check's lines are HPCR's. A floor above the disk's generation is HPL02003E, nothing written.",
		Tier:  scenario.Core,
		Archs: []string{scenario.AMD64},
		Cost:  70 * time.Second,
		Run:   rolledLife,
	},
	blanked("existing", true, scenario.Full),
	blanked("minGeneration", 1, scenario.Core),
	{
		Name:     "a host that swaps the disks of two volumes gets none of them opened",
		Attacker: "a host that gives each disk the other's serial, where both volumes have equal seeds",
		Claim:    "The seal binds the volume's name: HPL02003E, both disks as they were. With the serials right again, both volumes have their files.",
		Tier:     scenario.Full,
		Archs:    scenario.Both,
		Cost:     50 * time.Second,
		Run:      swapped,
	},
	{
		Name:     "sixteen volumes open in the memory of one derivation, each on its own disk",
		Attacker: "a host that loses the serials of some disks, where all volumes have equal seeds",
		Claim: "All are made, and opened by the next boot, three of them by what is on their disks: only the seal tells these apart. " +
			"The guest has no memory for all derivations at once.",
		Tier:  scenario.Full,
		Archs: []string{scenario.AMD64},
		Cost:  150 * time.Second,
		Run:   many,
	},
	{
		Name:     "a disk that appears late is found when it does",
		Attacker: "a host that attaches the disk only after a while",
		Claim:    "The guest waits, hears of the disk from the kernel, and makes its volume; a second disk, once it is ready, changes nothing.",
		Tier:     scenario.Full,
		Archs:    scenario.Both,
		Cost:     50 * time.Second,
		Run:      late,
	},
	{
		Name:     "a disk that is missing is refused when its wait is over",
		Attacker: "a host that withholds the disk",
		Claim:    "The guest waits 900 s as HPCR does, then powers off in order.",
		Tier:     scenario.Full,
		Archs:    []string{scenario.AMD64},
		Cost:     960 * time.Second,
		Run: func(t *testing.T, lab *scenario.Lab) {
			c := lab.Contract(t)
			r := lab.Boot(t, scenario.Boot{UserData: lab.Encrypt(t, c), Limit: 20 * time.Minute})
			if r.Verdict != "failed" || !r.StoppedInOrder {
				t.Errorf("verdict %s, in order %v, want failed and true: %s", r.Verdict, r.StoppedInOrder, r.Message)
			}
			if r.Took < 900*time.Second {
				t.Errorf("the guest gave up after %s, want 900 s", r.Took)
			}
		},
	},
}

// rolledLife is a volume over its seeds' life: made, rolled by the deployer,
// rolled by the provider and grown, in four boots.
func rolledLife(t *testing.T, lab *scenario.Lab) {
	disk := filepath.Join(lab.Dir, "data.img")
	env, workload := scenario.Canary+"-env-seed-", scenario.Canary+"-workload-seed-"
	boot := func(start int, e peers.EnvVolume, w peers.WorkloadVolume, said string, demands map[string]any) {
		t.Helper()
		c := lab.Contract(t)
		w.Mount = c.Workload.Volumes[scenario.Volume].Mount
		c.Env.Volumes = map[string]peers.EnvVolume{scenario.Volume: e}
		c.Workload.Volumes = map[string]peers.WorkloadVolume{scenario.Volume: w}
		if demands != nil {
			c.Workload.XHPCR = map[string]any{"volumes": map[string]any{scenario.Volume: demands}}
		}
		lab.Boot(t, scenario.Boot{
			UserData: lab.Encrypt(t, c), Disks: []string{scenario.Volume + "=" + disk + ":300M"}, Publish: []int{8080},
			While: func(g *scenario.Guest) {
				if page := fetch(t, "http://"+g.Address(8080)+"/"); !strings.HasPrefix(page, fmt.Sprintf("starts: %d\n", start)) {
					t.Errorf("boot %d: the page is %q", start, page)
				}
				logged(t, lab, said)
				logged(t, lab, "LUKS encryption with 1 key slot found")
				logged(t, lab, "HPL13001I: Root disk and all the data disks are encrypted")
			},
		}).Ready(t)
	}
	boot(1, peers.EnvVolume{Seed: env + "1"}, peers.WorkloadVolume{Seed: workload + "1"}, `volume created volume="`+scenario.Volume+`"`, nil)
	boot(2, peers.EnvVolume{Seed: env + "2", Previous: env + "1"}, peers.WorkloadVolume{Seed: workload + "1"}, "volume rolled", map[string]any{"existing": true, "minGeneration": 2})
	if err := os.Truncate(disk, 420<<20); err != nil {
		t.Fatal(err)
	}
	boot(3, peers.EnvVolume{Seed: env + "2", Previous: env + "1"}, peers.WorkloadVolume{Seed: workload + "2", Previous: workload + "1"}, `grown="true"`, map[string]any{"minGeneration": 3})
	boot(4, peers.EnvVolume{Seed: env + "2", Previous: env + "1"}, peers.WorkloadVolume{Seed: workload + "2", Previous: workload + "1"}, `volume opened volume="`+scenario.Volume+`"`, map[string]any{"minGeneration": 4})

	c := lab.Contract(t)
	mount := c.Workload.Volumes[scenario.Volume].Mount
	c.Env.Volumes = map[string]peers.EnvVolume{scenario.Volume: {Seed: env + "2"}}
	c.Workload.Volumes = map[string]peers.WorkloadVolume{scenario.Volume: {Seed: workload + "2", Mount: mount}}
	c.Workload.XHPCR = map[string]any{"volumes": map[string]any{scenario.Volume: map[string]any{"minGeneration": 5}}}
	unchanged(t, lab, c, disk, "HPL02003E")
}

// swapped has two volumes with equal seeds.
func swapped(t *testing.T, lab *scenario.Lab) {
	other := scenario.Volume + "2"
	c := lab.Contract(t)
	w := c.Workload.Volumes[scenario.Volume]
	w.Mount = "/mnt/second"
	c.Workload.Volumes[other], c.Env.Volumes[other] = w, c.Env.Volumes[scenario.Volume]
	files := map[string]string{scenario.Volume: sparse(t, lab, "one.img", diskSize), other: sparse(t, lab, "two.img", diskSize)}
	boot := func(first, second string) *scenario.Result {
		return lab.Boot(t, scenario.Boot{
			UserData: lab.Encrypt(t, c), Disks: []string{scenario.Volume + "=" + files[first], other + "=" + files[second]},
			Limit: 6 * time.Minute, // two volumes are made in an emulated guest
		})
	}
	boot(scenario.Volume, other).Ready(t)
	before := [2]string{sum(t, files[scenario.Volume]), sum(t, files[other])}
	boot(other, scenario.Volume).Failed(t, "HPL02003E")
	if after := [2]string{sum(t, files[scenario.Volume]), sum(t, files[other])}; after != before {
		t.Error("a boot with swapped disks changed one")
	}
	boot(scenario.Volume, other).Ready(t)
}

// late plugs the disk in through QEMU's monitor.
func late(t *testing.T, lab *scenario.Lab) {
	const wait = 25 * time.Second
	dir, err := os.MkdirTemp("", "qmp") // sockets want a short path
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "s")
	device, bus := "virtio-blk-ccw", ""
	args := []string{"--qemu-arg=-qmp", "--qemu-arg=unix:" + socket + ",server=on,wait=off"}
	if lab.Arch == scenario.AMD64 {
		device = "virtio-blk-pci"
		for _, port := range []string{"late", "later"} {
			args = append(args, "--qemu-arg=-device", "--qemu-arg=pcie-root-port,id="+port+",chassis="+fmt.Sprint(len(args)))
		}
	}
	plug := func(name, serial string) {
		if lab.Arch == scenario.AMD64 {
			bus = fmt.Sprintf(`,"bus":%q`, name)
		}
		disk := sparse(t, lab, name+".img", diskSize)
		if err := monitor(socket,
			fmt.Sprintf(`{"execute":"blockdev-add","arguments":{"driver":"raw","node-name":%q,"file":{"driver":"file","filename":%q}}}`, name, disk),
			fmt.Sprintf(`{"execute":"device_add","arguments":{"driver":%q,"id":"disk-%s","drive":%q,"serial":%q%s}}`, device, name, name, serial, bus)); err != nil {
			t.Error(err)
		}
	}
	plugged := make(chan struct{})
	go func() {
		defer close(plugged)
		time.Sleep(wait)
		plug("late", scenario.Volume)
	}()
	r := lab.Boot(t, scenario.Boot{
		UserData: lab.Encrypt(t, lab.Contract(t)), Publish: []int{8080}, Args: args,
		While: func(g *scenario.Guest) {
			<-plugged
			plug("later", "another")
			time.Sleep(3 * time.Second)
			fetch(t, "http://"+g.Address(8080)+"/")
		},
	})
	r.Ready(t)
	for _, p := range r.Phases {
		if p.Name == "disks" && p.Ms < 1000 {
			t.Errorf("phase disks took %d ms: the disk was there before", p.Ms)
		}
	}
}

// monitor sends commands to QEMU and wants each to be done.
func monitor(socket string, commands ...string) error {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	in := json.NewDecoder(c)
	for _, command := range append([]string{`{"execute":"qmp_capabilities"}`}, commands...) {
		if _, err := fmt.Fprintln(c, command); err != nil {
			return err
		}
		for {
			var answer map[string]json.RawMessage
			if err := in.Decode(&answer); err != nil {
				return err
			}
			if answer["error"] != nil {
				return fmt.Errorf("%s: %s", command, answer["error"])
			}
			if answer["return"] != nil {
				break
			}
		}
	}
	return nil
}

// many has sixteen volumes with equal seeds, in a guest whose memory would not
// hold their derivations at once. At the second boot three disks have lost their
// serials.
func many(t *testing.T, lab *scenario.Lab) {
	const count = 16
	c := lab.Contract(t)
	first, seed := c.Workload.Volumes[scenario.Volume], c.Env.Volumes[scenario.Volume]
	var names, files []string
	for i := range count {
		name := scenario.Volume
		if i > 0 {
			name += fmt.Sprint(i)
			w := first
			w.Mount = fmt.Sprintf("%s-%d", first.Mount, i)
			c.Workload.Volumes[name], c.Env.Volumes[name] = w, seed
		}
		names, files = append(names, name), append(files, sparse(t, lab, name+".img", 160<<20))
	}
	boot := func(state string, serial func(i int) string) {
		t.Helper()
		var disks []string
		for i, file := range files {
			disks = append(disks, serial(i)+"="+file)
		}
		r := lab.Boot(t, scenario.Boot{
			UserData: lab.Encrypt(t, c), Disks: disks, Limit: 10 * time.Minute,
			Args: []string{"--memory", "640M"}, // idle takes 300; sixteen derivations of 32 are 512
		})
		r.Ready(t)
		for _, name := range names {
			logged(t, lab, fmt.Sprintf("volume %s volume=%q", state, name))
		}
	}
	boot("created", func(i int) string { return names[i] })
	boot("opened", func(i int) string {
		if i%5 == 4 {
			return fmt.Sprint("lost-", i)
		}
		return names[i]
	})
}

// foreign is a scenario with a disk that is not ours: prepared, offered to the
// guest under the volume's own name, refused, compared.
func foreign(name string, tier scenario.Tier, code string, prepare func(*testing.T, *scenario.Lab, string)) scenario.Scenario {
	return scenario.Scenario{
		Name:     name,
		Attacker: "a host, or a careless operator, that attaches the wrong disk under the volume's name",
		Claim:    code + " and not one changed byte: only a blank disk is ever formatted.",
		Tier:     tier,
		Archs:    []string{scenario.AMD64},
		Cost:     10 * time.Second,
		Run: func(t *testing.T, lab *scenario.Lab) {
			disk := sparse(t, lab, "foreign.img", diskSize)
			prepare(t, lab, disk)
			unchanged(t, lab, lab.Contract(t), disk, code)
		},
	}
}

// blanked is a scenario with an empty disk in the place of a volume which, the
// contract says, there is.
func blanked(demand string, value any, tier scenario.Tier) scenario.Scenario {
	return scenario.Scenario{
		Name:     "an empty disk is refused and left as it is where the contract has " + demand,
		Attacker: "a host that hides a volume's disk and shows an empty one, for the guest to start anew",
		Claim:    "HPL02003E and not one changed byte: nothing is made in the place of what there must be.",
		Tier:     tier,
		Archs:    []string{scenario.AMD64},
		Cost:     10 * time.Second,
		Run: func(t *testing.T, lab *scenario.Lab) {
			c := lab.Contract(t)
			c.Workload.XHPCR = map[string]any{"volumes": map[string]any{scenario.Volume: map[string]any{demand: value}}}
			unchanged(t, lab, c, sparse(t, lab, "empty.img", diskSize), "HPL02003E")
		},
	}
}

// unchanged boots a guest that must refuse the disk.
func unchanged(t *testing.T, lab *scenario.Lab, c peers.Contract, disk, code string) {
	t.Helper()
	before := sum(t, disk)
	lab.Boot(t, scenario.Boot{UserData: lab.Encrypt(t, c), Disks: []string{scenario.Volume + "=" + disk}}).Failed(t, code)
	if sum(t, disk) != before {
		t.Error("the disk's content changed")
	}
}
