//go:build vm

package test

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
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
	foreign("an empty disk in the place of a volume that exists is refused and left as it is", scenario.Full, "HPL02003E", nil),
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
		Name:     "a disk that stops answering does not keep the guest from powering off",
		Attacker: "a host that lets a data disk hang while the guest runs",
		Claim:    "Asked to stop, the guest gives up on the volume after its limits and powers off; health answers until then.",
		Tier:     scenario.Full,
		Archs:    []string{scenario.AMD64},
		Cost:     90 * time.Second,
		Run:      hung,
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

	before := sum(t, disk)
	c := lab.Contract(t)
	mount := c.Workload.Volumes[scenario.Volume].Mount
	c.Env.Volumes = map[string]peers.EnvVolume{scenario.Volume: {Seed: env + "2"}}
	c.Workload.Volumes = map[string]peers.WorkloadVolume{scenario.Volume: {Seed: workload + "2", Mount: mount}}
	c.Workload.XHPCR = map[string]any{"volumes": map[string]any{scenario.Volume: map[string]any{"minGeneration": 5}}}
	lab.Boot(t, scenario.Boot{UserData: lab.Encrypt(t, c), Disks: []string{scenario.Volume + "=" + disk}}).Failed(t, "HPL02003E")
	if sum(t, disk) != before {
		t.Error("a boot with a floor above the disk's generation changed the disk")
	}
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
		return lab.Boot(t, scenario.Boot{UserData: lab.Encrypt(t, c), Disks: []string{scenario.Volume + "=" + files[first], other + "=" + files[second]}})
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

// hung serves the volume's disk from a process that is stopped in the middle.
func hung(t *testing.T, lab *scenario.Lab) {
	disk := sparse(t, lab, "data.img", diskSize)
	dir, err := os.MkdirTemp("", "nbd") // sockets want a short path
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "s")
	server := exec.Command("qemu-nbd", "--format=raw", "--persistent", "--shared=4", "--socket="+socket, disk)
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = server.Process.Signal(syscall.SIGCONT) // it may have ended with the guest
		_ = server.Process.Kill()
		_ = server.Wait()
	}()
	for range 100 {
		if _, err := os.Stat(socket); err == nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	var stopped time.Time
	r := lab.Boot(t, scenario.Boot{
		UserData: lab.Encrypt(t, lab.Contract(t)), Publish: []int{8080}, Limit: 4 * time.Minute,
		Args: []string{
			"--qemu-arg=-drive", "--qemu-arg=if=none,id=slow,format=raw,cache=none,file=nbd+unix:///?socket=" + socket,
			"--qemu-arg=-device", "--qemu-arg=virtio-blk-pci,drive=slow,serial=" + scenario.Volume,
		},
		While: func(g *scenario.Guest) {
			fetch(t, "http://"+g.Address(8080)+"/")
			if err := server.Process.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			healthy(t, lab, g)
			stopped = time.Now()
		},
	})
	if took := time.Since(stopped); took > 110*time.Second {
		t.Errorf("the guest took %s to power off", took)
	}
	if r.Verdict != "ready" {
		t.Errorf("verdict %s", r.Verdict)
	}
	if !strings.Contains(r.Console, "stopped, but not everything could be closed") {
		t.Errorf("the console does not say that something is left:\n%s", r.Console)
	}
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
			c := lab.Contract(t)
			if prepare != nil {
				prepare(t, lab, disk)
			} else {
				c.Workload.XHPCR = map[string]any{"volumes": map[string]any{scenario.Volume: map[string]any{"existing": true}}}
			}
			before := sum(t, disk)
			lab.Boot(t, scenario.Boot{UserData: lab.Encrypt(t, c), Disks: []string{scenario.Volume + "=" + disk}}).Failed(t, code)
			if after := sum(t, disk); after != before {
				t.Error("the disk's content changed")
			}
		},
	}
}
